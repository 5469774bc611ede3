"""Is a stronger attack stronger?"""

from ..black_boxes import noise_run
from ..crafting import one_step_run, pgd_run
from ..findings import Finding, concluded, share
from ..subject import Subject

__all__ = ["strength"]

NAME, QUESTION = "strength", "Is noise weaker than one step, and one step weaker than many?"


def strength(subject: Subject) -> Finding:
    """Compares noise, one step, PGD and PGD with restarts, image by image."""
    noise, step, many = (
        noise_run(subject),
        one_step_run(subject),
        pgd_run(subject, starts=subject.budget.starts),
    )
    right = subject.right
    weaker = ~noise.robust | ~step.robust
    missed = share("broken by noise or one step, not by PGD", weaker & many.robust & right, right)
    single = many.by_start[0]
    return concluded(
        NAME,
        QUESTION,
        missed,
        fine="Each attack finds what a weaker one finds.",
        accused="Noise or one step finds examples that PGD misses: the gradient leads elsewhere, or nowhere.",
        advice="Mend the gradient (BPDA, EOT, the margin), then attack again.",
        measures=(
            share("right about the clean image", right),
            share(f"robust to {noise.name}", noise.robust),
            share("robust to one step", step.robust),
            share(f"robust to PGD, {subject.budget.steps} steps, 1 start", single),
            share(f"robust to {many.name}", many.robust),
        ),
    )
