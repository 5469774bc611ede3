"""The Gauss-Newton approximation to the curvature of the cost in z.

The approximation J^T F J leaves out a term that vanishes with the residual. J is the decoder's Jacobian and F
the Fisher information of its outputs, so it does not depend on the image. For the cost ||x - G(z)||^2 it is
2 J^T J. It is measured once, at draws from the prior.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._brief import one_line
from ..randomness import standard_normal

__all__ = ["Curvature"]

ANCHORS = 64
STEP = 1e-2  # step of the finite differences: in single precision their error stays below 1 % of the Jacobian


def _of_squared_error(outputs: Tensor) -> Tensor:
    return torch.full_like(outputs, 2)


@final
@dataclass(frozen=True)
class Curvature:
    """The matrix J^T F J of every class at some anchors.

    Attributes:
        anchors: Standard normal draws.
        matrices: J^T F J at each anchor, after the anchor is moved to the prior of each class.
        moments: Mean and standard deviation of the prior of each class.
    """

    anchors: Float[Tensor, "anchors latent"]
    matrices: Float[Tensor, "classes anchors latent latent"]
    moments: tuple[Float[Tensor, "classes latent"], Float[Tensor, "classes latent"]]

    __repr__ = one_line

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
        """Measures the Jacobians by finite differences, with D + 1 decoder passes per anchor.

        Args:
            decoders: A decoder bank.
            latents: A tensor with the shape, device and dtype of the latents that one pass decodes.
            information: The Fisher information of a decoder's outputs.
            moments: Mean and standard deviation of the prior of each class; by default 0 and 1.
        """
        rows, classes, latent_dim = latents.shape
        generator = torch.Generator().manual_seed(0)
        anchors = standard_normal((ANCHORS, latent_dim), generator).to(latents)
        location, scale = moments or (latents.new_zeros(1, 1), latents.new_ones(1, 1))
        axes = torch.eye(latent_dim, dtype=latents.dtype, device=latents.device)
        axes = torch.eye(latent_dim, dtype=latents.dtype, device=latents.device)
        steps = torch.cat([anchors.new_zeros(1, latent_dim), STEP * axes])
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
        """Returns the mean over the anchors near each latent, since a single anchor is too far away."""
        location, scale = self.moments
        standardized = (means - location[classes]) / scale[classes]
        weights = (-0.5 * torch.cdist(standardized, self.anchors).square()).softmax(1)
        blended = means.new_empty(*means.shape, means.shape[1])
        for k in classes.unique():
            own = classes == k
            blended[own] = torch.einsum("pa,aij->pij", weights[own], self.matrices[k])
        return blended
