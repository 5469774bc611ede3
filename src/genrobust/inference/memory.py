"""What an attack's next query can know from its last one: where refinement ended, and who cannot win."""

from dataclasses import dataclass
from typing import Self, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .objective import Posterior

__all__ = ["Memory"]

CONTENDERS = 2  # the winner, and the runner-up that an attacker's margin is measured to


@final
@dataclass(frozen=True)
class Memory:
    """Where the last call ended, and how low the objective of every class can be.

    l_k(x) = min_z ||x - G_k(z)||^2 + prior(z), with a prior term of at least 0, is the squared distance of
    (x, 0) from the set of all (G_k(z), prior(z)^(1/2)): its root changes by no more than x moves. That is the
    argument of E-ABS eq. 7, and exact as far as the inference was.

    Attributes:
        images: The images of the last call.
        posterior: Its latents, after refinement.
        roots: Lower bounds of the roots of l_k at the images.
    """

    images: Float[Tensor, "batch channels height width"]
    posterior: Posterior
    roots: Float[Tensor, "batch classes"]

    @classmethod
    def after(
        cls,
        previous: Self | None,
        x: Float[Tensor, "batch channels height width"],
        posterior: Posterior,
        losses: Float[Tensor, "batch classes"],
    ) -> Self:
        """Remember a call.

        Args:
            previous: What was remembered before, of the same rows.
            x: Its images.
            posterior: Where its refinement ended. Without a promise, its losses bound nothing from below.
            losses: The objective there.
        """
        roots = torch.zeros_like(losses)
        if posterior.promise is not None:
            # A quadratic model is not exact: twice its promise is taken off.
            roots = (losses - 2 * posterior.promise).clamp_min(0).sqrt()
        if previous is not None:
            roots = torch.maximum(roots, previous.roots_at(x))
        return cls(x, Posterior(posterior.mean, posterior.log_variance), roots)

    def roots_at(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Give lower bounds of the roots of l_k at other images."""
        moved = (x - self.images).flatten(1).norm(dim=1, keepdim=True)
        roots: Tensor = (self.roots - moved).clamp_min(0)
        return roots

    def contenders(
        self, x: Float[Tensor, "batch channels height width"], losses: Float[Tensor, "batch classes"]
    ) -> Bool[Tensor, "batch classes"]:
        """Say which classes may be among the best two at other images, given upper bounds of l_k there."""
        count = min(CONTENDERS, losses.shape[1])
        behind = losses.topk(count, dim=1, largest=False).values[:, -1:]
        return self.roots_at(x).square() <= behind

    def rows(self, rows: slice) -> Self:
        """Take some images of the batch."""
        return type(self)(self.images[rows], self.posterior.rows(rows), self.roots[rows])
