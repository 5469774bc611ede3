"""The gradient that an attacker estimates from scores alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from .._fields import AtLeastOne, Positive, check_fields
from ..randomness import NoiseSource, standard_normal
from .contract import LatentModel
from .surrogates import Envelope

__all__ = ["Estimated"]


@final
@dataclass(frozen=True, kw_only=True)
class Estimated:
    """The gradient estimated from scores alone, by antithetic finite differences along random directions.

    It works on models that mask their gradient. NES (Ilyas et al. 2018) draws Gaussian directions, SPSA
    (Uesato et al. 2018) draws signs.

    Attributes:
        pairs: Number of pairs of queries per image.
        sigma: Length of a query's step per pixel.
        method: `"nes"` or `"spsa"`.
        generator: The generator of the directions. It advances, so that every attack step gets new ones.
    """

    pairs: AtLeastOne = 50
    sigma: Positive = 0.01
    method: Literal["nes", "spsa"] = "nes"
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        check_fields(self)

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns -l_k(x) with the estimate as its gradient."""
        return self.linearized(lambda images: Envelope().scores(model, images), x, noise=model.noise)

    def reconstructions(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns the reconstructions with the estimate as their gradient."""

        def query(images: Tensor) -> Tensor:
            return Envelope().reconstructions(model, images).flatten(1)

        shape = (model.objective.num_classes, *x.shape[1:])
        images: Tensor = self.linearized(query, x, noise=model.noise).unflatten(1, shape)
        return images

    def linearized(
        self,
        query: Callable[[Tensor], Tensor],
        x: Float[Tensor, "batch channels height width"],
        *,
        noise: NoiseSource,
    ) -> Float[Tensor, "batch answers"]:
        """Returns what `query` computes, with the estimate as its gradient.

        The estimate is computed here, so that several backward passes agree and cost nothing. Both queries
        of a pair get the same noise of the model, which would otherwise swamp their difference.
        """
        with torch.no_grad():
            scores = query(x)
            if not x.requires_grad:
                return scores
            directions = self._directions(x)
            slopes = torch.stack([_difference(query, x, self.sigma * u, noise) for u in directions])
            slopes = slopes / (2 * self.sigma)
        linear: Tensor = _LinearSurrogate.apply(x, scores, slopes, directions)
        return linear

    def _directions(self, x: Tensor) -> Tensor:
        noise = standard_normal((self.pairs, *x.shape), self.generator)
        if self.method == "spsa":
            noise = torch.where(noise < 0, -1.0, 1.0)
        return noise.to(device=x.device, dtype=x.dtype)


def _difference(query: Callable[[Tensor], Tensor], x: Tensor, step: Tensor, noise: NoiseSource) -> Tensor:
    """Returns query(x + step) - query(x - step) with common random numbers."""
    rewind = noise.mark()
    ahead = query(x + step)
    rewind()
    return ahead - query(x - step)


class _LinearSurrogate(torch.autograd.Function):
    """Scores whose Jacobian is the mean over directions u of slope x u."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Tensor, slopes: Tensor, directions: Tensor) -> Tensor:
        del x
        ctx.save_for_backward(slopes, directions)
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        slopes, directions = ctx.saved_tensors
        weights = (slopes * gradients[0]).sum(2) / len(directions)
        return torch.einsum("sb,sbchw->bchw", weights, directions), None, None, None
