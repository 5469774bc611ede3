"""Which of the model's surrogate gradients finds most, and what does their union find?"""

import torch

from ..crafting import pgd_run
from ..findings import Finding, concluded, not_applicable, share
from ..subject import Subject

__all__ = ["surrogates"]

NAME, QUESTION = "surrogates", "Does the model's own gradient find what its other gradients find?"

_LEFT_OUT = ("auto", "estimated")  # the same as another one; a search by scores, which is a check of its own


def surrogates(subject: Subject) -> Finding:
    """Runs PGD by every surrogate gradient that the model has."""
    names = [name for name in subject.attacked.gradients if name not in _LEFT_OUT]
    if len(names) < 2:
        return not_applicable(NAME, QUESTION, "The model has one gradient.")
    own, right = pgd_run(subject, starts=subject.budget.starts), subject.right
    runs = [pgd_run(subject, gradient=name) for name in names]
    union = torch.stack([run.robust for run in runs]).all(0)
    missed = share("broken by another gradient, not by the model's own", ~union & own.robust & right, right)
    return concluded(
        NAME,
        QUESTION,
        missed,
        fine="The model's own gradient finds what the others find.",
        accused="Other gradients of the same model find examples that its own does not.",
        advice="Attack by every gradient, and quote the union.",
        measures=(
            share(f"robust to {own.name}, own gradient", own.robust),
            *(share(f"robust to gradient {name}", run.robust) for name, run in zip(names, runs, strict=True)),
            share("robust to all of them", union & own.robust),
        ),
    )
