"""Published systems, by name."""

from collections.abc import Callable
from typing import Any

from ..classifier import Classifier
from .abs import ABS, ABSConfig
from .baselines import CNN, CNNConfig
from .eabs import EABS, EABSConfig

__all__ = ["MODELS", "ModelConfig"]

ModelConfig = ABSConfig | CNNConfig | EABSConfig

MODELS: dict[str, tuple[Callable[[Any], Classifier], type[ModelConfig]]] = {
    "ABS": (ABS, ABSConfig),
    "CNN": (CNN, CNNConfig),
    "EABS": (EABS, EABSConfig),
}
