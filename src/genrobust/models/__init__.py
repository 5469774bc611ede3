"""Published systems, by name."""

from collections.abc import Callable
from typing import Any

from ..classifier import Classifier
from ..purification import Purifier
from .abs import ABS, ABSConfig
from .baselines import CNN, MLP, BayesianMLP, BayesianMLPConfig, CNNConfig, MLPConfig, PoolCNN, PoolCNNConfig
from .comdefend import ComDefend, ComDefendConfig
from .convnets import ConvNet, ConvNetConfig
from .deep_bayes import DeepBayes, DeepBayesConfig
from .eabs import EABS, EABSConfig
from .gmvae import GMVAE, GMVAEConfig
from .mad_vae import MADVAE, MADVAEConfig
from .vade import VaDEClassifier, VaDEConfig

__all__ = ["MODELS", "PURIFIERS", "ModelConfig"]

ModelConfig = (
    ABSConfig
    | BayesianMLPConfig
    | CNNConfig
    | ConvNetConfig
    | DeepBayesConfig
    | EABSConfig
    | GMVAEConfig
    | MLPConfig
    | PoolCNNConfig
    | VaDEConfig
)

MODELS: dict[str, tuple[Callable[[Any], Classifier], type[ModelConfig]]] = {
    "ABS": (ABS, ABSConfig),
    "BayesianMLP": (BayesianMLP, BayesianMLPConfig),
    "CNN": (CNN, CNNConfig),
    "ConvNet": (ConvNet, ConvNetConfig),
    "DeepBayes": (DeepBayes, DeepBayesConfig),
    "EABS": (EABS, EABSConfig),
    "GMVAE": (GMVAE, GMVAEConfig),
    "MLP": (MLP, MLPConfig),
    "PoolCNN": (PoolCNN, PoolCNNConfig),
    "VaDEClassifier": (VaDEClassifier, VaDEConfig),
}

PURIFIERS: dict[str, tuple[Callable[[Any], Purifier], type[ComDefendConfig | MADVAEConfig]]] = {
    "ComDefend": (ComDefend, ComDefendConfig),
    "MADVAE": (MADVAE, MADVAEConfig),
}
