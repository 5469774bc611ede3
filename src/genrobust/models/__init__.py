"""Published systems, by name."""

from collections.abc import Callable
from typing import Any

from ..classifier import Classifier
from .abs import ABS, ABSConfig
from .baselines import CNN, MLP, BayesianMLP, BayesianMLPConfig, CNNConfig, MLPConfig, PoolCNN, PoolCNNConfig
from .deep_bayes import DeepBayes, DeepBayesConfig
from .eabs import EABS, EABSConfig
from .gmvae import GMVAE, GMVAEConfig
from .vade import VaDEClassifier, VaDEConfig

__all__ = ["MODELS", "ModelConfig"]

ModelConfig = (
    ABSConfig
    | BayesianMLPConfig
    | CNNConfig
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
    "DeepBayes": (DeepBayes, DeepBayesConfig),
    "EABS": (EABS, EABSConfig),
    "GMVAE": (GMVAE, GMVAEConfig),
    "MLP": (MLP, MLPConfig),
    "PoolCNN": (PoolCNN, PoolCNNConfig),
    "VaDEClassifier": (VaDEClassifier, VaDEConfig),
}
