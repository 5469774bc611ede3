"""A training in a folder: what it is, and the checkpoint that it goes on from."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._brief import one_line
from .._claims import create_json, differences
from .._files import read_json
from .._settings import digest
from .._tensors import write_torch
from ..contract import Classifier
from ..data import ImageDataset

__all__ = [
    "CHECKPOINT",
    "TRAINING",
    "Progress",
    "claim",
    "identity_of",
    "read_checkpoint",
    "write_checkpoint",
]

CHECKPOINT, TRAINING = "checkpoint.pt", "training.json"
_PARTS = ("identity", "state", "model", "best", "optimizers")


@dataclass
class Progress:
    """How far a training is."""

    epoch: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    __repr__ = one_line


def identity_of(
    model: Classifier, dataset: ImageDataset, validation: ImageDataset, config: Any, source: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what decides the result of a training beside the machine, as JSON can hold it.

    The number of epochs is not part of it: a training may go on for longer.

    Args:
        model: The model before its training. Its initial weights follow from `config.seed`, or `source`.
        dataset: All images that it may learn from, and those held out.
        validation: The images held out.
        config: The settings of the training.
        source: What else decides it, such as the weights that it starts from.
    """
    held_out = [part for part in (dataset.clean, dataset.held_out) if part is not None]
    settings = {name: value for name, value in asdict(config).items() if name != "epochs"}
    return dict(
        json.loads(
            json.dumps(
                {
                    "model": _without_weights(model.settings()),
                    "training": settings,
                    "data": {"name": dataset.name, "sha256": dataset.sha256, "beside": digest(held_out)},
                    "validation": validation.sha256,
                    "selected_by": model.selected_by,
                    **source,
                }
            )
        )
    )


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Has a folder belong to a training, unless another one has it.

    Raises:
        ValueError: If another training began there; the message names what differs.
        OSError: If the folder cannot be written.
    """
    if create_json(folder / TRAINING, identity):
        return
    _check_same(read_json(folder / TRAINING), identity, folder)


def write_checkpoint(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically.

    Raises:
        OSError: If it cannot be written.
    """
    write_torch(folder / CHECKPOINT, dict(content))


def read_checkpoint(folder: Path, identity: Mapping[str, Any], epochs: int) -> dict[str, Any] | None:
    """Reads the checkpoint of a training; None where there is none.

    Raises:
        ValueError: If the file is damaged, is of another training, or had more than these epochs.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    content = _loaded(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(name), dict) for name in _PARTS):
        raise _damaged(path, "it lacks parts: another version of genrobust wrote it, or something else")
    _check_same(content["identity"], identity, folder)
    try:
        progress = Progress(**content["state"])
        whole = 1 <= progress.best_epoch <= progress.epoch == len(progress.history)
    except TypeError as error:
        raise _damaged(path, str(error)) from error
    if not whole:
        raise _damaged(path, f"it counts {progress.epoch} epochs, and calls {progress.best_epoch} the best")
    if progress.epoch > epochs:
        raise ValueError(
            f"Expected at least {progress.epoch} epochs, which the training in {folder} has had, but "
            f"got {epochs}: choose another folder, or more epochs"
        )
    for part in ("model", "best"):
        for name, values in content[part].items():
            if not isinstance(values, Tensor) or not values.isfinite().all():
                raise _damaged(path, f"{name!r} is no tensor of finite numbers")
    return {**content, "state": progress}


def _loaded(path: Path) -> Any:
    """Loads a checkpoint, as data alone; what it declares cannot be larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
        if declared <= path.stat().st_size:
            return torch.load(path, map_location="cpu", weights_only=True)
        reason = f"{declared:,} bytes are declared"
    except Exception as error:  # torch, pickle and zip raise errors of a dozen kinds
        reason = str(error).partition("\n")[0]
    raise _damaged(path, reason)


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"Expected {path} to be a checkpoint, but {reason}: remove it to train from the start")


def _check_same(theirs: Any, mine: Mapping[str, Any], folder: Path) -> None:
    if different := differences(theirs, mine):
        raise ValueError(
            f"Expected a checkpoint of the same training in {folder}, but these differ: "
            f"{'; '.join(different[:5])}. Choose another folder, or remove it"
        )


def _without_weights(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return {name: _without_weights(value) for name, value in settings.items() if name != "weights"}
    return [_without_weights(part) for part in settings] if isinstance(settings, list) else settings
