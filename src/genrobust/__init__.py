"""Generative classifiers as torch modules, for the toolkits of adversarial robustness.

Importing this package loads torch and NumPy; toolkits, training and the zoo's data are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .classifier import Classifier, GenerativeClassifier, Prediction
from .gradients import Automatic, Envelope, Estimated, Expectation, Joint, Proposal, Unrolled, expectation
from .inference import InferenceBudget
from .models.abs import ABS, ABSConfig
from .models.baselines import (
    CNN,
    MLP,
    Adversary,
    BayesianMLP,
    BayesianMLPConfig,
    CNNConfig,
    MLPConfig,
    PoolCNN,
    PoolCNNConfig,
)
from .models.comdefend import ComDefend, ComDefendConfig
from .models.convnets import ConvNet, ConvNetConfig
from .models.deep_bayes import DeepBayes, DeepBayesConfig
from .models.eabs import EABS, EABSConfig
from .models.gmvae import GMVAE, GMVAEConfig
from .models.mad_vae import MADVAE, MADVAEConfig
from .models.vade import VaDEClassifier, VaDEConfig
from .nets import Architecture, DecoderBank, architecture
from .projection import LatentProjection
from .purification import Purified, Purifier, TrainablePurifier
from .selective import SelectiveClassifier

if TYPE_CHECKING:
    from .adapters._advertorch import import_advertorch as import_advertorch
    from .adapters._advertorch import wrap_for_advertorch as wrap_for_advertorch
    from .adapters._art import wrap_for_art as wrap_for_art
    from .adapters._foolbox import WrongAndAccepted as WrongAndAccepted
    from .adapters._foolbox import wrap_for_foolbox as wrap_for_foolbox
    from .adapters._robustbench import AutoAttackBudget as AutoAttackBudget
    from .adapters._robustbench import run_autoattack as run_autoattack
    from .adapters._robustbench import wrap_for_robustbench as wrap_for_robustbench
    from .adapters._torchattacks import as_torchattacks as as_torchattacks
    from .adapters._torchattacks import wrap_for_torchattacks as wrap_for_torchattacks
    from .adapters.verification import Verification, attack_every_class, verify
    from .benchmarks.evaluation import Evaluation as Evaluation
    from .benchmarks.evaluation import evaluate as evaluate
    from .data import load_dataset
    from .zoo import list_models, load_model

__version__ = "0.1.0"

__all__ = [
    "ABS",
    "CNN",
    "EABS",
    "GMVAE",
    "MADVAE",
    "MLP",
    "ABSConfig",
    "Adversary",
    "Architecture",
    "Automatic",
    "BayesianMLP",
    "BayesianMLPConfig",
    "CNNConfig",
    "Classifier",
    "ComDefend",
    "ComDefendConfig",
    "ConvNet",
    "ConvNetConfig",
    "DecoderBank",
    "DeepBayes",
    "DeepBayesConfig",
    "EABSConfig",
    "Envelope",
    "Estimated",
    "Expectation",
    "GMVAEConfig",
    "GenerativeClassifier",
    "InferenceBudget",
    "Joint",
    "LatentProjection",
    "MADVAEConfig",
    "MLPConfig",
    "PoolCNN",
    "PoolCNNConfig",
    "Prediction",
    "Proposal",
    "Purified",
    "Purifier",
    "SelectiveClassifier",
    "TrainablePurifier",
    "Unrolled",
    "VaDEClassifier",
    "VaDEConfig",
    "Verification",
    "architecture",
    "attack_every_class",
    "expectation",
    "list_models",
    "load_dataset",
    "load_model",
    "verify",
]

_LAZY = {
    "AutoAttackBudget": ".adapters._robustbench",
    "Evaluation": ".benchmarks.evaluation",
    "Verification": ".adapters.verification",
    "WrongAndAccepted": ".adapters._foolbox",
    "as_torchattacks": ".adapters._torchattacks",
    "attack_every_class": ".adapters.verification",
    "evaluate": ".benchmarks.evaluation",
    "import_advertorch": ".adapters._advertorch",
    "list_models": ".zoo",
    "load_dataset": ".data",
    "load_model": ".zoo",
    "run_autoattack": ".adapters._robustbench",
    "verify": ".adapters.verification",
    "wrap_for_advertorch": ".adapters._advertorch",
    "wrap_for_art": ".adapters._art",
    "wrap_for_foolbox": ".adapters._foolbox",
    "wrap_for_robustbench": ".adapters._robustbench",
    "wrap_for_torchattacks": ".adapters._torchattacks",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
