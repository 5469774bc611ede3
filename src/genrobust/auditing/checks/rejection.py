"""What does a model gain by rejecting?"""

import torch
from jaxtyping import Bool
from torch import Tensor

from ..crafting import pgd_run
from ..findings import Finding, accuse, concluded, not_applicable, share
from ..subject import Subject

__all__ = ["rejection"]

NAME, QUESTION = (
    "rejection",
    "Can an attack see the rejection, and does the model accept more than clean images?",
)
_VANISHED = 1e-8


def rejection(subject: Subject) -> Finding:
    """Measures the gradient of the rejection, coverage with and without noise, and attacks through it."""
    if not subject.model.rejects:
        return not_applicable(NAME, QUESTION, "The model never rejects.")
    x, ball = subject.images, subject.ball
    noisy = ball.project(x + ball.edge(x, subject.generator(10)), x)
    with torch.no_grad():
        by_noise = subject.model.predict(noisy).rejected
    run = pgd_run(subject, starts=subject.budget.starts)
    with torch.no_grad():
        rejected = subject.judge.predict(run.images)
    wrong_class = rejected.scores.argmax(1) != subject.labels
    hard = share(
        "rejection has no gradient", _without_gradient(subject, x) & _without_gradient(subject, noisy)
    )
    noise = share(
        "rejected because of noise alone", by_noise & ~subject.clean.rejected, ~subject.clean.rejected
    )
    accused = (
        "The rejection is a hard threshold without gradient: an attack cannot see what it has to pass, so "
        "that robust accuracy says little."
    )
    advice, verdict = "Attack with a soft margin in the column `reject`, and by scores.", accuse(hard)
    if verdict == "pass" and accuse(noise, tolerated=0.25, serious=0.5) in ("suspicious", "fails"):
        verdict = "suspicious"
        accused = "The model rejects much of what carries mere noise: it counts as robust for rejecting."
        advice = "Quote coverage under noise beside robust accuracy."
    return concluded(
        NAME,
        QUESTION,
        hard,
        fine="An attack can go through the rejection.",
        accused=accused,
        advice=advice,
        measures=(
            share("accepts the clean image", ~subject.clean.rejected),
            noise,
            share(f"robust to {run.name}, rejection counts as robust", run.robust),
            share("of another class, and rejected", wrong_class & rejected.rejected),
        ),
        verdict=verdict,
    )


def _without_gradient(subject: Subject, x: Tensor) -> Bool[Tensor, " batch"]:
    model, classes = subject.attacked, subject.model.num_classes
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        logits = model(leaf)
        lead = (logits[:, classes] - logits[:, :classes].amax(1)).sum()
        alone = logits[:, :classes].amax(1).sum()
        found = (
            torch.autograd.grad(lead, leaf, retain_graph=True, allow_unused=True)[0]
            if lead.requires_grad
            else None
        )
        label = torch.autograd.grad(alone, leaf, allow_unused=True)[0] if alone.requires_grad else None
    if found is None:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    # A constant column leaves the gradient of the classes alone behind.
    own = found if label is None else found + label
    lengths: Tensor = torch.minimum(_lengths(found), _lengths(own))
    return lengths < _VANISHED


def _lengths(gradient: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(gradient.flatten(1).double(), dim=1)
    return lengths
