"""Does an attack without gradients find more than one with them?"""

from ..crafting import pgd_run, search_run
from ..findings import Finding, concluded, share
from ..subject import Subject

__all__ = ["black_box"]

NAME, QUESTION = "black box", "Does the gradient find what a search by scores finds?"


def black_box(subject: Subject) -> Finding:
    """Compares a random search with PGD, image by image."""
    search, white = search_run(subject), pgd_run(subject, starts=subject.budget.starts)
    right = subject.right
    missed = share("broken by random search, not by PGD", ~search.robust & white.robust & right, right)
    return concluded(
        NAME,
        QUESTION,
        missed,
        fine="The gradient finds what scores alone find.",
        accused="A random search, which knows no gradient, breaks images that PGD does not: the gradient is "
        "masked.",
        advice="Do not quote PGD; find what masks the gradient.",
        measures=(
            share(f"robust to {search.name}", search.robust),
            share(f"robust to {white.name}", white.robust),
        ),
    )
