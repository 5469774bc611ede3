"""A few examples of every attack, kept for the eye."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..classifier import Classifier
from ..storage import write_atomically
from .cells import Cell
from .scoring import Verdicts

__all__ = ["EXAMPLES", "GALLERY", "make_gallery", "read_gallery", "write_arrays"]

EXAMPLES, GALLERY = "examples", "gallery"
SHOWN = 4

Array = np.ndarray[Any, Any]


def make_gallery(
    model: Classifier,
    samples: Int[np.ndarray, " batch"],
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    verdicts: Verdicts,
    class_names: Sequence[str],
) -> dict[str, Array]:
    """Choose examples of a batch, successes first.

    Args:
        model: The attacked model, which may have a `reconstruct`.
        samples: Indices of the images in the test split.
        images: The clean images.
        labels: Their classes.
        verdicts: What became of them.
        class_names: Of the dataset.

    Returns:
        Arrays of at most four rows: `sample`, `label`, `prediction`, `clean` and `adversarial` (images), and
        `reconstructions`, the adversarial image as every class would have it, of a model that has them; and
        `class_names`.
    """
    order = np.argsort(~verdicts.success, kind="stable")
    shown = order[verdicts.valid[order]][:SHOWN]
    rows = torch.from_numpy(shown).to(labels.device)
    adversarial = verdicts.images[rows]
    arrays = {
        "sample": samples[shown],
        "label": labels[rows].cpu().numpy(),
        "prediction": verdicts.prediction[shown],
        "clean": images[rows].cpu().numpy().astype(np.float32),
        "adversarial": adversarial.cpu().numpy().astype(np.float32),
        "class_names": np.array(list(class_names)),
    }
    reconstruct = getattr(getattr(model, "model", model), "reconstruct", None)
    if reconstruct is not None and len(shown):
        with torch.no_grad():
            arrays["reconstructions"] = reconstruct(adversarial).cpu().numpy().astype(np.float32)
    return arrays


def write_arrays(folder: Path, kind: str, cell: Cell, arrays: Mapping[str, Array]) -> None:
    """Write a cell's arrays atomically into the folder of their kind."""
    with write_atomically(_path(folder, kind, cell)) as part, part.open("wb") as file:
        np.savez_compressed(file, **dict[str, Any](arrays))


def read_gallery(folder: Path, cell: Cell) -> dict[str, Array] | None:
    """Read a cell's examples; None where there are none, or their file is damaged."""
    try:
        with np.load(_path(folder, GALLERY, cell), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError):
        return None


def _path(folder: Path, kind: str, cell: Cell) -> Path:
    return folder / kind / f"{cell.key}.npz"
