"""Is the gradient that of the deployed score?"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...contract import Classifier
from ..findings import Finding, Measured, concluded, number, share
from ..subject import Subject

__all__ = ["differences"]

NAME, QUESTION = "differences", "Is the gradient that of the score that decides?"
_STEP = 0.01  # of a finite difference, as a share of the ball's Euclidean radius
_AGREES = 0.35  # relative difference of two slopes that still agree
_NOT_SLOPES = ("auto", "estimated", "grey-box")  # the same as another one, estimated, or of another function


def differences(subject: Subject) -> Finding:
    """Compares slopes of the deployed score, by central differences, with what each gradient says.

    The score is the margin between the class and one competitor, so that it has no kink where the best
    competitor changes. The directions are the gradient itself and random ones.
    """
    x, model = _moved_inside(subject), _repeatable(subject)
    with torch.no_grad():
        logits = model(x)
    others = logits[:, : subject.model.num_classes].scatter(1, subject.labels[:, None], -torch.inf)
    pair = torch.stack([subject.labels, others.argmax(1)], 1)
    gradients = [name for name in subject.model.gradients if name not in _NOT_SLOPES]
    found = {
        name: _compared(subject, model, model.with_gradient(name), x, pair, logits) for name in gradients
    } or {"the gradient": _compared(subject, model, model, x, pair, logits)}
    # Where there is autograd's, it is what toolkits follow, however good another one is.
    best = "exact" if "exact" in found else min(found, key=lambda name: found[name][0].value)
    bad, correlation = found[best]
    others_too = tuple(
        replace(entry[0], label=f"the same, {name}") for name, entry in found.items() if name != best
    )
    named = "The gradient" if best == "the gradient" else f"The gradient {best!r}"
    return concluded(
        NAME,
        QUESTION,
        bad,
        fine=f"{named} says how the deployed score changes.",
        accused=f"{named} does not say how the deployed score changes: part of the model is left out of the "
        "backward pass, or the score is not smooth.",
        advice="Look for what is detached, rounded or random in the forward pass; estimate gradients too.",
        measures=(correlation, *others_too),
    )


def _compared(
    subject: Subject, deployed: Classifier, model: Classifier, x: Tensor, pair: Tensor, logits: Tensor
) -> tuple[Measured, Measured]:
    """Returns the share of images whose slopes disagree, and the correlation of slopes along noise."""
    step = _length(subject)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        lead = _lead(model(leaf), pair).sum()
        raw = torch.autograd.grad(lead, leaf, allow_unused=True)[0] if lead.requires_grad else None
    gradient = torch.zeros_like(x) if raw is None else raw.detach().nan_to_num()
    noise = [_unit(_normal(x, subject.generator(7 + i))) for i in range(subject.budget.directions)]
    directions = torch.stack([_unit(gradient), *noise])
    said = (directions * gradient).flatten(2).sum(2)
    measured = torch.stack([_slope(deployed, x, pair, direction, step) for direction in directions])
    # Below this, a slope cannot be told from the rounding of single precision.
    floor = 4e-6 * logits.abs().amax(1) / step
    scale = torch.maximum(said.abs(), measured.abs())
    apart = (said - measured).abs() > _AGREES * scale.clamp_min(1e-30)
    wrong = apart[0] & (scale[0] > floor)
    nothing = said[0] == 0
    hidden = nothing & (measured[1:].abs() > floor).any(0)
    pairs = torch.stack([said[1:].flatten(), measured[1:].flatten()])
    level = torch.corrcoef(pairs.double())[0, 1] if pairs.std(1).min() > 0 else torch.zeros(())
    bad = share("slope along the gradient is another than it says", wrong | hidden)
    return bad, number("correlation of slopes along noise", level)


def _slope(model: Classifier, x: Tensor, pair: Tensor, direction: Tensor, step: float) -> Tensor:
    with torch.no_grad():
        ahead, behind = (_lead(model((x + sign * step * direction).clamp(0, 1)), pair) for sign in (1, -1))
    slope: Tensor = (ahead.double() - behind.double()) / (2 * step)
    return slope.to(x)


def _repeatable(subject: Subject) -> Classifier:
    """Returns the deployed model with fixed noise: the score has no slope between two draws."""
    if not subject.model.randomized:
        return subject.model
    return subject.model.with_randomness("fixed", seed=subject.seed)


def _lead(logits: Tensor, pair: Tensor) -> Float[Tensor, " batch"]:
    values = logits.gather(1, pair)
    return values[:, 1] - values[:, 0]


def _length(subject: Subject) -> float:
    values = subject.images[0].numel()
    return _STEP * subject.epsilon * (values**0.5 if subject.norm == "linf" else 1.0)


def _moved_inside(subject: Subject) -> Tensor:
    """Returns the images with every pixel a step away from 0 and 1, so that both ends are images."""
    room = min(_length(subject), 0.25)
    return subject.images.clamp(room, 1 - room)


def _unit(direction: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(direction.flatten(1), dim=1)
    return direction / length.clamp_min(1e-30)[:, None, None, None]


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
