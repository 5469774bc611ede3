"""The public function for a certificate, by either method."""

from collections.abc import Callable
from typing import Any, Literal, get_args, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._fields import check_choice
from ..contract import Classifier
from .bounds import Certificate, certify_by_bounds
from .smoothing import SmoothingBudget, SmoothingCertificate, certify_by_smoothing

__all__ = ["Certification", "certify"]

Certification = Literal["bounds", "smoothing"]


@overload
def certify(
    model: Classifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    method: Literal["bounds"] = "bounds",
    seeds: int | None = None,
) -> Certificate: ...


@overload
def certify(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    method: Literal["smoothing"],
    sigma: float,
    n0: int | None = None,
    n: int | None = None,
    alpha: float | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> SmoothingCertificate: ...


def certify(
    model: Any,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    method: Certification = "bounds",
    seeds: int | None = None,
    sigma: float | None = None,
    n0: int | None = None,
    n: int | None = None,
    alpha: float | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Certificate | SmoothingCertificate:
    """Computes the L2 radius within which no perturbation changes the decision for y.

    | method | models | the radius is about | it holds |
    | --- | --- | --- | --- |
    | `"bounds"` | ABS, E-ABS, VaDE | the model | if inference finds the global minima |
    | `"smoothing"` | any | the *smoothed* classifier (`Smoothed`) | with probability 1 - alpha an image |

    See `certify_by_bounds` and `certify_by_smoothing` for what each assumes.

    Args:
        model: The model. By bounds, one that declares `Certifiable`; by smoothing, any module or function
            from images in [0, 1] to logits.
        x: Images in [0, 1].
        y: Their labels.
        method: `"bounds"` or `"smoothing"`.
        seeds: By bounds: number of sets of candidates, by default 2.
        sigma: By smoothing: standard deviation of the noise.
        n0: By smoothing: noisy copies of an image that guess its class, by default 100.
        n: By smoothing: further copies that bound the probability of the class, by default 1,000. The paper
            takes 100,000.
        alpha: By smoothing: probability with which an image's certificate may be wrong, by default 0.001.
        batch_size: By smoothing: noisy copies in one call of the model, by default 250.
        generator: By smoothing: the generator of the noise, by default a new one with seed 0.

    Raises:
        ValueError: If the method is unknown, an argument is invalid or belongs to the other method, the
            model has no such bound, or a label is not a class of the model.
        TypeError: If `model` is no model, or images or labels are no tensors.

    Example:
        >>> from genrobust import certify, load_dataset, load_model
        >>> from genrobust.certificates import certified_accuracy
        >>> images, labels = load_dataset("digits", "test").batch(slice(4))
        >>> model = load_model("mlp", dataset="digits")
        >>> found = certify(model, images, labels, method="smoothing", sigma=0.25, n=200)
        >>> certified_accuracy(found, [0.0, 0.3, 0.6]).tolist()
        [1.0, 1.0, 0.0]
    """
    check_choice("method", method, get_args(Certification))
    by_bounds: dict[str, Any] = {"seeds": seeds}
    by_smoothing: dict[str, Any] = {
        "sigma": sigma,
        "n0": n0,
        "n": n,
        "alpha": alpha,
        "batch_size": batch_size,
    }
    given = {name: value for name, value in {**by_bounds, **by_smoothing}.items() if value is not None}
    others = {*by_smoothing, "generator"} if method == "bounds" else {*by_bounds}
    strange = sorted(others & {*given, *(() if generator is None else ("generator",))})
    if strange:
        raise ValueError(f"Expected no `{strange[0]}` for the method {method!r}: it is of the other one")
    if method == "bounds":
        return certify_by_bounds(model, x, y, **given)
    if sigma is None:
        raise ValueError("Expected `sigma`, the standard deviation of the noise, for the method 'smoothing'")
    return certify_by_smoothing(model, x, y, budget=SmoothingBudget(**given), generator=generator)
