"""Settings that say how hard inference looks for the best latents."""

from dataclasses import dataclass
from typing import Annotated, Literal

from .._fields import AtLeastOne, AtLeastZero, Bounds, Positive, Rate, Seed, check_fields

__all__ = ["RESCORED", "InferenceBudget", "Search"]

Method = Literal["auto", "mean", "bfgs", "adam"]
Search = Literal["points", "distributions"]
Strategy = Literal["mean", "bfgs", "adam"]

RESCORED = 8  # candidates of a class that the search scores exactly


@dataclass(frozen=True, kw_only=True)
class InferenceBudget:
    """Settings that say how hard inference looks for the best latents.

    Attributes:
        candidates: Random latents searched per class (E-ABS section 3.3: 8000); 0 uses the encoder alone.
        search: What a candidate is in models that optimise a variance. `"points"` (default): a prior draw
            with the variance that the encoder typically gives; it is scored where refinement starts.
            `"distributions"`: a prior draw with the variance of the prior, scored at a single draw of its
            own, which is E-ABS section 3.3 to the letter. The best of thousands is then the luckiest draw,
            and refinement starts elsewhere; see `LatentClassifier`.
        starts: Number of starting points that are refined for every class: the best of the candidates and the
            encoder's proposal. Above 1, the one that ends lowest decides.
        drop_least_likely: Share of the candidates to drop: those that are least likely under the prior.
        encoder_proposal: Whether the encoder's output is a candidate too (E-ABS section 3.3).
        method: Refinement method: `"bfgs"` (stops each problem when it has converged), `"adam"` (the papers'
            method) or `"mean"`, for models that optimise a variance: BFGS moves the mean, at which it takes
            the expectation, and the variance stays that of the start. This is near the expectation where the
            variance is small, as the encoder's of E-ABS is. `"auto"` uses BFGS for models that optimise the
            mean alone, and `"mean"` if the prior term does not reward variance. It uses Adam for the others
            and for the search `"distributions"`, whose candidates are wide.
        steps: Number of refinement steps. Adam takes all of them; BFGS takes at most this many.
        learning_rate: Step size of Adam (ABS: 0.05; the E-ABS paper does not state its value).
        refined_classes: Number of classes to refine, those that lead after the search. None (default) refines
            every class. Refining fewer is approximate: without refinement the only lower bound on a class's
            objective is 0, which rules no class out. Scores of classes that are not refined remain bounds,
            but looser ones; `Prediction.refined` marks them.
        warm_start: Whether to add the latents of the last call to the candidates, if that call had the same
            number of images. Attacks profit from it, because their images hardly move between queries. BFGS
            then skips classes that cannot be among the best two, given the results of the last calls and the
            distance that the images have moved since (see `Memory`). Do not use warm starts for verdicts.
        tolerance: BFGS stops a problem when its quadratic model predicts a gain below this, in nats.
        trailing_tolerance: BFGS also stops a class when the predicted gain is below this fraction of the gap
            to the image's leading class: the decision can no longer change. Scores of classes far behind are
            looser bounds for it; 0 refines all classes equally.
        expectation_draws: Number of draws in models that optimise a variance. Starting points are compared
            by the mean over common draws (at their means, if the method is `"mean"`), BFGS minimises such a
            mean, and a score is the mean over the draws of the final distribution, because eq. 6 of E-ABS and
            the bound of VaDE are expectations.
        radius: Largest distance of a latent mean from the origin; None sets no limit.
        bfloat16_search: Whether to compare candidates in bfloat16, which halves the memory traffic; the best
            candidates are scored again exactly. It is faster on processors that multiply bfloat16, and much
            slower on others.
        seed: Seed of the random candidates.
        max_bytes: Limit on the memory of the codebook, and on the memory of one chunk's activations.
    """

    candidates: AtLeastZero = 8000
    search: Search = "points"
    starts: Annotated[int, Bounds(least=1, most=RESCORED)] = 1
    drop_least_likely: Rate = 0.0
    encoder_proposal: bool = True
    method: Method = "auto"
    steps: AtLeastZero = 50
    learning_rate: Positive = 0.05
    tolerance: Positive = 0.005
    trailing_tolerance: Rate = 0.01
    expectation_draws: AtLeastOne = 8
    refined_classes: AtLeastOne | None = None
    warm_start: bool = False
    radius: Positive | None = None
    bfloat16_search: bool = False
    seed: Seed = 0
    max_bytes: AtLeastOne = 2**30

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.candidates and not self.encoder_proposal:
            raise ValueError(
                "Expected `candidates` above 0 when `encoder_proposal` is off, but got 0: there is no start"
            )
        if self.search == "distributions" and self.method == "mean":
            raise ValueError(
                "Expected `method` 'adam' or 'bfgs' with `search` 'distributions', but got 'mean': it would "
                "keep the wide variance of the candidates"
            )

    def refines_with(self, *, variational: bool, rewards_variance: bool = True) -> Strategy:
        """Returns the method for a model.

        Args:
            variational: Whether the model optimises the variance, or the mean alone.
            rewards_variance: Whether its prior term falls as a narrow posterior widens.
        """
        if self.method in ("adam", "bfgs"):
            return self.method
        if not variational:
            return "bfgs"
        wide = rewards_variance or self.search == "distributions"
        return "adam" if wide and self.method == "auto" else "mean"
