"""Does one draw of the noise say where to go?"""

import torch
from torch import Tensor

from ...attacks.contest import contest
from ..findings import Finding, accuse, concluded, not_applicable, number, share
from ..subject import Subject

__all__ = ["gradient_noise"]

NAME, QUESTION = "gradient noise", "Do two draws of the model's noise give the same gradient?"
_TOGETHER = 0.5  # cosine of two gradients that point the same way


def gradient_noise(subject: Subject) -> Finding:
    """Measures the angle between gradients of fresh draws, of one draw and of several."""
    if not subject.attacked.randomized:
        return not_applicable(NAME, QUESTION, "The model draws no noise.")
    one = _cosines(subject, draws=1)
    many = _cosines(subject, draws=subject.budget.eot)
    bad = share("gradients of two draws point apart (cosine below 0.5)", one < _TOGETHER)
    left = share(f"the same with {subject.budget.eot} draws a query", many < _TOGETHER)
    verdict = accuse(bad)
    if verdict == "fails" and accuse(left) != "fails":
        verdict = "suspicious"
    return concluded(
        NAME,
        QUESTION,
        bad,
        fine="One draw's gradient is that of any other.",
        accused="The gradient is mostly noise: what one draw says is not what the next one does.",
        advice="Attack the expectation over more draws (EOT).",
        verdict=verdict,
        measures=(left, number("median cosine, 1 draw", one.median()), number("with EOT", many.median())),
    )


def _cosines(subject: Subject, *, draws: int) -> Tensor:
    gradients = []
    for number_of_pair in range(2):
        total = torch.zeros_like(subject.images)
        for draw in range(draws):
            model = subject.attacked.with_randomness("fresh", seed=1000 + 100 * number_of_pair + draw)
            leaf = subject.images.clone().requires_grad_()
            with torch.enable_grad():
                lead = contest(model, subject.labels, model.num_classes)(leaf).diff(dim=1).sum()
                found = torch.autograd.grad(lead, leaf, allow_unused=True)[0] if lead.requires_grad else None
            total += 0 if found is None else found
        gradients.append(total.flatten(1))
    first, second = gradients
    return torch.nn.functional.cosine_similarity(first, second, dim=1)
