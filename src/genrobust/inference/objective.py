"""What inference minimises, for all classes at once.

For every image x and class k, the variational distribution that minimises

    l_k(x) = E_{z ~ N(mean, Sigma)} ||x - G_k(z)||^2 + beta * prior(z)          (ABS eq. 2, E-ABS eq. 6).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..likelihood import kl_to_standard_normal, squared_error
from ..nets import DiscriminatorBank
from ..randomness import NoiseStream
from .curvature import Curvature

__all__ = ["Decoders", "DiscriminatorPrior", "KLPrior", "LatentObjective", "Posterior", "Prior"]

CPU_ROWS = 32  # more fall out of the cache: twice the time an image at 128


@final
@dataclass(frozen=True)
class Posterior:
    """A variational distribution per image and class: N(mean, diag(exp(log_variance))), or a point.

    Without `log_variance` the latent is the mean itself, and the KL term counts unit variance (ABS eq. 2).
    `leading` says which classes are worth refinement; all are if it is not given.
    """

    mean: Float[Tensor, "batch classes latent"]
    log_variance: Float[Tensor, "batch classes latent"] | None = None
    leading: Bool[Tensor, "batch classes"] | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that the refinement optimises."""
        return (self.mean,) if self.log_variance is None else (self.mean, self.log_variance)

    def sample(self, noise: NoiseStream) -> Float[Tensor, "batch classes latent"]:
        """Draw z by reparameterisation."""
        if self.log_variance is None:
            return self.mean
        return self.mean + (0.5 * self.log_variance).exp() * noise.normal(self.mean.shape, like=self.mean)

    def where(self, condition: Tensor, other: "Posterior") -> "Posterior":
        """Take `other` where `condition` (B, K) is false."""
        pairs = zip(self.parameters, other.parameters, strict=True)
        return Posterior(*(torch.where(condition[..., None], mine, theirs) for mine, theirs in pairs))

    def rows(self, rows: slice) -> "Posterior":
        """Take some images of the batch."""
        return self._map(lambda part: part[rows])

    def detach(self) -> "Posterior":
        """Cut the graph."""
        return self._map(Tensor.detach)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Posterior":
        parts = (self.mean, self.log_variance, self.leading)
        return Posterior(*(None if part is None else function(part) for part in parts))  # type: ignore[arg-type]

    @staticmethod
    def concatenate(parts: "list[Posterior]") -> "Posterior":
        """Join posteriors of consecutive images."""
        fields = zip(*((p.mean, p.log_variance, p.leading) for p in parts), strict=True)
        return Posterior(*(None if field[0] is None else torch.cat(field) for field in fields))  # type: ignore[arg-type]


class Decoders(Protocol):
    """A bank of decoders, or one that all classes share."""

    @property
    def decoders(self) -> int:
        """How many; 1 is shared."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        ...

    @property
    def activations(self) -> int:
        """Number of values that one decoder pass computes for one latent."""
        ...

    def __call__(
        self, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Decode one latent per class."""
        ...

    def for_inference(self) -> "Decoders":
        """Give the same decoders in the form that runs fastest."""
        ...

    def select(self, classes: Int[Tensor, " groups"]) -> "Decoders":
        """Give the bank whose decoder g is decoder `classes[g]`."""
        ...


class Prior(Protocol):
    """The term of the objective that keeps latents where the prior is."""

    def __call__(
        self, posterior: Posterior, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes"]:
        """Give the term for every image and class, in nats."""
        ...

    def select(self, classes: Int[Tensor, " groups"]) -> "Prior":
        """Give the term whose class g is class `classes[g]`."""
        ...


@final
class KLPrior(nn.Module):
    """KL[q(z) || N(0, I)] (ABS eq. 2)."""

    def forward(
        self, posterior: Posterior, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes"]:
        """Give the divergence of the posterior; the drawn `z` does not matter."""
        del z
        return kl_to_standard_normal(posterior.mean, posterior.log_variance)

    def select(self, classes: Int[Tensor, " groups"]) -> Self:
        """Give itself: the term is the same for every class."""
        del classes
        return self


@final
class DiscriminatorPrior(nn.Module):
    """-log D(z), with a discriminator that tells prior draws from encoded images (E-ABS eq. 3 and 6)."""

    def __init__(self, discriminators: DiscriminatorBank) -> None:
        super().__init__()
        self.discriminators = discriminators

    def forward(
        self, posterior: Posterior, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes"]:
        """Give the term at the drawn `z`."""
        del posterior
        return -nn.functional.logsigmoid(self.discriminators(z))

    def select(self, classes: Int[Tensor, " groups"]) -> "DiscriminatorPrior":
        """Give the term with the discriminators of these classes."""
        if self.discriminators.discriminators == 1:
            return self
        return DiscriminatorPrior(self.discriminators.select(classes))


@final
@dataclass(frozen=True)
class LatentObjective:
    """l_k(x) of a decoder bank and a prior term.

    Attributes:
        decoders: The decoder bank G.
        prior: The prior term.
        beta: Its weight.
        num_classes: K.
        latent_dim: D.
        variational: Whether the variance is optimised too (E-ABS), or only the mean (ABS).
    """

    decoders: Decoders
    prior: Prior
    beta: float
    num_classes: int
    latent_dim: int
    variational: bool
    _curvatures: dict[tuple[torch.device, torch.dtype], Curvature] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def at(
        self, x: Float[Tensor, "batch channels height width"], posterior: Posterior, noise: NoiseStream
    ) -> Float[Tensor, "batch classes"]:
        """Evaluate l_k(x) with one draw of the posterior."""
        reconstruction, prior_term = self.draw(posterior, noise)
        return squared_error(x[:, None], reconstruction) + prior_term

    def draw(
        self, posterior: Posterior, noise: NoiseStream
    ) -> tuple[Float[Tensor, "batch classes channels height width"], Float[Tensor, "batch classes"]]:
        """Draw z: give G_k(z) and the weighted prior term, the two parts of l_k that `x` does not enter."""
        z = posterior.sample(noise)
        return self.decoders(z), self.beta * self.prior(posterior, z)

    def posterior(self, mean: Tensor) -> Posterior:
        """Make the distribution that a random candidate stands for: unit variance around its mean."""
        return Posterior(mean, torch.zeros_like(mean) if self.variational else None)

    def for_inference(self) -> Self:
        """Give the same objective with decoders in the form that runs fastest."""
        return replace(self, decoders=self.decoders.for_inference())

    def select(self, classes: Int[Tensor, " groups"]) -> Self:
        """Give the objective whose class g is class `classes[g]`."""
        return replace(
            self,
            decoders=self.decoders.select(classes),
            prior=self.prior.select(classes),
            num_classes=len(classes),
        )

    def curvature(self, max_bytes: int, *, like: Tensor) -> Curvature:
        """Give what is known of the objective's curvature before any image is; it is measured once."""
        key = (like.device, like.dtype)
        if key not in self._curvatures:
            rows = self.rows_per_chunk(max_bytes, like=like)
            latents = like.new_empty(rows, self.num_classes, self.latent_dim)
            self._curvatures[key] = Curvature.fit(self.decoders, latents=latents)
        return self._curvatures[key]

    def rows_per_chunk(self, max_bytes: int, *, like: Tensor) -> int:
        """Give the number of images whose decoder activations, for all classes, fit `max_bytes`."""
        row_bytes = self.decoders.activations * self.num_classes * like.element_size()
        rows = max(1, max_bytes // row_bytes)
        return min(rows, CPU_ROWS) if like.device.type == "cpu" else rows
