"""Norms of perturbations, the balls of threat models, and the images that they contain."""

import math
from numbers import Real
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "BALL_TOLERANCE",
    "Norm",
    "check_epsilon",
    "check_norm",
    "closer",
    "distance",
    "largest_distance",
    "pulled_back",
    "reach",
]

Norm = Literal["linf", "l2", "l1", "l0"]

BALL_TOLERANCE = 1e-4  # relative tolerance: float32 projections end slightly outside the ball


def distance(
    perturbation: Float[Tensor, "batch channels height width"], norm: Norm
) -> Float[Tensor, " batch"]:
    """Computes the norm of each perturbation in double precision; infinite if the image is not finite.

    `"l0"` counts changed pixels. A pixel with several channels counts once.
    """
    delta = perturbation.double()
    finite = delta.isfinite().flatten(1).all(1)
    if norm == "l0":
        norms = (delta != 0).any(1).flatten(1).sum(1).double()
    else:
        order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
        norms = torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)
    return norms.where(finite, torch.inf)


def reach(epsilon: float) -> float:
    """Returns the largest distance that counts as within epsilon."""
    return epsilon * (1 + BALL_TOLERANCE)


def largest_distance(norm: Norm, input_shape: tuple[int, int, int]) -> float:
    """Computes the largest distance between two images in [0, 1] of shape (C, H, W)."""
    channels, height, width = input_shape
    values = channels * height * width
    return {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values), "l0": float(height * width)}[norm]


def closer(
    found: tuple[Bool[Tensor, " batch"], Float[Tensor, " batch"]],
    kept: tuple[Bool[Tensor, " batch"], Float[Tensor, " batch"]],
) -> Bool[Tensor, " batch"]:
    """Returns which new examples replace the kept ones, the one rule for the best of several runs.

    Args:
        found: Whether the new examples succeed, and their distances.
        kept: The same for the kept examples.
    """
    (succeeds, length), (succeeded, shortest) = found, kept
    return succeeds & (~succeeded | (length < shortest))


def pulled_back(
    adversarial: Float[Tensor, "batch channels height width"],
    images: Float[Tensor, "batch channels height width"],
    *,
    norm: Norm,
    epsilon: float,
    precision: torch.dtype,
) -> Float[Tensor, "batch channels height width"]:
    """Moves examples into the ball if only the rounding of half precision put them outside.

    A toolkit that computes in float16 or bfloat16 rounds its projection to that type, by more than the
    tolerance of the ball. The verdict is made on the nearest point towards the clean image that lies within
    the ball. Examples in float32 or float64 are unchanged.

    Args:
        adversarial: The examples, in float32 or float64.
        images: The clean images, in the same type.
        norm: The norm of the ball.
        epsilon: The radius of the ball.
        precision: The type in which the examples were made.
    """
    if torch.finfo(precision).bits >= 32:
        return adversarial
    step = adversarial - images
    length = distance(step, norm)
    rounding = distance(torch.full_like(step, torch.finfo(precision).eps), norm)
    rounded = (length > epsilon) & (length <= epsilon + rounding)
    factor = (epsilon / length).where(rounded, 1.0).to(step.dtype)[:, None, None, None]
    return torch.where(rounded[:, None, None, None], images + factor * step, adversarial)


def check_norm(norm: Any) -> Norm:
    """Checks the name of a norm.

    Raises:
        ValueError: If no norm has this name.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"Expected `norm` out of {get_args(Norm)}, but got {norm!r}")
    return cast(Norm, norm)


def check_epsilon(epsilon: Any, *, norm: Norm, input_shape: tuple[int, int, int]) -> float:
    """Checks the radius of a ball, and returns it as a Python number.

    Args:
        epsilon: The radius: any real number, those of NumPy included.
        norm: The norm of the ball.
        input_shape: Shape of the images, (C, H, W).

    Raises:
        ValueError: If it is not a number, not above 0, not finite, or larger than any distance between images
            in [0, 1].
    """
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real):
        kind = type(epsilon).__name__
        raise ValueError(f"Expected `epsilon` to be one number, but got a {kind}: {epsilon!r}")
    radius = float(epsilon)
    if not 0 < radius < torch.inf:
        raise ValueError(f"Expected `epsilon` above 0 and finite, but got {radius}")
    largest = largest_distance(norm, input_shape)
    if radius > reach(largest):
        hint = f": did you mean {radius:g}/255?" if norm == "linf" and radius <= 255 else ""
        raise ValueError(
            f"Expected `epsilon` of at most {largest:g}, the largest {norm} distance between two such images "
            f"in [0, 1], but got {radius:g}{hint}"
        )
    return radius
