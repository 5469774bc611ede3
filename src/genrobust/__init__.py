"""Generative classifiers as torch modules, for the toolkits of adversarial robustness.

Importing this package loads torch and NumPy; toolkits, training and the zoo's data are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .classifier import Classifier, GenerativeClassifier, Prediction
from .gradients import Envelope, Estimated, Expectation, Unrolled, expectation
from .inference import InferenceBudget
from .models.abs import ABS, ABSConfig
from .models.baselines import CNN, Adversary, CNNConfig
from .models.eabs import EABS, EABSConfig
from .nets import Architecture, DecoderBank, architecture

if TYPE_CHECKING:
    from .adapters._foolbox import wrap_for_foolbox as wrap_for_foolbox
    from .data import load_dataset
    from .zoo import list_models, load_model

__version__ = "0.1.0"

__all__ = [
    "ABS",
    "CNN",
    "EABS",
    "ABSConfig",
    "Adversary",
    "Architecture",
    "CNNConfig",
    "Classifier",
    "DecoderBank",
    "EABSConfig",
    "Envelope",
    "Estimated",
    "Expectation",
    "GenerativeClassifier",
    "InferenceBudget",
    "Prediction",
    "Unrolled",
    "architecture",
    "expectation",
    "list_models",
    "load_dataset",
    "load_model",
]

_LAZY = {
    "list_models": ".zoo",
    "load_dataset": ".data",
    "load_model": ".zoo",
    "wrap_for_foolbox": ".adapters._foolbox",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
