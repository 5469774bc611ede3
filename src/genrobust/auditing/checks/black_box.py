"""Does an attack without gradients find more than one with them?"""

import torch

from ..black_boxes import decision_run, estimated_run, search_run
from ..crafting import pgd_run
from ..findings import Finding, concluded, share
from ..subject import Subject

__all__ = ["black_box"]

NAME, QUESTION = "black box", "Does the gradient find what scores or decisions alone find?"


def black_box(subject: Subject) -> Finding:
    """Compares a random search, estimated slopes and a walk by decisions with PGD, image by image."""
    blind = [run(subject) for run in (search_run, estimated_run, decision_run)]
    white, right = pgd_run(subject, starts=subject.budget.starts), subject.right
    broken = torch.stack([~run.robust for run in blind]).any(0)
    missed = share("broken without gradients, not by PGD", broken & white.robust & right, right)
    return concluded(
        NAME,
        QUESTION,
        missed,
        fine="The gradient finds what scores and decisions alone find.",
        accused="Attacks that know no gradient break images that PGD does not: the gradient is masked.",
        advice="Do not quote PGD; find what masks the gradient.",
        measures=tuple(share(f"robust to {run.name}", run.robust) for run in (*blind, white)),
    )
