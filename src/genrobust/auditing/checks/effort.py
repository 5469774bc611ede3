"""Does more of the same attack find more?"""

from ..crafting import pgd_run
from ..findings import Finding, Progression, concluded, share
from ..subject import Subject

__all__ = ["effort"]

NAME, QUESTION = "effort", "Do more steps and more starts still find more?"
_SHARES = (0.25, 0.5, 1.0, 2.0)  # of the budget's steps


def effort(subject: Subject) -> Finding:
    """Measures robust accuracy against steps, and against starts."""
    steps = sorted({max(1, round(part * subject.budget.steps)) for part in _SHARES})
    runs = [pgd_run(subject, steps=count) for count in steps]
    many = pgd_run(subject, starts=subject.budget.starts)
    right = subject.right
    late = ~runs[-1].robust & runs[-2].robust & right
    if len(many.by_start) > 1:
        late |= many.by_start[-2] & ~many.by_start[-1] & right
    bad = share("broken only by twice the steps, or by the last start", late, right)
    by_steps = tuple((float(n), share("robust", run.robust)) for n, run in zip(steps, runs, strict=True))
    by_start = tuple((float(n), share("robust", kept)) for n, kept in enumerate(many.by_start, 1))
    return concluded(
        NAME,
        QUESTION,
        bad,
        fine="Twice the steps or another start changes nothing.",
        accused="The attack has not converged: more of it still finds examples.",
        advice="Add steps and restarts until the number stands still.",
        measures=(),
        curves=(
            Progression(title="robust accuracy", against="steps", points=by_steps),
            Progression(title="robust accuracy", against="starts", points=by_start),
        ),
    )
