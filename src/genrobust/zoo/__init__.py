"""Trained models that ship with the package, the recipes that made them, and their cards."""

import json
from importlib.resources import as_file, files
from typing import Any

import torch

from ..classifier import Classifier
from ..selective import Detector, read_detectors
from .serialization import read_model, save_model

__all__ = ["list_models", "load_detectors", "load_model", "model_card", "read_model", "save_model"]

_WEIGHTS = files(__name__) / "weights"


def list_models() -> tuple[tuple[str, str], ...]:
    """Give (model, data set) of every shipped model, sorted."""
    names = (entry.name for entry in _WEIGHTS.iterdir() if entry.name.endswith(".safetensors"))
    pairs = (name.removesuffix(".safetensors").rsplit("-", 1) for name in names)
    return tuple(sorted((model, dataset) for model, dataset in pairs))


def load_model(name: str, *, dataset: str, device: torch.device | str = "cpu") -> Classifier:
    """Load a shipped model.

    Args:
        name: Such as `"eabs"`, `"abs"` or `"cnn"`.
        dataset: What it was trained on, such as `"digits"` or `"mnist"`.
        device: Where to put it.

    Raises:
        ValueError: If no such model is shipped; the message lists those that are.

    Example:
        >>> from genrobust import load_model
        >>> load_model("eabs", dataset="digits").num_classes
        10
    """
    _check_shipped(name, dataset)
    with as_file(_WEIGHTS / f"{name}-{dataset}.safetensors") as path:
        return read_model(path).to(device)


def model_card(name: str, *, dataset: str) -> dict[str, Any]:
    """Give the card of a shipped model: recipe, seed, data, measured numbers.

    Raises:
        ValueError: If no such model is shipped.
    """
    _check_shipped(name, dataset)
    card: dict[str, Any] = json.loads((_WEIGHTS / f"{name}-{dataset}.json").read_text(encoding="utf-8"))
    return card


def load_detectors(name: str, *, dataset: str) -> dict[str, Detector]:
    """Load the detectors that were calibrated for a shipped model; see `zoo.building.calibrate_detectors`.

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
    with as_file(resource) as path:
        return read_detectors(path)


def _check_shipped(name: str, dataset: str) -> None:
    if (name, dataset) not in list_models():
        shipped = ", ".join(f"{model} on {data}" for model, data in list_models())
        raise ValueError(f"Expected a shipped model ({shipped}), but got {name!r} on {dataset!r}")
