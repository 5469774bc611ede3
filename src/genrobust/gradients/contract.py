"""What a strategy needs of a model, and what it gives to attackers."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..inference import InferenceBudget, LatentObjective, Posterior
from ..randomness import NoiseSource

__all__ = ["LatentModel", "SurrogateGradient"]


class LatentModel(Protocol):
    """The members of a latent-optimising model that a strategy needs."""

    @property
    def objective(self) -> LatentObjective:
        """The objective l_k(x) that inference minimises."""
        ...

    @property
    def trainable_objective(self) -> LatentObjective:
        """The same objective, differentiable in the model's weights."""
        ...

    @property
    def budget(self) -> InferenceBudget:
        """Settings that say how hard inference looks for latents."""
        ...

    @property
    def noise(self) -> NoiseSource:
        """The source of the noise."""
        ...

    def search(self, x: Float[Tensor, "batch channels height width"]) -> list[Posterior]:
        """Finds the starting points of the refinement, the best ones first."""
        ...

    def propose(self, x: Float[Tensor, "batch channels height width"]) -> Posterior:
        """Returns the encoder's output for every class, differentiable in `x`."""
        ...

    def recall(self, x: Float[Tensor, "batch channels height width"]) -> Posterior | None:
        """Returns where the last call ended, if refinement of these images would end there again."""
        ...

    def remember(
        self,
        x: Float[Tensor, "batch channels height width"],
        posterior: Posterior,
        losses: Float[Tensor, "batch classes"],
    ) -> None:
        """Stores the latents at which refinement ended."""
        ...


@runtime_checkable
class SurrogateGradient(Protocol):
    """A strategy, which computes scores whose graph holds the gradient that the attacker gets."""

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns -l_k(x), differentiable in `x`."""
        ...

    def reconstructions(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns E[x | z_k] at the latents that inference finds, with a gradient that fits the scores'."""
        ...
