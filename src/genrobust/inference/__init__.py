"""Latent inference for all classes at once: a search over candidates, then refinement of the best ones."""

from .budget import InferenceBudget
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
from .refinement.adam import refine_with_adam
from .refinement.bfgs import refine_with_bfgs
from .refinement.methods import Refinement, lowest_end, refine, refine_best
from .search.codebook import Codebook

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
    "lowest_end",
    "observation",
    "refine",
    "refine_best",
    "refine_with_adam",
    "refine_with_bfgs",
]
