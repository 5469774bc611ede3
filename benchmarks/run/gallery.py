"""A few examples of every attack, kept for the eye; and all images of a run, where they are kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..._arrays import ArrayFile
from ..._files import write_atomically
from ...capabilities import Defended, Reconstructs
from ...contract import Classifier
from ...verification import Verification
from .cells import Cell

__all__ = ["EXAMPLES", "GALLERY", "make_gallery", "read_examples", "read_gallery", "write_arrays"]

EXAMPLES, GALLERY = "examples", "gallery"
SHOWN = 4
NUMBERS = ("sample", "label", "prediction")

Array = np.ndarray[Any, Any]


def make_gallery(
    model: Classifier,
    samples: Int[np.ndarray, " batch"],
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    verdict: Verification,
    class_names: Sequence[str],
) -> dict[str, Array]:
    """Chooses examples of a batch, successes first.

    Args:
        model: The attacked model; a defence is passed, and its bare model reconstructs.
        samples: Indices of the images in the test split.
        images: The clean images.
        labels: Their classes.
        verdict: What became of them.
        class_names: Class names of the dataset.

    Returns:
        Arrays of at most four rows: `sample`, `label`, `prediction`, `clean` and `adversarial` (images), and
        `reconstructions`, the adversarial image as every class would have it, of a model that has them; and
        `class_names`.
    """
    order = torch.argsort(~verdict.success, stable=True)
    rows = order[verdict.valid[order]][:SHOWN]
    shown, adversarial = rows.cpu().numpy(), verdict.images[rows]
    arrays = {
        "sample": samples[shown],
        "label": labels[rows].cpu().numpy(),
        "prediction": verdict.prediction[rows].cpu().numpy(),
        "clean": images[rows].cpu().numpy().astype(np.float32),
        "adversarial": adversarial.cpu().numpy().astype(np.float32),
        "class_names": np.array(list(class_names)),
    }
    inner, seen = (
        (model.bare(), model.passed_on(adversarial)) if isinstance(model, Defended) else (model, adversarial)
    )
    if isinstance(inner, Reconstructs) and len(shown):
        with torch.no_grad():
            arrays["reconstructions"] = inner.reconstruct(seen).cpu().numpy().astype(np.float32)
    return arrays


def write_arrays(folder: Path, kind: str, cell: Cell, arrays: Mapping[str, Array], *, run: str) -> None:
    """Writes a cell's arrays atomically into the folder of their kind, with the fingerprint of their run."""
    with write_atomically(_path(folder, kind, cell)) as part, part.open("wb") as file:
        np.savez_compressed(file, **dict[str, Any](arrays), run=np.array(run))


def read_gallery(folder: Path, cell: Cell, *, run: str) -> dict[str, Array] | None:
    """Reads a cell's examples; None where there are none, or their file is damaged or of another run."""
    arrays = _read(folder, GALLERY, cell, run=run)
    return arrays if arrays is not None and _is_gallery(arrays) else None


def read_examples(folder: Path, cell: Cell, *, run: str) -> dict[str, Array] | None:
    """Reads all images that a run with `keep_examples` judged in a cell.

    Returns:
        `sample`, indices of shape (B,) in the test split, and `adversarial`, the images of shape
        (B, C, H, W), which are the clean ones in a clean cell. None where there are none, or their file is
        damaged or of another run.
    """
    arrays = _read(folder, EXAMPLES, cell, run=run)
    if arrays is None or not arrays.keys() >= {"sample", "adversarial"}:
        return None
    sample, images = arrays["sample"], arrays["adversarial"]
    fits = sample.ndim == 1 and images.ndim == 4 and len(sample) == len(images)
    return arrays if fits and sample.dtype.kind == "i" and images.dtype.kind == "f" else None


def _read(folder: Path, kind: str, cell: Cell, *, run: str) -> dict[str, Array] | None:
    try:
        with ArrayFile.open(_path(folder, kind, cell)) as archive:
            arrays = {name: archive.read(name) for name in archive.names}
    except (OSError, ValueError):
        return None
    return arrays if str(arrays.pop("run", None)) == run else None


def _is_gallery(arrays: Mapping[str, Array]) -> bool:
    """Returns whether arrays are what `make_gallery` makes."""
    if not arrays.keys() >= {"sample", "label", "prediction", "clean", "adversarial", "class_names"}:
        return False
    rows = arrays["sample"].shape
    names, clean = arrays["class_names"], arrays["clean"]
    drawn = arrays.get("reconstructions", np.zeros((*clean.shape[:1], 1, *clean.shape[1:]), np.float32))
    return (
        len(rows) == 1
        and all(arrays[name].shape == rows and arrays[name].dtype.kind == "i" for name in NUMBERS)
        and all(part.dtype.kind == "f" for part in (clean, arrays["adversarial"], drawn))
        and clean.ndim == 4
        and clean.shape[:1] == rows
        and clean.shape[1] in (1, 3)
        and arrays["adversarial"].shape == clean.shape
        and (drawn.shape[:1], drawn.shape[2:]) == (clean.shape[:1], clean.shape[1:])
        and names.ndim == 1
        and names.dtype.kind == "U"
    )


def _path(folder: Path, kind: str, cell: Cell) -> Path:
    return folder / kind / f"{cell.key}.npz"
