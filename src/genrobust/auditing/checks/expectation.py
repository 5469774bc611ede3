"""Does an attack on more draws find more?"""

from ..crafting import pgd_run
from ..findings import Finding, Progression, concluded, not_applicable, share
from ..subject import Subject

__all__ = ["expectation_converged"]

NAME, QUESTION = "expectation", "Do more draws in every query of an attack still find more?"


def expectation_converged(subject: Subject) -> Finding:
    """Runs PGD on the expectation over more and more draws (the form of E-ABS's Table 6)."""
    if not subject.attacked.randomized:
        return not_applicable(NAME, QUESTION, "The model draws no noise.")
    counts = subject.budget.eot_ladder
    runs = [pgd_run(subject, eot=count) for count in counts]
    right, own = subject.right, pgd_run(subject, starts=subject.budget.starts)
    more = ~runs[-1].robust & own.robust & right
    bad = share(f"broken with {counts[-1]} draws, not with the audit's own {subject.budget.eot}", more, right)
    points = tuple((float(n), share("robust", run.robust)) for n, run in zip(counts, runs, strict=True))
    return concluded(
        NAME,
        QUESTION,
        bad,
        fine="More draws find nothing more.",
        accused="The expectation has not converged: an attack on more draws finds more.",
        advice="Attack with more draws a query until the number stands still.",
        measures=(),
        curves=(Progression(title="robust accuracy", against="draws a query", points=points),),
    )
