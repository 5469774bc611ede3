"""The objective that inference minimises, for all classes at once.

For every image x and class k, inference searches the variational distribution that minimises

    l_k(x) = E_{z ~ N(mean, Sigma)} cost(x, G_k(z)) + beta * prior(z).

The cost is ||x - G_k(z)||^2 (ABS eq. 2, E-ABS eq. 6) or another negative log-likelihood.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .._brief import one_line
from ..likelihoods import kl_between_normals, kl_to_standard_normal
from ..nets.banks import DiscriminatorBank
from ..randomness import NoiseStream
from .budget import InferenceBudget, Search, Strategy
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

CPU_ROWS = 32  # more rows no longer fit the cache: 128 take twice the time per image


@final
@dataclass(frozen=True)
class Posterior:
    """A variational distribution per image and class: N(mean, diag(exp(log_variance))), or a point.

    Without `log_variance` the latent is the mean itself, and the KL term assumes unit variance (ABS eq. 2).
    `leading` holds the classes to refine; None refines all. `promise` is the gain in nats that the refinement
    predicts for further steps; it is infinite for classes that were not refined.
    """

    mean: Float[Tensor, "batch classes latent"]
    log_variance: Float[Tensor, "batch classes latent"] | None = None
    leading: Bool[Tensor, "batch classes"] | None = None
    promise: Float[Tensor, "batch classes"] | None = None

    __repr__ = one_line

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that the refinement optimises."""
        return (self.mean,) if self.log_variance is None else (self.mean, self.log_variance)

    def sample(self, noise: NoiseStream) -> Float[Tensor, "batch classes latent"]:
        """Draws z by the reparameterisation trick."""
        if self.log_variance is None:
            return self.mean
        return self.at(noise.normal(self.mean.shape, like=self.mean))

    def at(self, draw: Float[Tensor, "batch classes latent"]) -> Float[Tensor, "batch classes latent"]:
        """Returns z for standard normal noise; the mean of a point."""
        if self.log_variance is None:
            return self.mean
        return self.mean + (0.5 * self.log_variance).exp() * draw

    def where(self, condition: Bool[Tensor, "batch classes"], other: "Posterior") -> "Posterior":
        """Returns this posterior where `condition` is true, and `other` elsewhere."""

        def chosen(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if mine is None or theirs is None:
                return None
            return torch.where(condition[..., None] if mine.ndim == 3 else condition, mine, theirs)

        return Posterior(*(chosen(*pair) for pair in zip(self._fields, other._fields, strict=True)))  # type: ignore[arg-type]

    def rows(self, rows: slice) -> "Posterior":
        """Returns the posterior of some images of the batch."""
        return self._map(lambda part: part[rows])

    def detach(self) -> "Posterior":
        """Returns the same values without their graph."""
        return self._map(Tensor.detach)

    @property
    def _fields(self) -> tuple[Tensor | None, ...]:
        return (self.mean, self.log_variance, self.leading, self.promise)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Posterior":
        return Posterior(*(None if part is None else function(part) for part in self._fields))  # type: ignore[arg-type]

    @staticmethod
    def concatenate(parts: "list[Posterior]") -> "Posterior":
        """Joins posteriors of consecutive images."""
        fields = zip(*(part._fields for part in parts), strict=True)
        return Posterior(*(None if field[0] is None else torch.cat(field) for field in fields))  # type: ignore[arg-type]


class Decoders(Protocol):
    """A bank of decoders: one per class, or a single one that all classes share."""

    @property
    def decoders(self) -> int:
        """Number of decoders; 1 means that all classes share it."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        ...

    @property
    def activations(self) -> int:
        """Number of values that one decoder computes for one latent."""
        ...

    def __call__(
        self, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Decodes one latent per class."""
        ...

    def for_inference(self) -> "Decoders":
        """Returns the same decoders in their fastest form."""
        ...

    def select(self, classes: Int[Tensor, " groups"]) -> "Decoders":
        """Returns the bank whose decoder g is decoder `classes[g]`."""
        ...


class Prior(Protocol):
    """The term of the objective that keeps latents near the prior."""

    @property
    def rewards_variance(self) -> bool:
        """Whether the term falls as a narrow posterior widens; otherwise a point is the best posterior."""
        ...

    def __call__(
        self, posterior: Posterior, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns the term for every image and class, in nats."""
        ...

    def moments(
        self, *, like: Tensor
    ) -> tuple[Float[Tensor, "#classes #latent"], Float[Tensor, "#classes #latent"]]:
        """Returns mean and standard deviation of p(z | class), from which candidates are drawn."""
        ...

    def select(self, classes: Int[Tensor, " groups"]) -> "Prior":
        """Returns the term whose class g is class `classes[g]`."""
        ...


class _StandardNormal(nn.Module):
    """Abstract: p(z) = N(0, I) for every class."""

    def moments(self, *, like: Tensor) -> tuple[Float[Tensor, "1 1"], Float[Tensor, "1 1"]]:
        """Returns 0 and 1."""
        return like.new_zeros(1, 1), like.new_ones(1, 1)


@final
class KLPrior(_StandardNormal):
    """KL[q(z) || N(0, I)] (ABS eq. 2)."""

    rewards_variance = True

    def forward(
        self, posterior: Posterior, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns the divergence of the posterior; the drawn `z` does not matter."""
        del z
        return kl_to_standard_normal(posterior.mean, posterior.log_variance)

    def select(self, classes: Int[Tensor, " groups"]) -> Self:
        """Returns this term, which is the same for every class."""
        del classes
        return self


@final
class DiscriminatorPrior(_StandardNormal):
    """-log D(z), with a discriminator that tells prior draws from encoded images (E-ABS eq. 3 and 6)."""

    rewards_variance = False

    def __init__(self, discriminators: DiscriminatorBank) -> None:
        super().__init__()
        self.discriminators = discriminators

    def forward(
        self, posterior: Posterior, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns the term at the drawn `z`."""
        del posterior
        return -nn.functional.logsigmoid(self.discriminators(z))

    def select(self, classes: Int[Tensor, " groups"]) -> "DiscriminatorPrior":
        """Returns the term with the discriminators of these classes."""
        if self.discriminators.discriminators == 1:
            return self
        return DiscriminatorPrior(self.discriminators.select(classes))


@final
class ClassPrior(nn.Module):
    """KL[q(z) || N(mu_y, diag(sigma_y^2))] with learned moments for every class (Zhang 2020, eq. 28).

    For a posterior without variance the term uses `log_variance_of_points`, the encoder's typical
    log-variance, which the owning model keeps. It is the same for every image and class, so that the term
    then changes with the latent alone.
    """

    rewards_variance = True
    log_variance_of_points: Tensor

    def __init__(self, num_classes: int, latent_dim: int, *, separation: float = 1.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(separation * torch.randn(num_classes, latent_dim))
        self.log_variance = nn.Parameter(torch.zeros(num_classes, latent_dim))
        self.register_buffer("log_variance_of_points", torch.zeros(latent_dim))

    def forward(
        self, posterior: Posterior, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns the divergence of the posterior; the drawn `z` does not matter."""
        del z
        log_variance = posterior.log_variance
        if log_variance is None:
            log_variance = self.log_variance_of_points
        return kl_between_normals(posterior.mean, log_variance, self.mean, self.log_variance)

    def moments(
        self, *, like: Tensor
    ) -> tuple[Float[Tensor, "classes latent"], Float[Tensor, "classes latent"]]:
        """Returns mu_y and sigma_y."""
        del like
        return self.mean.detach(), (0.5 * self.log_variance.detach()).exp()

    def select(self, classes: Int[Tensor, " groups"]) -> "ClassPrior":
        """Returns the term with the moments of these classes, for inference."""
        prior = copy.copy(self)
        prior._parameters = {
            name: nn.Parameter(values.detach()[classes], requires_grad=False)
            for name, values in self.named_parameters()
        }
        return prior


@final
class UniformPrior:
    """No term: inference finds the latent that explains the image best (Ghosh et al. 2019, eq. 9).

    `means` and `scale` place the candidates and scale the first steps of a refinement. They do not enter the
    objective.

    Args:
        means: Expected latent of each class.
        scale: Standard deviation of the latents around it.
    """

    rewards_variance = False

    def __init__(self, means: Float[Tensor, "classes latent"], *, scale: float) -> None:
        self.means, self.scale = means, scale

    def __call__(
        self, posterior: Posterior, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns 0."""
        del posterior
        return z.new_zeros(z.shape[:2])

    def moments(
        self, *, like: Tensor
    ) -> tuple[Float[Tensor, "classes latent"], Float[Tensor, "classes latent"]]:
        """Returns the means and the scale."""
        means = self.means.to(like)
        return means, torch.full_like(means, self.scale)

    def select(self, classes: Int[Tensor, " groups"]) -> "UniformPrior":
        """Returns the moments of these classes."""
        return UniformPrior(self.means[classes], scale=self.scale)


@final
@dataclass(frozen=True)
class LatentObjective:
    """The objective l_k(x), made of a likelihood, a decoder bank and a prior term.

    Attributes:
        decoders: The decoder bank G.
        prior: The prior term.
        beta: Weight of the prior term.
        num_classes: K.
        latent_dim: D.
        variational: Whether inference optimises the variance too (E-ABS), or only the mean (ABS).
        observation: The likelihood of the image.
        spread: The log-variance of a candidate of the search `"points"`: what the encoder typically gives.
            None for a model that optimises the mean alone.
    """

    decoders: Decoders
    prior: Prior
    beta: float
    num_classes: int
    latent_dim: int
    variational: bool
    observation: Observation = field(default_factory=SquaredError)
    spread: Float[Tensor, "#classes latent"] | None = field(default=None, repr=False, compare=False)
    _curvatures: dict[tuple[torch.device, torch.dtype], Curvature] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    __repr__ = one_line

    def at(
        self, x: Float[Tensor, "batch channels height width"], posterior: Posterior, noise: NoiseStream
    ) -> Float[Tensor, "batch classes"]:
        """Evaluates l_k(x) with one draw of the posterior."""
        outputs, prior_term = self.draw(posterior, noise)
        return self.observation.cost(x[:, None], outputs) + prior_term

    def expected(
        self,
        x: Float[Tensor, "batch channels height width"],
        posterior: Posterior,
        draws: Float[Tensor, "draws batch classes latent"] | None,
    ) -> Float[Tensor, "batch classes"]:
        """Evaluates l_k(x) by the mean over given draws; None for a point."""
        points = [posterior.mean] if draws is None else [posterior.at(draw) for draw in draws]
        losses = [
            self.observation.cost(x[:, None], self.decoders(z)) + self.beta * self.prior(posterior, z)
            for z in points
        ]
        return torch.stack(losses).mean(0)

    def draws(self, count: int, noise: NoiseStream, *, like: Posterior) -> Tensor | None:
        """Draws the noise of `expected`, shape (count, B, K, D); None if posteriors are points."""
        if not self.variational:
            return None
        return torch.stack([noise.normal(like.mean.shape, like=like.mean) for _ in range(count)])

    def common_draws(self, budget: InferenceBudget, noise: NoiseStream, *, like: Posterior) -> Tensor | None:
        """Draws the noise with which `expected` compares posteriors; None if the means are compared."""
        if self.method(budget) == "mean":
            return None
        return self.draws(budget.expectation_draws, noise, like=like)

    def draw(
        self, posterior: Posterior, noise: NoiseStream
    ) -> tuple[Float[Tensor, "batch classes channels height width"], Float[Tensor, "batch classes"]]:
        """Draws z and returns the two parts of l_k without `x`: G_k(z) and the weighted prior term."""
        z = posterior.sample(noise)
        return self.decoders(z), self.beta * self.prior(posterior, z)

    def posterior(
        self, draws: Float[Tensor, "batch classes latent"], *, search: Search = "points"
    ) -> Posterior:
        """Builds candidates: each has a prior draw as mean, and the variance that the search gives it.

        Args:
            draws: Standard normal noise, which is moved to the prior of each class.
            search: `"points"` gives the encoder's typical variance, `"distributions"` the prior's.
        """
        location, scale = self.prior.moments(like=draws)
        mean = location + scale * draws
        if not self.variational:
            return Posterior(mean)
        spread = None if search == "distributions" else self.spread
        log_variance = 2 * scale.log() if spread is None else spread
        return Posterior(mean, log_variance + torch.zeros_like(mean))

    def for_inference(self) -> Self:
        """Returns the same objective with decoders in their fastest form."""
        return replace(self, decoders=self.decoders.for_inference())

    def select(self, classes: Int[Tensor, " groups"]) -> Self:
        """Returns the objective whose class g is class `classes[g]`."""
        return replace(
            self,
            decoders=self.decoders.select(classes),
            prior=self.prior.select(classes),
            num_classes=len(classes),
            spread=self.spread if self.spread is None or len(self.spread) == 1 else self.spread[classes],
        )

    def method(self, budget: InferenceBudget) -> Strategy:
        """Returns the refinement method that a budget means for this objective."""
        rewarded = self.prior.rewards_variance
        return budget.refines_with(variational=self.variational, rewards_variance=rewarded)

    def curvature(self, max_bytes: int, *, like: Tensor) -> Curvature:
        """Returns the curvature, which does not depend on the image and is measured only once."""
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
        """Returns the number of images whose decoder activations, for all classes, fit `max_bytes`."""
        row_bytes = self.decoders.activations * self.num_classes * like.element_size()
        rows = max(1, max_bytes // row_bytes)
        return min(rows, CPU_ROWS) if like.device.type == "cpu" else rows
