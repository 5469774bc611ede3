"""How hard inference looks for the best latents."""

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["InferenceBudget"]

Method = Literal["auto", "bfgs", "adam"]


@dataclass(frozen=True, kw_only=True)
class InferenceBudget:
    """How hard the engine looks for the best latents.

    Attributes:
        candidates: Random latents searched per class (E-ABS section 3.3: 8000); 0 uses the encoder alone.
        drop_least_likely: Share of the candidates that is dropped for being least likely under the prior.
        encoder_proposal: Whether the encoder's output is a candidate too (E-ABS section 3.3).
        method: Of the refinement: `"bfgs"` (ends when converged) or `"adam"` (the papers'). `"auto"` is
            BFGS where the mean alone is optimised, and Adam where the variance is too: there, fresh noise at
            every step is cheaper than a mean over enough common draws.
        steps: Steps of the refinement: Adam takes all of them, BFGS at most so many.
        learning_rate: Of Adam's steps (ABS: 0.05; E-ABS does not give its own).
        refined_classes: How many classes are refined, those that lead after the search; None is all of them,
            which alone is exact: nothing short of refinement bounds an objective from below, but by 0, and 0
            rules no class out. The scores of the other classes stay bounds, only looser, and
            `Prediction.refined` marks them.
        warm_start: Whether the latents of the last call are candidates too, if it had as many images: for
            attacks, whose images hardly move. BFGS then leaves alone the classes that cannot be among the
            best two, by what the last calls found and how far the images have moved since; see `Memory`.
            Verdicts are to be made without.
        tolerance: BFGS ends where its quadratic model promises to gain less than this many nats.
        trailing_tolerance: It also ends where that is less than this share of what the class is behind the
            image's best one so far: no promise short of it can change the decision. Scores of classes far
            behind are looser bounds for it; 0 refines all of them alike.
        expectation_draws: Common random draws whose mean BFGS minimises, in models that optimise a variance.
        radius: Latent means are kept within this distance of the origin, if given.
        bfloat16_search: Whether candidates are compared in bfloat16, half the memory traffic; the best are
            scored again exactly. Faster where the processor multiplies bfloat16, much slower elsewhere.
        seed: Of the candidates.
        max_bytes: Bound on the memory of the codebook, and of the activations of one chunk.
    """

    candidates: int = 8000
    drop_least_likely: float = 0.0
    encoder_proposal: bool = True
    method: Method = "auto"
    steps: int = 50
    learning_rate: float = 0.05
    tolerance: float = 0.005
    trailing_tolerance: float = 0.01
    expectation_draws: int = 8
    refined_classes: int | None = None
    warm_start: bool = False
    radius: float | None = None
    bfloat16_search: bool = False
    seed: int = 0
    max_bytes: int = 2**30

    def __post_init__(self) -> None:
        if self.candidates < 0 or self.steps < 0:
            raise ValueError(
                f"Expected `candidates` and `steps` of at least 0, but got {self.candidates} and {self.steps}"
            )
        if not self.candidates and not self.encoder_proposal:
            raise ValueError(
                "Expected `candidates` above 0 where `encoder_proposal` is off: nothing to start from"
            )
        if not 0 <= self.drop_least_likely < 1:
            raise ValueError(f"Expected `drop_least_likely` in [0, 1), but got {self.drop_least_likely}")
        if not (self.learning_rate > 0 and self.max_bytes > 0):
            raise ValueError(
                "Expected `learning_rate` and `max_bytes` above 0, "
                f"but got {self.learning_rate} and {self.max_bytes}"
            )
        if self.method not in get_args(Method):
            raise ValueError(f"Expected `method` out of {list(get_args(Method))}, but got {self.method!r}")
        if not self.tolerance > 0 or not 0 <= self.trailing_tolerance < 1 or self.expectation_draws < 1:
            raise ValueError(
                "Expected `tolerance` above 0, `trailing_tolerance` in [0, 1) and `expectation_draws` of at "
                f"least 1, but got {self.tolerance}, {self.trailing_tolerance} and {self.expectation_draws}"
            )
        if self.refined_classes is not None and self.refined_classes < 1:
            raise ValueError(f"Expected `refined_classes` of at least 1, but got {self.refined_classes}")
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"Expected `radius` above 0, but got {self.radius}")

    def refines_with(self, *, variational: bool) -> Literal["bfgs", "adam"]:
        """Give the method that is used where the variance is optimised, or is not."""
        if self.method == "auto":
            return "adam" if variational else "bfgs"
        return self.method
