"""Latent inference: search over candidates, then refinement of the best of them, for all classes at once."""

from .adam import refine_with_adam
from .bfgs import refine_with_bfgs
from .budget import InferenceBudget
from .codebook import Codebook
from .curvature import Curvature
from .objective import (
    ClassPrior,
    Decoders,
    DiscriminatorPrior,
    KLPrior,
    LatentObjective,
    Posterior,
    Prior,
    UniformPrior,
)
from .observation import Observation, SquaredError, observation
from .refinement import Refinement, refine

__all__ = [
    "ClassPrior",
    "Codebook",
    "Curvature",
    "Decoders",
    "DiscriminatorPrior",
    "InferenceBudget",
    "KLPrior",
    "LatentObjective",
    "Observation",
    "Posterior",
    "Prior",
    "Refinement",
    "SquaredError",
    "UniformPrior",
    "observation",
    "refine",
    "refine_with_adam",
    "refine_with_bfgs",
]
