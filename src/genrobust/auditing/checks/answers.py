"""Does an attack see the answers that are deployed?"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..crafting import pgd_run
from ..findings import Finding, Measured, accuse, concluded, share
from ..subject import Subject

__all__ = ["answers"]

NAME, QUESTION = "answers", "Does the model give an attack the answers that it gives a user?"
_SHOWN = "answers differ when gradients are on"
_HIDDEN = "decisions differ from `predict`"
_SEEDED = "answers depend on the rest of the batch"
_ACCUSATIONS = {
    _SHOWN: (
        "With gradients on, the model answers otherwise: an attack climbs another function.",
        "Have the model compute the same with and without gradients, and attack that.",
    ),
    _HIDDEN: (
        "`forward`, which an attack queries, is not what `predict` decides by: it hides the defence.",
        "Attack the whole model, by a gradient that goes through the defence.",
    ),
    _SEEDED: (
        "An image's answer depends on its place in the batch: the model draws noise that it seeds anew.",
        "Draw fresh noise at every query, and attack the expectation over draws.",
    ),
}
_TOLERANCE = 0.01  # of the spread of an image's logits


def answers(subject: Subject) -> Finding:
    """Compares the model's answers: repeated, in another order, with gradients on, and to `predict`.

    They are compared on clean images, on images with noise at the edge of the ball, and on PGD's examples.
    """
    model, ball = subject.model, subject.ball
    noise = ball.edge(subject.images, subject.generator(4))
    found = pgd_run(subject, starts=subject.budget.starts).images
    images = torch.cat([subject.images, ball.project(subject.images + noise, subject.images), found])
    asked = images.clone().requires_grad_()
    with torch.enable_grad():
        differentiable = model(asked).detach()
    order = torch.randperm(len(images), generator=subject.generator(5)).to(images.device)
    with torch.no_grad():
        first, again = model(images), model(images)
        shuffled = model(images[order])[order.argsort()]
        decided = model.predict(images)
    repeated, batch = _differ(first, again), _differ(first, shuffled)
    shown = _differ(first, differentiable)
    labels = first.argmax(1) != decided.labels
    measures = (
        share(_SHOWN, shown),
        share(_HIDDEN, labels),
        share(_SEEDED, batch),
        share("answers differ when repeated", repeated),
    )
    if bool(repeated.any()):
        return _noisy(measures, first, again)
    return _repeatable(measures)


def _noisy(measures: tuple[Measured, ...], first: Tensor, again: Tensor) -> Finding:
    flipped = share("decisions differ when repeated", first.argmax(1) != again.argmax(1))
    return Finding(
        check=NAME,
        question=QUESTION,
        verdict="suspicious",
        meaning="The answers change when the same images are asked about again: the model draws noise, so "
        "that one query decides nothing.",
        advice="Attack the expectation over draws (EOT), and quote the majority of several draws.",
        measures=(measures[3], flipped),
    )


def _repeatable(measures: tuple[Measured, ...]) -> Finding:
    worst = max(measures[:3], key=lambda measure: measure.value)
    verdict = accuse(worst)
    accused, advice = _ACCUSATIONS[worst.label]
    # Even one image that an attack is answered otherwise about shows that the function is another.
    if verdict == "undecided" and worst.value > 0:
        verdict = "suspicious"
    return concluded(
        NAME,
        QUESTION,
        worst,
        fine="An attack sees the answers that a user gets, and they repeat.",
        accused=accused,
        advice=advice,
        measures=tuple(measure for measure in measures if measure is not worst),
        verdict=verdict,
    )


def _differ(
    first: Float[Tensor, "batch columns"], second: Float[Tensor, "batch columns"]
) -> Bool[Tensor, " batch"]:
    """Returns where two answers differ by more than a share of the logits' spread."""
    spread = (first.amax(1) - first.amin(1)).clamp_min(1e-12)
    far = (first - second).abs().amax(1) > _TOLERANCE * spread
    return far | (first.isfinite() != second.isfinite()).any(1)
