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
from .diffusion import DiffusionBudget, DiffusionClassifier, DiffusionConfig
from .eabs import EABS, EABSConfig
from .flow import ConditionalFlow, FlowConfig
from .gmvae import GMVAE, GMVAEConfig
from .pixelcnn import PixelCNN, PixelCNNConfig
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
    "ConditionalFlow",
    "ConvNet",
    "ConvNetConfig",
    "DeepBayes",
    "DeepBayesConfig",
    "DiffusionBudget",
    "DiffusionClassifier",
    "DiffusionConfig",
    "EABSConfig",
    "FlowConfig",
    "GMVAEConfig",
    "MLPConfig",
    "PixelCNN",
    "PixelCNNConfig",
    "PoolCNN",
    "PoolCNNConfig",
    "VaDEClassifier",
    "VaDEConfig",
]
