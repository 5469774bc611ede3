"""Does robust accuracy fall to 0 as the ball grows?"""

from itertools import pairwise

import torch

from ...verification import largest_distance
from ..crafting import known_examples, pgd_run
from ..findings import Finding, Progression, accuse, concluded, share
from ..subject import Subject

__all__ = ["radius"]

NAME, QUESTION = "radius", "Does robust accuracy fall, and reach 0, as epsilon grows?"
_FACTORS = (0.5, 1.0, 2.0, 4.0)


def radius(subject: Subject) -> Finding:
    """Measures robust accuracy against epsilon, up to a ball that holds every image.

    In that ball there is an example by construction: a clean image of another class.
    """
    largest = largest_distance(subject.norm, subject.model.input_shape)
    sizes = [factor * subject.epsilon for factor in _FACTORS if factor * subject.epsilon < largest] + [
        largest
    ]
    runs = [pgd_run(subject, epsilon=size) for size in sizes]
    right = subject.right
    known = right & ~subject.robust(known_examples(subject), epsilon=largest)
    missed = runs[-1].robust & known
    rises = torch.zeros_like(right)
    for smaller, larger in pairwise(runs):
        rises |= ~smaller.robust & larger.robust & right
    lost = share("robust again in a larger ball", rises, right)
    bad = share("robust in a ball that holds an image of another class", missed, known)
    verdict = accuse(bad)
    if verdict in ("pass", "undecided") and accuse(lost) in ("suspicious", "fails"):
        verdict = "suspicious"
    return concluded(
        NAME,
        QUESTION,
        bad,
        fine="Robust accuracy falls to 0.",
        accused="The attack misses examples that are known to be there: what stops it is not robustness.",
        advice="Do not quote this attack at any epsilon; find out where it stops in the largest ball.",
        verdict=verdict,
        measures=(lost,),
        curves=(
            Progression(
                title="robust accuracy",
                against="epsilon",
                points=tuple(
                    (size, share("robust", run.robust)) for size, run in zip(sizes, runs, strict=True)
                ),
            ),
        ),
    )
