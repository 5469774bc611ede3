"""What a run's manifest says of a model, so that no folder is gone on with for another one."""

from typing import Any

import torch

from ..._modules import cheaper
from ..._settings import probe_images, rounded
from ...capabilities import Searches
from ...contract import Classifier
from ...purifiers.base import Purifier

__all__ = ["identity", "kinds"]

# Settings tell budgets apart; behaviour is compared at a fraction of the cost of a verdict.
_GLANCE = {"candidates": 20, "steps": 0, "expectation_draws": 1, "samples": 1, "levels": 1}


def identity(model: Classifier) -> dict[str, Any]:
    """Returns a model's settings, its device, and what it answers about a few fixed images.

    Raises:
        TypeError: If a setting cannot be written down; the message names it.
    """
    device = str(model.like.device)
    return {"behaviour": _behaviour(model), **model.settings(), "device": device}


def kinds(model: Classifier) -> tuple[str, ...]:
    """Returns why RobustBench's rules exclude a model: it is random, optimises, purifies or rejects."""
    parts = list(model.modules())
    found = {
        "random": model.randomized,
        "optimises": any(
            isinstance(part, Searches) and bool(part.budget.steps or part.budget.candidates) for part in parts
        ),
        "purifies": any(isinstance(part, Purifier) for part in parts),
        "rejects": model.rejects,
    }
    return tuple(name for name, holds in found.items() if holds)


@torch.no_grad()
def _behaviour(model: Classifier) -> list[Any]:
    """Returns rounded logits: code that no setting tells of decides too."""
    shown = cheaper(model.with_randomness("fresh", seed=0), _GLANCE)
    return rounded(shown(probe_images(model.input_shape, like=model.like)))
