"""Re-scoring: an adversarial example counts only if the model, with fresh randomness, agrees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..adapters.registry import Crafted
from ..adapters.verification import NO_PREDICTION, distance, reach
from ..classifier import Classifier, valid_images
from .suites import Norm

__all__ = ["Verdicts", "rescore"]


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What re-scoring found, per image.

    Attributes:
        images: The judged images, their perturbations lengthened where that was asked for.
        claimed: Whether the toolkit says that it succeeded; everywhere, if it says nothing.
        prediction: Decision on the example; -1 where it is no image.
        rejected: Whether the model refuses to decide.
        valid: Whether the example is finite and in [0, 1].
        success: Whether it is valid, within the ball (where the attack has one), labelled wrongly and not
            rejected.
        unstable: Whether a second draw of the judge's noise gives another verdict on what is claimed or
            succeeds: an example near the boundary of a model that decides at random.
        distances: Norms of the perturbation, by name; infinite where the example is not finite.
        overshoot: Factor by which the toolkit's perturbation was lengthened.
    """

    images: Float[Tensor, "batch channels height width"]
    claimed: Bool[np.ndarray, " batch"]
    prediction: Int[np.ndarray, " batch"]
    rejected: Bool[np.ndarray, " batch"]
    valid: Bool[np.ndarray, " batch"]
    success: Bool[np.ndarray, " batch"]
    unstable: Bool[np.ndarray, " batch"]
    distances: Mapping[Norm, Float[np.ndarray, " batch"]]
    overshoot: Float[np.ndarray, " batch"]


def rescore(
    judge: Classifier,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    crafted: Crafted,
    *,
    norm: Norm,
    epsilon: float | None,
    overshoots: Sequence[float] = (1.0,),
) -> Verdicts:
    """Judge what an attack returned.

    Args:
        judge: The variant that judges; see `adapters.verification.fresh_variant`. Its first draw decides.
        images: The attacked images.
        labels: Their classes.
        crafted: What the attack made of them.
        norm: Of the threat model.
        epsilon: Radius of the ball; None for a minimal-norm attack.
        overshoots: Increasing factors by which the perturbations of a minimal-norm attack are lengthened,
            where the toolkit claimed success, until the judge errs.
    """
    judged = crafted.images.to(images.dtype).clone()
    claimed = torch.ones_like(labels, dtype=torch.bool) if crafted.claimed is None else crafted.claimed
    valid = valid_images(judged)
    prediction = torch.full_like(labels, NO_PREDICTION)
    rejected = torch.zeros_like(valid)
    overshoot = torch.ones(len(labels), dtype=torch.float64)
    remaining = valid.clone()
    for factor in overshoots if epsilon is None else (1.0,):
        if not remaining.any():
            break
        if factor > 1:
            step = crafted.images[remaining].to(images.dtype) - images[remaining]
            judged[remaining] = (images[remaining] + factor * step).clamp(0, 1)
        overshoot[remaining.cpu()] = factor
        decision = judge.predict(judged[remaining])
        prediction[remaining], rejected[remaining] = decision.labels, decision.rejected
        remaining &= ((prediction == labels) | rejected) & claimed
    success = valid & (prediction != labels) & ~rejected
    unstable = torch.zeros_like(valid)
    repeated = valid & (claimed | success)
    if judge.randomized and repeated.any():
        again = judge.predict(judged[repeated])
        unstable[repeated] = success[repeated] != ((again.labels != labels[repeated]) & ~again.rejected)
    distances = {name: distance(judged - images, name) for name in get_args(Norm)}
    if epsilon is not None:
        success &= distances[norm] <= reach(epsilon)
    return Verdicts(
        images=judged,
        claimed=claimed.cpu().numpy(),
        prediction=prediction.cpu().numpy(),
        rejected=rejected.cpu().numpy(),
        valid=valid.cpu().numpy(),
        success=success.cpu().numpy(),
        unstable=unstable.cpu().numpy(),
        distances={name: values.cpu().numpy() for name, values in distances.items()},
        overshoot=overshoot.numpy(),
    )
