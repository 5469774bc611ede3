"""Re-scoring: an adversarial example counts only if the model, with fresh randomness, agrees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..classifier import Classifier, GenerativeClassifier
from .suites import Norm
from .toolkits import Crafted, valid_images

__all__ = ["BALL_TOLERANCE", "NO_PREDICTION", "Verdicts", "fresh_variant", "rescore", "within"]

BALL_TOLERANCE = 1e-4  # relative: float32 projections end a little outside of the ball
NO_PREDICTION = -1  # of an image that is none, and was therefore never shown to the model


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What re-scoring found, per image.

    Attributes:
        prediction: Decision on the example; -1 where it is no image.
        valid: Whether the example is finite and in [0, 1].
        success: Whether it is valid, within the ball (where the attack has one) and labelled wrongly.
        distance_l2: L2 norm of the perturbation; infinite where the example is not finite.
        distance_linf: Its Linf norm.
        overshoot: Factor by which the toolkit's perturbation was lengthened.
    """

    prediction: Int[np.ndarray, " batch"]
    valid: Bool[np.ndarray, " batch"]
    success: Bool[np.ndarray, " batch"]
    distance_l2: Float[np.ndarray, " batch"]
    distance_linf: Float[np.ndarray, " batch"]
    overshoot: Float[np.ndarray, " batch"]


def fresh_variant(model: Classifier, *, seed: int, codebook_seed: int) -> Classifier:
    """Give the variant that judges: the model's full budget, with noise and candidates no attack has seen."""
    if not isinstance(model, GenerativeClassifier):
        return model
    return model.with_randomness("fresh", seed=seed).with_inference(seed=codebook_seed)


def within(distance: Float[np.ndarray, " batch"], epsilon: float) -> Bool[np.ndarray, " batch"]:
    """Say which perturbations are within epsilon, up to the tolerance."""
    return np.asarray(distance <= epsilon * (1 + BALL_TOLERANCE))


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
        judge: The variant that judges; see `fresh_variant`.
        images: The attacked images.
        labels: Their classes.
        crafted: What the attack made of them.
        norm: Of the threat model.
        epsilon: Radius of the ball; None for a minimal-norm attack.
        overshoots: Increasing factors by which the perturbations of a minimal-norm attack are lengthened,
            where the toolkit claimed success, until the judge errs.
    """
    judged = crafted.images.to(images.dtype).clone()
    valid = valid_images(judged)
    prediction = torch.full_like(labels, NO_PREDICTION)
    overshoot = torch.ones(len(labels), dtype=torch.float64)
    remaining = valid.clone()
    for factor in overshoots if epsilon is None else (1.0,):
        if not remaining.any():
            break
        if factor > 1:
            step = crafted.images[remaining].to(images.dtype) - images[remaining]
            judged[remaining] = (images[remaining] + factor * step).clamp(0, 1)
        overshoot[remaining.cpu()] = factor
        prediction[remaining] = judge.predict(judged[remaining]).labels
        remaining &= (prediction == labels) & crafted.claimed
    return _verdicts(judged - images, prediction, labels, valid, overshoot, norm, epsilon)


def _verdicts(
    perturbation: Tensor,
    prediction: Tensor,
    labels: Tensor,
    valid: Tensor,
    overshoot: Tensor,
    norm: Norm,
    epsilon: float | None,
) -> Verdicts:
    flat = perturbation.flatten(1).double().nan_to_num(nan=torch.inf)
    distances: dict[Norm, np.ndarray] = {
        "l2": flat.norm(dim=1).cpu().numpy(),
        "linf": flat.abs().amax(1).cpu().numpy(),
    }
    success = (valid & (prediction != labels)).cpu().numpy()
    if epsilon is not None:
        success = success & within(distances[norm], epsilon)
    return Verdicts(
        prediction=prediction.cpu().numpy(),
        valid=valid.cpu().numpy(),
        success=success,
        distance_l2=distances["l2"],
        distance_linf=distances["linf"],
        overshoot=overshoot.numpy(),
    )
