"""Did the attack fail for a reason of its own (Pintor et al. 2022)?"""

from jaxtyping import Bool, Float
from torch import Tensor

from ..crafting import pgd_run
from ..findings import AuditVerdict, Finding, accuse, concluded, share
from ..subject import Subject

__all__ = ["indicators"]

NAME, QUESTION = "indicators", "Does PGD's own trace show that it failed by itself?"
_SEVERITY: dict[AuditVerdict, int] = {
    "does not apply": 0,
    "pass": 1,
    "undecided": 2,
    "suspicious": 3,
    "fails": 4,
}
_ADVICE = {
    "silent success": "Judge every iterate, or the one of the least margin, not the last one.",
    "no progress": "The gradient leads nowhere: attack by other gradients, by scores and by transfer.",
    "not converged": "Take more steps.",
    "astray": "Take smaller steps, or average more draws (EOT).",
}
_MEANING = {
    "silent success": "PGD passes through examples that count, and returns another image.",
    "no progress": "PGD ends where it began: no step makes the margin smaller.",
    "not converged": "The margin still falls when PGD ends.",
    "astray": "PGD ends at a much larger margin than it had on its way.",
}


def indicators(subject: Subject) -> Finding:
    """Reads the margins of one PGD run, query by query, on the images that it did not break."""
    run, right = pgd_run(subject), subject.right
    margins = run.margins.double()
    least = margins.cummin(0).values
    gain = least[0] - least[-1]
    standing = run.robust & (least[-1] > 0)
    last_quarter = least[-1 - max(1, len(least) // 4)] - least[-1]
    flags = {
        "silent success": ~run.robust & subject.robust(run.final) & right,
        "no progress": standing & (gain <= 0.01 * least[0].abs()),
        "not converged": standing & (gain > 0.01 * least[0].abs()) & (last_quarter > 0.2 * gain),
        "astray": _astray(margins, gain) & standing,
    }
    measures = {name: share(name, flag & right, right) for name, flag in flags.items()}
    worst = max(measures, key=lambda name: (_SEVERITY[accuse(measures[name])], measures[name].value))
    verdict = accuse(measures[worst])
    if worst in ("silent success", "not converged") and verdict == "fails":
        verdict = "suspicious"  # the examples are found, or more steps find them
    return concluded(
        NAME,
        QUESTION,
        measures.pop(worst),
        fine="PGD's trace shows no failure of its own.",
        accused=_MEANING[worst],
        advice=_ADVICE[worst],
        measures=tuple(measures.values()),
        verdict=verdict,
    )


def _astray(margins: Float[Tensor, "queries batch"], gain: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Returns where the mean margin of the last quarter is far above the least one."""
    tail = margins[-max(1, len(margins) // 4) :].mean(0)
    return (tail - margins.amin(0) > 0.5 * gain) & (gain > 0)
