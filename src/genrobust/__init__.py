"""Generative classifiers as torch modules, for the toolkits of adversarial robustness.

Importing this package loads torch and NumPy; toolkits, training and the zoo's data are loaded on first use.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from .contract import Classifier, GenerativeClassifier, Prediction
from .purifiers.base import Purifier

if _TYPE_CHECKING:
    from ._lazy import as_torchattacks as as_torchattacks
    from ._lazy import audit as audit
    from ._lazy import criterion_for_foolbox as criterion_for_foolbox
    from ._lazy import evaluate as evaluate
    from ._lazy import import_advertorch as import_advertorch
    from ._lazy import import_advlib as import_advlib
    from ._lazy import run_autoattack as run_autoattack
    from ._lazy import wrap_for_advertorch as wrap_for_advertorch
    from ._lazy import wrap_for_advlib as wrap_for_advlib
    from ._lazy import wrap_for_art as wrap_for_art
    from ._lazy import wrap_for_foolbox as wrap_for_foolbox
    from ._lazy import wrap_for_robustbench as wrap_for_robustbench
    from ._lazy import wrap_for_secml as wrap_for_secml
    from ._lazy import wrap_for_torchattacks as wrap_for_torchattacks
    from .adapters._autoattack import AutoAttackBudget as AutoAttackBudget
    from .attacks import register_attack as register_attack
    from .attacks import strongest as strongest
    from .benchmarks.suites.files import register_suite as register_suite
    from .certificates import certify as certify
    from .data import load_dataset as load_dataset
    from .data import register_dataset as register_dataset
    from .external import as_classifier as as_classifier
    from .purifiers import Purified as Purified
    from .registry import load_plugin as load_plugin
    from .selective import SelectiveClassifier as SelectiveClassifier
    from .verification import Verification as Verification
    from .verification import attack_every_class as attack_every_class
    from .verification import verify as verify
    from .zoo import list_models as list_models
    from .zoo import load_model as load_model
    from .zoo import register_model as register_model

__version__ = "0.2.0"

__all__ = [
    "AutoAttackBudget",
    "Classifier",
    "GenerativeClassifier",
    "Prediction",
    "Purified",
    "Purifier",
    "SelectiveClassifier",
    "Verification",
    "as_classifier",
    "as_torchattacks",
    "attack_every_class",
    "audit",
    "certify",
    "criterion_for_foolbox",
    "evaluate",
    "import_advertorch",
    "import_advlib",
    "list_models",
    "load_dataset",
    "load_model",
    "load_plugin",
    "register_attack",
    "register_dataset",
    "register_model",
    "register_suite",
    "run_autoattack",
    "strongest",
    "verify",
    "wrap_for_advertorch",
    "wrap_for_advlib",
    "wrap_for_art",
    "wrap_for_foolbox",
    "wrap_for_robustbench",
    "wrap_for_secml",
    "wrap_for_torchattacks",
]

_LAZY = {
    "AutoAttackBudget": ".adapters._autoattack",
    "Purified": ".purifiers",
    "SelectiveClassifier": ".selective",
    "Verification": ".verification",
    "as_classifier": ".external",
    "as_torchattacks": "._lazy",
    "attack_every_class": ".verification",
    "audit": "._lazy",
    "certify": ".certificates",
    "criterion_for_foolbox": "._lazy",
    "evaluate": "._lazy",
    "import_advertorch": "._lazy",
    "import_advlib": "._lazy",
    "list_models": ".zoo",
    "load_dataset": ".data",
    "load_model": ".zoo",
    "load_plugin": ".registry",
    "register_attack": ".attacks",
    "register_dataset": ".data",
    "register_model": ".zoo",
    "register_suite": ".benchmarks.suites.files",
    "run_autoattack": "._lazy",
    "strongest": ".attacks",
    "verify": ".verification",
    "wrap_for_advertorch": "._lazy",
    "wrap_for_advlib": "._lazy",
    "wrap_for_art": "._lazy",
    "wrap_for_foolbox": "._lazy",
    "wrap_for_robustbench": "._lazy",
    "wrap_for_secml": "._lazy",
    "wrap_for_torchattacks": "._lazy",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(_import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
