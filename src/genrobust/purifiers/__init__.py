"""Defences that clean the image before a classifier decides."""

from .base import PurificationGradient, Purified, PurifiedConfig, Purifier, TrainablePurifier
from .comdefend import ComDefend, ComDefendConfig
from .mad_vae import MADVAE, MADVAEConfig
from .projection import LatentProjection

__all__ = [
    "MADVAE",
    "ComDefend",
    "ComDefendConfig",
    "LatentProjection",
    "MADVAEConfig",
    "PurificationGradient",
    "Purified",
    "PurifiedConfig",
    "Purifier",
    "TrainablePurifier",
]
