"""The curvature of the cost in z, up to a term that vanishes with the residual: Gauss-Newton.

J^T F J, with J the decoder's Jacobian and F the Fisher information of its outputs, does not depend on the
image; of ||x - G(z)||^2 it is 2 J^T J. It is measured once, at prior draws.
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


def _of_squared_error(outputs: Tensor) -> Tensor:
    return torch.full_like(outputs, 2)


@final
@dataclass(frozen=True)
class Curvature:
    """J^T F J of every class at some anchors.

    Attributes:
        anchors: Standard normal draws.
        matrices: J^T F J where the prior of each class puts them.
        moments: Mean and standard deviation of the prior of each class.
    """

    anchors: Float[Tensor, "anchors latent"]
    matrices: Float[Tensor, "classes anchors latent latent"]
    moments: tuple[Float[Tensor, "classes latent"], Float[Tensor, "classes latent"]]

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        decoders: Callable[[Tensor], Tensor],
        *,
        latents: Float[Tensor, "rows classes latent"],
        information: Callable[[Tensor], Tensor] = _of_squared_error,
        moments: tuple[Tensor, Tensor] | None = None,
    ) -> Self:
        """Measure the Jacobians by differences: D + 1 decoder passes an anchor.

        Args:
            decoders: A bank.
            latents: Of the shape, device and dtype that the bank is to decode at once.
            information: The Fisher information of a decoder's outputs.
            moments: Mean and standard deviation of the prior of each class; 0 and 1 if none are given.
        """
        rows, classes, latent_dim = latents.shape
        generator = torch.Generator().manual_seed(0)
        anchors = torch.randn(ANCHORS, latent_dim, generator=generator).to(latents)
        location, scale = moments or (latents.new_zeros(1, 1), latents.new_ones(1, 1))
        steps = torch.cat([anchors.new_zeros(1, latent_dim), STEP * torch.eye(latent_dim).to(latents)])
        matrices = []
        for group in anchors.split(max(1, rows // (latent_dim + 1))):
            points = (group[:, None] + steps).flatten(0, 1)[:, None].expand(-1, classes, -1)
            decoded = torch.cat([decoders(location + scale * part) for part in points.split(rows)])
            decoded = decoded.unflatten(0, (len(group), latent_dim + 1))
            weight = information(decoded[:, 0]).sqrt()[:, None]
            columns = (weight * (decoded[:, 1:] - decoded[:, :1])).flatten(3) / STEP
            columns = columns.permute(2, 0, 1, 3) / scale[:, None, :, None]
            matrices.append(columns @ columns.mT)
        location, scale = location.expand(classes, latent_dim), scale.expand(classes, latent_dim)
        return cls(anchors, torch.cat(matrices, 1), (location, scale))

    def at(
        self, means: Float[Tensor, "problems latent"], classes: Int[Tensor, " problems"]
    ) -> Float[Tensor, "problems latent latent"]:
        """Give a mean over the anchors near each latent: a single one is too far to be representative."""
        location, scale = self.moments
        standardized = (means - location[classes]) / scale[classes]
        weights = (-0.5 * torch.cdist(standardized, self.anchors).square()).softmax(1)
        blended = means.new_empty(*means.shape, means.shape[1])
        for k in classes.unique():
            own = classes == k
            blended[own] = torch.einsum("pa,aij->pij", weights[own], self.matrices[k])
        return blended
