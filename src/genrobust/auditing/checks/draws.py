"""Do the draws of a model's noise agree on a verdict?"""

import torch

from ...verification import judge_examples
from ..crafting import pgd_run
from ..findings import Finding, accuse, concluded, not_applicable, share
from ..subject import Subject

__all__ = ["draws"]

NAME, QUESTION = "draws", "Do the first draw, the majority and the worst draw agree?"


def draws(subject: Subject) -> Finding:
    """Judges the examples of PGD by several fresh draws."""
    if not subject.model.randomized:
        return not_applicable(NAME, QUESTION, "The model draws no noise.")
    if not _fresh(subject):
        return Finding(
            check=NAME,
            question=QUESTION,
            verdict="fails",
            meaning="The model says that it draws noise, but fresh draws are all the same: a verdict reuses "
            "the noise that the attack has seen.",
            advice="Draw the noise of every verdict anew, from a source that `with_randomness` can exchange.",
            measures=(share("images whose scores change with fresh noise", torch.zeros_like(subject.right)),),
        )
    run = pgd_run(subject, starts=subject.budget.starts)
    never = torch.zeros_like(run.robust)
    found = judge_examples(
        subject.judge,
        subject.images,
        subject.labels,
        run.images,
        norm=subject.norm,
        epsilon=subject.epsilon,
        claimed=never,
        zero_gradient=never,
        draws=subject.budget.draws,
    )
    first, majority, worst = (found.robust("first"), found.robust("majority"), found.robust("worst"))
    bad = share("first draw and majority disagree", first != majority)
    verdict = accuse(bad)
    shares = tuple(
        share(f"robust by the {name}", kept)
        for name, kept in (("first draw", first), ("majority", majority), ("worst draw", worst))
    )
    high, low = shares[2].high, shares[0].low
    apart = high is not None and low is not None and high < low
    if verdict == "pass" and apart:
        verdict = "suspicious"
    return concluded(
        NAME,
        QUESTION,
        bad,
        fine="One draw decides like the majority, and the worst is not far below.",
        accused="One draw is not the verdict: other draws of the noise decide otherwise.",
        advice=f"Quote the majority of at least {subject.budget.draws} draws, and the worst beside it.",
        verdict=verdict,
        measures=shares,
    )


@torch.no_grad()
def _fresh(subject: Subject) -> bool:
    """Returns whether variants with fresh noise give other logits."""
    first, second = (subject.model.with_randomness("fresh", seed=seed)(subject.images) for seed in (101, 202))
    return not torch.equal(first, second)
