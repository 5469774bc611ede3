"""External evaluations of RobustBench: the adversarial images of a whole test split, and the issue's text.

RobustBench asks for "a `.pt` tensor of the same size of the corresponding test set", the robust accuracy, and
a description of the method (its issue template "New external evaluation(s)"). It then counts how often the
model is right about the tensor. It has leaderboards of CIFAR-10, CIFAR-100 and ImageNet.
"""

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..._console import plain
from ..._files import sha256_of
from ..._tensors import write_torch
from ..report.writing import write_text
from ..run.cells import Cell
from ..run.results import Results
from ..statistics import Drawn, Row
from ..suites.model import Norm
from .content import Content, deciding_rows, kept_images

__all__ = ["write_robustbench"]

THREAT_MODELS: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2"}


def write_robustbench(content: Content, out: Path) -> tuple[Path, ...]:
    """Writes a tensor and a text for every model and norm that RobustBench has leaderboards of.

    Raises:
        ValueError: If the run attacked only some of the test images, or in other norms alone, or kept no
            images.
    """
    results = content.results
    _check_whole(content)
    found = [
        drawn
        for model in results.models
        for drawn in content.accuracies(model, headline=True)
        if drawn.row.norm in THREAT_MODELS
    ]
    if not found:
        raise ValueError(
            f"Expected attacks in {' or '.join(THREAT_MODELS)}, as RobustBench has them, but the run has "
            f"{', '.join(results.suite.norms) or 'none'}"
        )
    return tuple(path for drawn in found for path in _write(content, drawn, out))


def _check_whole(content: Content) -> None:
    samples = content.results.samples
    if content.split != "test" or not np.array_equal(np.sort(samples), np.arange(len(samples))):
        raise ValueError(
            f"Expected every image of the test split, as RobustBench asks, but the run in "
            f"{content.results.folder} has {len(samples)} {content.split} images: run it again with "
            "--samples of the whole split, --keep-examples and another --out"
        )


def _write(content: Content, drawn: Drawn, out: Path) -> tuple[Path, Path]:
    tensor, text = (out / f"{drawn.model}-{drawn.row.norm}.{suffix}" for suffix in ("pt", "md"))
    images = _images(content.results, drawn.model, drawn.row)
    write_torch(tensor, images)
    write_text(text, "\n".join(_lines(content, drawn, tensor, tuple(images.shape))) + "\n")
    return tensor, text


def _images(results: Results, model: str, row: Row) -> Float[Tensor, "samples channels height width"]:
    """Returns the image that decides about each test image, in the order of the test split."""
    decided = results.rows.take(deciding_rows(results, model, row))
    size = results.suite.batch_size
    places = [
        (Cell(model=model, attack=attack, epsilon=epsilon, batch=number // size), number)
        for number, (attack, epsilon) in enumerate(
            zip(decided["attack"].to_pylist(), decided["epsilon"].to_pylist(), strict=True)
        )
    ]
    chosen: dict[int, Tensor] = {}
    places.sort(key=lambda place: place[0].key)
    for cell, group in groupby(places, key=lambda place: place[0]):
        kept = torch.from_numpy(kept_images(results, cell))
        chosen |= {int(results.samples[number]): kept[number % size] for _, number in group}
    return torch.stack([chosen[sample] for sample in range(len(chosen))])


def _lines(content: Content, drawn: Drawn, tensor: Path, shape: tuple[int, ...]) -> Iterator[str]:
    row, norm = drawn.row, drawn.row.norm
    threat = "" if norm is None else f"{THREAT_MODELS[norm]}, eps = {row.epsilon:g}"
    yield "## Target model"
    yield f"+ **Model identifier(s):** {drawn.model}"
    yield f"+ **Leaderboard(s):** {content.dataset}, {threat}"
    yield ""
    yield "## New evaluation"
    yield (
        f"+ **Link to adversarial images:** put `{tensor.name}` where others can load it (float32, shape "
        f"{shape}, SHA-256 {sha256_of(tensor)})"
    )
    yield f"+ **Robust accuracy:** {100 * drawn.majority.value:.2f} %"
    yield f"+ **Author(s):** {content.owner or '<your name>'}"
    yield (
        f"+ **Description of the method used:** {plain(content.described(drawn))} The tensor has the nearest "
        "verified example of every image that some attack changed the decision of, and the clean image of "
        "every other one."
    )
