"""Defences that clean the image before a classifier decides."""

from .base import PurificationGradient, Purified, PurifiedConfig, Purifier, TrainablePurifier
from .comdefend import ComDefend, ComDefendConfig
from .likelihood_maximisation import AscentBudget, LikelihoodMaximisation, RobustDiffusionClassifier
from .mad_vae import MADVAE, MADVAEConfig
from .noising import DiffusionPurifier, NoisingBudget
from .projection import LatentProjection

__all__ = [
    "MADVAE",
    "AscentBudget",
    "ComDefend",
    "ComDefendConfig",
    "DiffusionPurifier",
    "LatentProjection",
    "LikelihoodMaximisation",
    "MADVAEConfig",
    "NoisingBudget",
    "PurificationGradient",
    "Purified",
    "PurifiedConfig",
    "Purifier",
    "RobustDiffusionClassifier",
    "TrainablePurifier",
]
