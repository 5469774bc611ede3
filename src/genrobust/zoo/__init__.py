"""Trained models that ship with the package, the recipes that made them, and their cards."""

import json
from importlib.resources import as_file, files
from typing import Any

import torch

from .._fields import checked
from ..contract import Classifier
from ..selective import Detector, read_detectors
from .registered import MODELS, Composition, Recipe, register_composition, register_model
from .weight_files import check_card, read_model, save_model

__all__ = [
    "Recipe",
    "list_models",
    "load_detectors",
    "load_model",
    "model_card",
    "read_model",
    "register_composition",
    "register_model",
    "save_model",
]

_WEIGHTS = files(__name__) / "weights"


def list_models() -> tuple[tuple[str, str], ...]:
    """Returns (model, data set) of every shipped model, sorted."""
    names = (entry.name for entry in _WEIGHTS.iterdir() if entry.name.endswith(".safetensors"))
    pairs = (name.removesuffix(".safetensors").rsplit("-", 1) for name in names)
    return tuple(sorted((model, dataset) for model, dataset in pairs))


def load_model(name: str, *, dataset: str, device: torch.device | str = "cpu") -> Classifier:
    """Loads a shipped model, or one that is put together from shipped ones.

    Args:
        name: Name of the model, such as `"eabs"`, `"abs"` or `"comdefend-vade"`.
        dataset: The data set that it was trained on, such as `"digits"` or `"mnist"`.
        device: The device of the model.

    Raises:
        ValueError: If no such model is shipped; the message lists the shipped ones.

    Example:
        >>> from genrobust import load_model
        >>> load_model("eabs", dataset="digits").num_classes
        10
    """
    name, dataset = checked(name, str, "`name`"), checked(dataset, str, "`dataset`")
    composed = MODELS.get(name) if name in MODELS else None
    if isinstance(composed, Composition):
        return composed.of(lambda part: load_model(part, dataset=dataset, device=device))
    _check_shipped(name, dataset)
    with as_file(_WEIGHTS / f"{name}-{dataset}.safetensors") as path:
        return read_model(path).to(device)


def model_card(name: str, *, dataset: str) -> dict[str, Any]:
    """Returns the card of a shipped model: recipe, seed, data, measured numbers.

    Raises:
        ValueError: If no such model is shipped.
    """
    _check_shipped(name, dataset)
    card: dict[str, Any] = json.loads((_WEIGHTS / f"{name}-{dataset}.json").read_text(encoding="utf-8"))
    return card


def load_detectors(name: str, *, dataset: str) -> dict[str, Detector]:
    """Loads the detectors that were calibrated for a shipped model; see `training.calibration`.

    Raises:
        ValueError: If no such model is shipped, or it has no detectors.

    Example:
        >>> from genrobust.zoo import load_detectors
        >>> load_detectors("deep-bayes", dataset="digits")["marginal"].false_positive_rate
        0.05
    """
    _check_shipped(name, dataset)
    resource = _WEIGHTS / f"{name}-{dataset}.detectors.json"
    if not resource.is_file():
        raise ValueError(f"Expected a model with detectors, but {name!r} on {dataset!r} has none")
    with as_file(_WEIGHTS) as folder:
        weights, path = folder / f"{name}-{dataset}.safetensors", folder / resource.name
        check_card(weights, file=path, entry="detectors_sha256")
        return read_detectors(path)


def _check_shipped(name: str, dataset: str) -> None:
    if (name, dataset) not in list_models():
        shipped = ", ".join(f"{model} on {data}" for model, data in list_models())
        raise ValueError(f"Expected a shipped model ({shipped}), but got {name!r} on {dataset!r}")
