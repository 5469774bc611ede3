"""Published systems, by name."""

from ._adversarial import Adversary
from .abs import ABS, ABSConfig
from .baselines import (
    CNN,
    MLP,
    BayesianMLP,
    BayesianMLPConfig,
    CNNConfig,
    MLPConfig,
    PoolCNN,
    PoolCNNConfig,
)
from .convnets import ConvNet, ConvNetConfig
from .deep_bayes import DeepBayes, DeepBayesConfig
from .eabs import EABS, EABSConfig
from .gmvae import GMVAE, GMVAEConfig
from .vade import VaDEClassifier, VaDEConfig

__all__ = [
    "ABS",
    "CNN",
    "EABS",
    "GMVAE",
    "MLP",
    "ABSConfig",
    "Adversary",
    "BayesianMLP",
    "BayesianMLPConfig",
    "CNNConfig",
    "ConvNet",
    "ConvNetConfig",
    "DeepBayes",
    "DeepBayesConfig",
    "EABSConfig",
    "GMVAEConfig",
    "MLPConfig",
    "PoolCNN",
    "PoolCNNConfig",
    "VaDEClassifier",
    "VaDEConfig",
]
