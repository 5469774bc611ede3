"""Is there a gradient?"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...attacks.contest import contest
from ..findings import Finding, concluded, number, share
from ..subject import Subject

__all__ = ["margin_gradient", "zero_gradient"]

NAME, QUESTION = "zero gradient", "Does the margin have a gradient wherever it changes?"
_VANISHED = 1e-8  # length below which a gradient cannot be told from rounding
_POINTS = 6  # random points of the ball at which the margin is compared


def zero_gradient(subject: Subject) -> Finding:
    """Measures the gradient of the margin at the clean images, and at random points of the ball."""
    x, ball, generator = subject.images, subject.ball, subject.generator(6)
    points = [x] + [ball.project(x + ball.edge(x, generator), x) for _ in range(_POINTS)]
    columns = contest(subject.attacked, subject.labels, subject.model.num_classes)
    with torch.no_grad():
        margins = torch.stack([columns(point).diff(dim=1)[:, 0] for point in points])
    spread = margins.amax(0) - margins.amin(0)
    at_clean, inside = (margin_gradient(subject, point) for point in points[:2])
    clean_zero, inside_zero = _vanishes(at_clean), _vanishes(inside)
    # A gradient anywhere says that the margin changes, even if it is equal at all points that were tried.
    changes = (spread > 1e-5 * margins.abs().amax(0).clamp_min(1e-30)) | ~clean_zero | ~inside_zero
    bad = share("gradient is zero although the margin changes", (clean_zero | inside_zero) & changes)
    broken = share("gradient is not finite", _not_finite(at_clean) | _not_finite(inside))
    first, second = (bad, broken) if bad.value >= broken.value else (broken, bad)
    lengths = torch.linalg.vector_norm(at_clean.flatten(1).double(), dim=1)
    return concluded(
        NAME,
        QUESTION,
        first,
        fine="The margin has a gradient wherever it changes.",
        accused=_accusation(at_clean=bool((clean_zero & changes).any()), not_finite=first is broken),
        advice="Replace what has no gradient in the backward pass (BPDA); attack by scores and by transfer.",
        measures=(
            second,
            share("the same at clean images", clean_zero & changes),
            share("the same at random points of the ball", inside_zero & changes),
            share("margin does not change in the ball", ~changes),
            number("median length of the gradient", lengths.median()),
        ),
        verdict=None if bool(changes.any()) else "undecided",
    )


def _accusation(*, at_clean: bool, not_finite: bool) -> str:
    if not_finite:
        return "The gradient is not finite: an attack that follows it goes nowhere."
    if at_clean:
        return "The margin changes in the ball, but its gradient is zero: an attack by it stays where it is."
    return (
        "The gradient vanishes away from the clean images, where attacks start: the model is constant far "
        "from data, and changes elsewhere."
    )


def margin_gradient(
    subject: Subject, x: Float[Tensor, "batch channels height width"], *, gradient: str | None = None
) -> Float[Tensor, "batch channels height width"]:
    """Returns the gradient of the wrong side's lead in the attacked model, zero where there is none."""
    model = subject.variant(gradient)
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        lead = contest(model, subject.labels, subject.model.num_classes)(leaf).diff(dim=1).sum()
        found = torch.autograd.grad(lead, leaf, allow_unused=True)[0] if lead.requires_grad else None
    return torch.zeros_like(leaf) if found is None else found.detach()


def _vanishes(gradient: Tensor) -> Bool[Tensor, " batch"]:
    lengths: Tensor = torch.linalg.vector_norm(gradient.flatten(1).double(), dim=1)
    return lengths < _VANISHED


def _not_finite(gradient: Tensor) -> Bool[Tensor, " batch"]:
    return ~gradient.isfinite().flatten(1).all(1)
