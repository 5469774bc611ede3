"""The curvature of ||x - G(z)||^2 in z, up to a term that vanishes with the residual: Gauss-Newton.

2 J^T J, with J the decoder's Jacobian, does not depend on the image. It is measured once, at prior draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Curvature"]

ANCHORS = 64
STEP = 1e-2  # of the differences: their error stays under 1 % of the Jacobian in single precision


@final
@dataclass(frozen=True)
class Curvature:
    """2 J^T J of every decoder at some anchors.

    Attributes:
        anchors: Prior draws.
        matrices: 2 J^T J there.
    """

    anchors: Float[Tensor, "anchors latent"]
    matrices: Float[Tensor, "classes anchors latent latent"]

    @classmethod
    @torch.no_grad()
    def fit(
        cls, decoders: Callable[[Tensor], Tensor], *, latents: Float[Tensor, "rows classes latent"]
    ) -> Self:
        """Measure the Jacobians by differences: D + 1 decoder passes an anchor.

        Args:
            decoders: A bank.
            latents: Of the shape, device and dtype that the bank is to decode at once.
        """
        rows, classes, latent_dim = latents.shape
        generator = torch.Generator().manual_seed(0)
        anchors = torch.randn(ANCHORS, latent_dim, generator=generator).to(latents)
        steps = torch.cat([anchors.new_zeros(1, latent_dim), STEP * torch.eye(latent_dim).to(latents)])
        matrices = []
        for group in anchors.split(max(1, rows // (latent_dim + 1))):
            points = (group[:, None] + steps).flatten(0, 1)[:, None].expand(-1, classes, -1)
            decoded = torch.cat([decoders(part).flatten(2) for part in points.split(rows)])
            decoded = decoded.unflatten(0, (len(group), latent_dim + 1)).permute(2, 0, 1, 3)
            columns = (decoded[:, :, 1:] - decoded[:, :, :1]) / STEP
            matrices.append(2 * columns @ columns.mT)
        return cls(anchors, torch.cat(matrices, 1))

    def at(
        self, means: Float[Tensor, "problems latent"], classes: Int[Tensor, " problems"]
    ) -> Float[Tensor, "problems latent latent"]:
        """Give a mean over the anchors near each latent: a single one is too far to be representative."""
        weights = (-0.5 * torch.cdist(means, self.anchors).square()).softmax(1)
        blended = means.new_empty(*means.shape, means.shape[1])
        for k in classes.unique():
            own = classes == k
            blended[own] = torch.einsum("pa,aij->pij", weights[own], self.matrices[k])
        return blended
