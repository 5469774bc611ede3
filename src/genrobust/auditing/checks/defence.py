"""What does a defence around a classifier add?"""

from dataclasses import replace

import torch

from ...capabilities import Defended
from ..crafting import Run, pgd_run, transferred_run
from ..findings import Finding, concluded, not_applicable, share
from ..subject import Subject

__all__ = ["defence"]

NAME, QUESTION = "defence", "What does the defence add to the classifier that it is put around?"


def defence(subject: Subject) -> Finding:
    """Attacks the bare classifier, and the defended one through each gradient and by transfer."""
    model = subject.attacked
    if not isinstance(model, Defended):
        return not_applicable(NAME, QUESTION, "The model is no defence around a classifier.")
    bare = model.bare()
    undefended = pgd_run(
        replace(subject, model=bare, attacked=bare, runs={}), starts=subject.budget.starts
    ).robust
    own, right = pgd_run(subject, starts=subject.budget.starts), subject.right
    others: dict[str, Run] = {f"gradient {name}": pgd_run(subject, gradient=name) for name in model.gradients}
    others["transfer from the bare classifier"] = transferred_run(subject, bare, "the bare classifier")
    union = torch.stack([run.robust for run in others.values()]).all(0)
    missed = share("broken another way, not by the model's own gradient", ~union & own.robust & right, right)
    worst = union & own.robust
    gained = int(worst.sum()) - int(undefended.sum())
    sums = (
        f"Against all of these attacks, the defence adds {gained} robust images to the bare classifier's "
        f"{int(undefended.sum())}"
    )
    return concluded(
        NAME,
        QUESTION,
        missed,
        fine=f"{sums}.",
        accused=f"{sums}; the model's own gradient does not show that.",
        advice="Quote the union of these attacks, and what the defence adds to the bare classifier.",
        measures=(
            share("bare classifier, robust", undefended),
            share("defended, by its own gradient", own.robust),
            *(share(f"defended, by {name}", run.robust) for name, run in others.items()),
            share("defended, by all of them", worst),
        ),
    )
