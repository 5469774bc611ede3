"""What inference minimises, for all classes at once.

For every image x and class k, the variational distribution that minimises

    l_k(x) = E_{z ~ N(mean, Sigma)} cost(x, G_k(z)) + beta * prior(z),

where the cost is ||x - G_k(z)||^2 (ABS eq. 2, E-ABS eq. 6) or another negative log-likelihood.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..likelihood import kl_between_normals, kl_to_standard_normal
from ..nets import DiscriminatorBank
from ..randomness import NoiseStream
from .curvature import Curvature
from .observation import Observation, SquaredError

__all__ = [
    "ClassPrior",
    "Decoders",
    "DiscriminatorPrior",
    "KLPrior",
    "LatentObjective",
    "Posterior",
    "Prior",
    "UniformPrior",
]

CPU_ROWS = 32  # more fall out of the cache: twice the time an image at 128


@final
@dataclass(frozen=True)
class Posterior:
    """A variational distribution per image and class: N(mean, diag(exp(log_variance))), or a point.

    Without `log_variance` the latent is the mean itself, and the KL term counts unit variance (ABS eq. 2).
    `leading` says which classes are worth refinement; all are if it is not given. `promise` is what more
    refinement would gain by its own model, in nats: infinite where there was none.
    """

    mean: Float[Tensor, "batch classes latent"]
    log_variance: Float[Tensor, "batch classes latent"] | None = None
    leading: Bool[Tensor, "batch classes"] | None = None
    promise: Float[Tensor, "batch classes"] | None = None

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
        parts = (self.mean, self.log_variance, self.leading, self.promise)
        return Posterior(*(None if part is None else function(part) for part in parts))  # type: ignore[arg-type]

    @staticmethod
    def concatenate(parts: "list[Posterior]") -> "Posterior":
        """Join posteriors of consecutive images."""
        fields = zip(*((p.mean, p.log_variance, p.leading, p.promise) for p in parts), strict=True)
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

    def moments(
        self, *, like: Tensor
    ) -> tuple[Float[Tensor, "#classes #latent"], Float[Tensor, "#classes #latent"]]:
        """Give mean and standard deviation of p(z | class): where candidates are drawn."""
        ...

    def select(self, classes: Int[Tensor, " groups"]) -> "Prior":
        """Give the term whose class g is class `classes[g]`."""
        ...


class _StandardNormal(nn.Module):
    """Abstract: p(z) = N(0, I) for every class."""

    def moments(self, *, like: Tensor) -> tuple[Float[Tensor, "1 1"], Float[Tensor, "1 1"]]:
        """Give 0 and 1."""
        return like.new_zeros(1, 1), like.new_ones(1, 1)


@final
class KLPrior(_StandardNormal):
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
class DiscriminatorPrior(_StandardNormal):
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
class ClassPrior(nn.Module):
    """KL[q(z) || N(mu_y, diag(sigma_y^2))], with the moments of every class learned (Zhang 2020, eq. 28).

    A posterior without variance counts `log_variance_of_points`, the encoder's typical log-variance, which
    the owner keeps. It is the same for every image and class: the term then moves with the latent alone.
    """

    log_variance_of_points: Tensor

    def __init__(self, num_classes: int, latent_dim: int, *, separation: float = 1.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(separation * torch.randn(num_classes, latent_dim))
        self.log_variance = nn.Parameter(torch.zeros(num_classes, latent_dim))
        self.register_buffer("log_variance_of_points", torch.zeros(latent_dim))

    def forward(
        self, posterior: Posterior, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes"]:
        """Give the divergence of the posterior; the drawn `z` does not matter."""
        del z
        log_variance = posterior.log_variance
        if log_variance is None:
            log_variance = self.log_variance_of_points
        return kl_between_normals(posterior.mean, log_variance, self.mean, self.log_variance)

    def moments(
        self, *, like: Tensor
    ) -> tuple[Float[Tensor, "classes latent"], Float[Tensor, "classes latent"]]:
        """Give mu_y and sigma_y."""
        del like
        return self.mean.detach(), (0.5 * self.log_variance.detach()).exp()

    def select(self, classes: Int[Tensor, " groups"]) -> "ClassPrior":
        """Give the term with the moments of these classes, for inference."""
        prior = copy.copy(self)
        prior._parameters = {
            name: nn.Parameter(values.detach()[classes], requires_grad=False)
            for name, values in self.named_parameters()
        }
        return prior


@final
class UniformPrior:
    """No term: the latent is the one that explains the image best, wherever it is (Ghosh et al. 2019, eq. 9).

    Args:
        means: Where the latents of each class are expected, and their scale around it: these place candidates
            and the first steps of a refinement, and do not enter the objective.
        scale: Standard deviation.
    """

    def __init__(self, means: Float[Tensor, "classes latent"], *, scale: float) -> None:
        self.means, self.scale = means, scale

    def __call__(
        self, posterior: Posterior, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes"]:
        """Give 0."""
        del posterior
        return z.new_zeros(z.shape[:2])

    def moments(
        self, *, like: Tensor
    ) -> tuple[Float[Tensor, "classes latent"], Float[Tensor, "classes latent"]]:
        """Give the means and the scale."""
        means = self.means.to(like)
        return means, torch.full_like(means, self.scale)

    def select(self, classes: Int[Tensor, " groups"]) -> "UniformPrior":
        """Give the moments of these classes."""
        return UniformPrior(self.means[classes], scale=self.scale)


@final
@dataclass(frozen=True)
class LatentObjective:
    """l_k(x) of a likelihood, a decoder bank and a prior term.

    Attributes:
        decoders: The decoder bank G.
        prior: The prior term.
        beta: Its weight.
        num_classes: K.
        latent_dim: D.
        variational: Whether the variance is optimised too (E-ABS), or only the mean (ABS).
        observation: The likelihood of the image.
    """

    decoders: Decoders
    prior: Prior
    beta: float
    num_classes: int
    latent_dim: int
    variational: bool
    observation: Observation = field(default_factory=SquaredError)
    _curvatures: dict[tuple[torch.device, torch.dtype], Curvature] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def at(
        self, x: Float[Tensor, "batch channels height width"], posterior: Posterior, noise: NoiseStream
    ) -> Float[Tensor, "batch classes"]:
        """Evaluate l_k(x) with one draw of the posterior."""
        outputs, prior_term = self.draw(posterior, noise)
        return self.observation.cost(x[:, None], outputs) + prior_term

    def draw(
        self, posterior: Posterior, noise: NoiseStream
    ) -> tuple[Float[Tensor, "batch classes channels height width"], Float[Tensor, "batch classes"]]:
        """Draw z: give G_k(z) and the weighted prior term, the two parts of l_k that `x` does not enter."""
        z = posterior.sample(noise)
        return self.decoders(z), self.beta * self.prior(posterior, z)

    def posterior(self, draws: Float[Tensor, "batch classes latent"]) -> Posterior:
        """Make the distributions that candidates stand for: of the prior's variance around a prior draw.

        Args:
            draws: Standard normal noise, which is moved to where the prior of each class is.
        """
        location, scale = self.prior.moments(like=draws)
        mean = location + scale * draws
        if not self.variational:
            return Posterior(mean)
        return Posterior(mean, 2 * scale.log() + torch.zeros_like(mean))

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
            self._curvatures[key] = Curvature.fit(
                self.decoders,
                latents=latents,
                information=self.observation.information,
                moments=self.prior.moments(like=like),
            )
        return self._curvatures[key]

    def rows_per_chunk(self, max_bytes: int, *, like: Tensor) -> int:
        """Give the number of images whose decoder activations, for all classes, fit `max_bytes`."""
        row_bytes = self.decoders.activations * self.num_classes * like.element_size()
        rows = max(1, max_bytes // row_bytes)
        return min(rows, CPU_ROWS) if like.device.type == "cpu" else rows
