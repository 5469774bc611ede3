"""The trust layer: what a toolkit returned counts only once the model, with fresh randomness, agrees."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, TypeVar, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..classifier import Classifier, valid_images

__all__ = [
    "BALL_TOLERANCE",
    "NO_PREDICTION",
    "Norm",
    "Verification",
    "attack_every_class",
    "distance",
    "fresh_variant",
    "reach",
    "verify",
    "without_gradient",
    "wrong_and_accepted",
]

Norm = Literal["linf", "l2", "l1", "l0"]

BALL_TOLERANCE = 1e-4  # relative: float32 projections end a little outside of the ball
NO_PREDICTION = -1  # of an image that is none, and was therefore never shown to the model
_CODEBOOK_SEED = 2  # apart from the attacked model's own, which is 0 unless somebody chose it
_NOISE_SEED = 1 << 30  # apart from the draws that an attack has seen, whatever their seed

C = TypeVar("C", bound=Classifier)


@final
@dataclass(frozen=True, kw_only=True)
class Verification:
    """What is to be thought of a batch that an attack returned. All of shape (B,).

    Attributes:
        success: The verdict: an image, within the ball, that the model labels wrongly and does not reject.
            Where there is no ball, a black image is none: it is what some attacks return when they fail.
        claimed: Where the toolkit, or the model as it was attacked, says that the attack succeeded.
        prediction: The decision by fresh randomness; K where rejected, -1 where there is no image.
        distance: Norm of the perturbation; infinite where the image is not finite.
        not_finite: Some pixel is NaN or infinite.
        outside_range: Some pixel is outside [0, 1].
        outside_ball: The perturbation is longer than epsilon.
        unchanged: The image is the clean one.
        black: Every pixel is zero, and the clean image is another.
        zero_gradient: The attacked model's gradient vanishes at the clean image, or is not finite: a gradient
            attack had nothing to go by, and its failure says nothing about the model.
        rejected: The model refuses to decide.
    """

    success: Bool[Tensor, " batch"]
    claimed: Bool[Tensor, " batch"]
    prediction: Int[Tensor, " batch"]
    distance: Float[Tensor, " batch"]
    not_finite: Bool[Tensor, " batch"]
    outside_range: Bool[Tensor, " batch"]
    outside_ball: Bool[Tensor, " batch"]
    unchanged: Bool[Tensor, " batch"]
    black: Bool[Tensor, " batch"]
    zero_gradient: Bool[Tensor, " batch"]
    rejected: Bool[Tensor, " batch"]

    @property
    def fell(self) -> Bool[Tensor, " batch"]:
        """Claims that did not survive."""
        return self.claimed & ~self.success

    @property
    def flags(self) -> dict[str, Bool[Tensor, " batch"]]:
        """What is wrong, by name: everything that says why a claim or a failure is not to be believed."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("success", "claimed", "prediction", "distance"):
            del named[name]
        return {**named, "fell": self.fell}

    def __str__(self) -> str:
        counts = {name: int(flag.sum()) for name, flag in self.flags.items()}
        raised = "".join(f", {count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
        size = len(self.success)
        return f"{int(self.success.sum())} of {size} succeeded, {int(self.claimed.sum())} claimed{raised}"


def verify(
    model: Classifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    x_adv: Float[Tensor, "batch channels height width"],
    norm: Norm,
    epsilon: float | None,
    *,
    claimed: Bool[Tensor, " batch"] | None = None,
    seed: int = 0,
) -> Verification:
    """Score again what an attack returned, with noise and candidates that the attack has not seen.

    Args:
        model: The model that was attacked, with the budget that verdicts are made with.
        x: The clean images, in [0, 1].
        y: Their classes.
        x_adv: What the attack returned: of any float dtype, and not necessarily an image.
        norm: Of the threat model.
        epsilon: Radius of the ball; None for a minimal-norm attack, whose every example is inside.
        claimed: Where the toolkit says that it succeeded; by default, what `model` itself says.
        seed: Of the fresh randomness.

    Raises:
        ValueError: If shapes differ, the norm is unknown, epsilon is negative, or `x` is no batch of images.
    """
    _check(model, x, y, x_adv, norm, epsilon)
    images = x_adv.detach().to(device=x.device, dtype=x.dtype)
    valid = valid_images(images)
    judge = fresh_variant(model, seed=_NOISE_SEED + seed, codebook_seed=_CODEBOOK_SEED + seed)
    prediction, rejected = _decide(judge, images, valid)
    distances = distance(images - x, norm)
    outside = distances > (torch.inf if epsilon is None else reach(epsilon))
    black = (images == 0).flatten(1).all(1) & (x != 0).flatten(1).any(1)
    if claimed is None:
        own, refused = _decide(model, images, valid)
        claimed = valid & (own != y) & ~refused
    not_finite = ~images.isfinite().flatten(1).all(1)
    success = valid & ~outside & (prediction != y) & ~rejected
    return Verification(
        success=success & ~black if epsilon is None else success,
        claimed=claimed,
        prediction=prediction,
        distance=distances,
        not_finite=not_finite,
        outside_range=~valid & ~not_finite,
        outside_ball=outside,
        unchanged=(images == x).flatten(1).all(1),
        black=black,
        zero_gradient=without_gradient(
            model, x, lambda logits: nn.functional.cross_entropy(logits, y, reduction="sum")
        ),
        rejected=rejected,
    )


def attack_every_class(
    attack: Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch channels height width"]],
    model: Classifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    norm: Norm,
    epsilon: float | None,
    *,
    seed: int = 0,
) -> tuple[Float[Tensor, "batch channels height width"], Verification]:
    """Run a targeted attack once for every other class, and keep each image's best verified example.

    The route through a model that may reject: most toolkits' untargeted attacks stop at "not y", and the
    column "reject" is such a class. A target is always one of the K classes, so that the attack has to pass
    the rejection too.

    Args:
        attack: Gives adversarial images for target classes.
        model: The model, with the budget that verdicts are made with.
        x: The clean images, in [0, 1].
        y: Their classes.
        norm: Of the threat model.
        epsilon: Radius of the ball; None for a minimal-norm attack.
        seed: Of the fresh randomness.

    Returns:
        The best images (verified and closest; without a verified one, the first) and their verification.
    """
    best, verification = x, None
    for shift in range(1, model.num_classes):
        images = attack((y + shift) % model.num_classes).detach().to(x)
        found = verify(model, x, y, images, norm, epsilon, seed=seed)
        if verification is None:
            best, verification = images, found
            continue
        better = found.success & (~verification.success | (found.distance < verification.distance))
        best = torch.where(better[:, None, None, None], images, best)
        verification = _merge(better, found, verification)
    if verification is None:
        raise ValueError(f"Expected a model of at least 2 classes, but got {model.num_classes}")
    return best, verification


def fresh_variant(model: C, *, seed: int, codebook_seed: int) -> C:
    """Give the variant that judges: the model's full budget, with noise and candidates no attack has seen."""
    return model.with_randomness("fresh", seed=seed).with_candidates(codebook_seed)


def wrong_and_accepted(
    answers: Float[Tensor, "batch columns"],
    y: Int[Tensor, " batch"],
    *,
    num_classes: int,
    targeted: bool = False,
) -> Bool[Tensor, " batch"]:
    """Say where a model that may reject is fooled: it answers, does not reject, and decides wrongly.

    Args:
        answers: Its logits; an answer with a NaN, to what is no image, counts for nothing.
        y: The classes; the classes to reach when `targeted`.
        num_classes: K; a further column is "reject".
        targeted: Whether the decision is to be `y`, not to differ from it.
    """
    decision = answers.argmax(1)
    accepted = ~answers.isnan().any(1) & (decision < num_classes)
    return accepted & ((decision == y) if targeted else (decision != y))


def without_gradient(
    model: nn.Module,
    x: Float[Tensor, "batch channels height width"],
    objective: Callable[[Float[Tensor, "batch columns"]], Float[Tensor, ""]],
) -> Bool[Tensor, " batch"]:
    """Say at which images the gradient of a function of the logits vanishes, or is not finite."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        logits = model(leaf)
        gradient = None
        if logits.requires_grad:
            (gradient,) = torch.autograd.grad(objective(logits), leaf, allow_unused=True)
    if gradient is None:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    flat = gradient.flatten(1)
    return (flat == 0).all(1) | ~flat.isfinite().all(1)


def distance(
    perturbation: Float[Tensor, "batch channels height width"], norm: Norm
) -> Float[Tensor, " batch"]:
    """Give the norm of each perturbation in double precision; infinite where it is not finite.

    `"l0"` counts changed pixels: a pixel with several channels counts once.
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
    """Give the largest distance that counts as within epsilon."""
    return epsilon * (1 + BALL_TOLERANCE)


def _check(model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, norm: str, epsilon: float | None) -> None:
    model.check(x)
    if x_adv.shape != x.shape:
        raise ValueError(f"Expected `x_adv` of shape {tuple(x.shape)}, but got {tuple(x_adv.shape)}")
    if len(y) != len(x):
        raise ValueError(f"Expected a class in `y` for each of {len(x)} images, but got {len(y)}")
    if norm not in get_args(Norm):
        raise ValueError(f"Expected `norm` out of {get_args(Norm)}, but got {norm!r}")
    if epsilon is not None and not epsilon >= 0:
        raise ValueError(f"Expected `epsilon` of at least 0, but got {epsilon}")


def _decide(model: Classifier, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    labels = torch.full((len(images),), NO_PREDICTION, dtype=torch.long, device=images.device)
    rejected = torch.zeros_like(valid)
    if valid.any():
        prediction = model.predict(images[valid])
        labels[valid], rejected[valid] = prediction.labels, prediction.rejected
    return labels, rejected


def _merge(better: Tensor, found: Verification, kept: Verification) -> Verification:
    merged = {
        field.name: torch.where(better, getattr(found, field.name), getattr(kept, field.name))
        for field in fields(Verification)
    }
    return Verification(**merged)
