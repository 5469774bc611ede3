"""Latent optimisation: search over candidates, then refinement by gradient steps, for all classes at once.

The engine finds, for every image x and class k, the variational distribution that minimises the objective

    l_k(x) = E_{z ~ N(mean, Sigma)} ||x - G_k(z)||^2 + beta * prior(z)          (ABS eq. 2, E-ABS eq. 6).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .likelihood import kl_to_standard_normal, squared_error
from .nets import DecoderBank, DiscriminatorBank
from .randomness import NoiseStream

__all__ = [
    "Codebook",
    "DiscriminatorPrior",
    "InferenceBudget",
    "KLPrior",
    "LatentObjective",
    "Posterior",
    "Prior",
    "refine",
]

CPU_ROWS = 32  # more fall out of the cache: twice the time an image at 128
_TINY = 1e-16  # under Adam's square root: keeps the gradient of the unrolled refinement finite at zero


@dataclass(frozen=True, kw_only=True)
class InferenceBudget:
    """How hard the engine looks for the best latents.

    Attributes:
        candidates: Random latents searched per class (E-ABS section 3.3: 8000); 0 uses the encoder alone.
        drop_least_likely: Share of the candidates that is dropped for being least likely under the prior.
        encoder_proposal: Whether the encoder's output is a candidate too (E-ABS section 3.3).
        steps: Adam steps of the refinement.
        learning_rate: Of those steps (ABS: 0.05; E-ABS does not give its own).
        radius: Latent means are kept within this distance of the origin, if given.
        seed: Of the candidates.
        max_bytes: Bound on the memory of the codebook, and of the activations of one chunk.
    """

    candidates: int = 8000
    drop_least_likely: float = 0.0
    encoder_proposal: bool = True
    steps: int = 50
    learning_rate: float = 0.05
    radius: float | None = None
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
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"Expected `radius` above 0, but got {self.radius}")


@final
@dataclass(frozen=True)
class Posterior:
    """A variational distribution per image and class: N(mean, diag(exp(log_variance))), or a point.

    Without `log_variance` the latent is the mean itself, and the KL term counts unit variance (ABS eq. 2).
    """

    mean: Float[Tensor, "batch classes latent"]
    log_variance: Float[Tensor, "batch classes latent"] | None = None

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
        return Posterior(*(parameter[rows] for parameter in self.parameters))

    @staticmethod
    def concatenate(parts: "list[Posterior]") -> "Posterior":
        """Join posteriors of consecutive images."""
        return Posterior(
            *(torch.cat(tensors) for tensors in zip(*(p.parameters for p in parts), strict=True))
        )


class Prior(Protocol):
    """The term of the objective that keeps latents where the prior is."""

    def __call__(
        self, posterior: Posterior, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes"]:
        """Give the term for every image and class, in nats."""
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


@final
@dataclass(frozen=True)
class LatentObjective:
    """l_k(x) of a decoder bank and a prior term.

    Attributes:
        decoders: The decoder bank G.
        prior: The prior term.
        beta: Its weight.
        variational: Whether the variance is optimised too (E-ABS), or only the mean (ABS).
    """

    decoders: DecoderBank
    prior: Prior
    beta: float
    num_classes: int
    latent_dim: int
    variational: bool

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

    def rows_per_chunk(self, max_bytes: int, *, like: Tensor) -> int:
        """Give the number of images whose decoder activations, for all classes, fit `max_bytes`."""
        row_bytes = self.decoders.activations * self.num_classes * like.element_size()
        rows = max(1, max_bytes // row_bytes)
        return min(rows, CPU_ROWS) if like.device.type == "cpu" else rows


def refine(
    objective: LatentObjective,
    x: Float[Tensor, "batch channels height width"],
    start: Posterior,
    noise: NoiseStream,
    *,
    budget: InferenceBudget,
    steps: int,
    unrolled: int = 0,
) -> Posterior:
    """Run Adam steps on the posterior of every image and class.

    Args:
        objective: What is minimised.
        x: Images.
        start: Where to start; left unchanged.
        noise: A fresh draw is taken at every step, as in E-ABS section 3.3.
        budget: Learning rate and radius.
        steps: How many steps.
        unrolled: How many of them, at the end, keep the graph: the result is a function of `x` through these.
    """
    parameters = tuple(p.detach() for p in start.parameters)
    momenta = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    for step in range(1, steps + 1):
        differentiable = step > steps - unrolled
        images = x if differentiable else x.detach()
        with torch.enable_grad():
            leaves = tuple(p if p.requires_grad else p.detach().requires_grad_() for p in parameters)
            loss = objective.at(images, Posterior(*leaves), noise).sum()
            gradients = torch.autograd.grad(loss, leaves, create_graph=differentiable)
        with torch.set_grad_enabled(differentiable):
            momenta = [
                (torch.lerp(g, m, 0.9), torch.lerp(g.square(), v, 0.999))
                for g, (m, v) in zip(gradients, momenta, strict=True)
            ]
            parameters = tuple(
                p
                - budget.learning_rate
                * (m / (1 - 0.9**step))
                / ((v / (1 - 0.999**step) + _TINY).sqrt() + 1e-8)
                for p, (m, v) in zip(leaves, momenta, strict=True)
            )
            parameters = (_within_radius(parameters[0], budget.radius), *parameters[1:])
    return Posterior(*parameters)


def _within_radius(mean: Tensor, radius: float | None) -> Tensor:
    if radius is None:
        return mean
    norm: Tensor = mean.norm(dim=-1, keepdim=True)
    return mean * (radius / norm.clamp_min(radius))


@final
class Codebook:
    """Random candidates and their decoded images: the search becomes a matrix product.

    ||x - g||^2 = ||x||^2 - 2 x.g + ||g||^2 for every decoded candidate g, so one image costs one product with
    the codebook in place of `candidates` x K decoder passes. The decoded tiles are kept if they fit half of
    `max_bytes`, and decoded anew at every search otherwise.
    """

    def __init__(self, objective: LatentObjective, budget: InferenceBudget, *, like: Tensor) -> None:
        self.objective = objective
        self.means = _draw_candidates(objective, budget).to(device=like.device, dtype=like.dtype)
        generator = torch.Generator().manual_seed(budget.seed + 1)
        noise = torch.randn(self.means.shape, generator=generator)
        self._noise = noise.to(device=like.device, dtype=like.dtype)
        row_bytes = math.prod(objective.decoders.image_shape) * objective.num_classes * like.element_size()
        self._tile = min(1024, max(1, budget.max_bytes // (16 * row_bytes)))
        self._chunk = objective.rows_per_chunk(budget.max_bytes // 4, like=like)
        kept = len(self.means) * row_bytes <= budget.max_bytes // 2
        self._tiles = [self._decode(rows) for rows in self._rows()] if kept else None

    @torch.no_grad()
    def search(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Posterior, Float[Tensor, "batch classes"]]:
        """Find the best candidate of every class, and its objective."""
        pixels = x.flatten(1)
        best = torch.full((len(x), self.objective.num_classes), torch.inf, dtype=x.dtype, device=x.device)
        index = torch.zeros_like(best, dtype=torch.long)
        for rows, (decoded, offset) in zip(self._rows(), self._decoded_tiles(), strict=True):
            # (B, N) @ (K, N, T) -> (K, B, T)
            loss = torch.baddbmm(offset[:, None], pixels.expand(len(decoded), -1, -1), decoded.mT, alpha=-2)
            value, position = loss.min(2)
            better = value.mT < best
            best = torch.where(better, value.mT, best)
            index = torch.where(better, position.mT + rows.start, index)
        return self.objective.posterior(self.means[index]), best + pixels.square().sum(1, keepdim=True)

    def _rows(self) -> Iterator[slice]:
        for start in range(0, len(self.means), self._tile):
            yield slice(start, min(start + self._tile, len(self.means)))

    def _decoded_tiles(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._tiles) if self._tiles is not None else map(self._decode, self._rows())

    @torch.no_grad()
    def _decode(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Decode some candidates for every class: images (K, T, N) and ||g||^2 + beta * prior (K, T)."""
        mean = self.means[rows, None].expand(-1, self.objective.num_classes, -1)
        posterior = self.objective.posterior(mean)
        z = mean if posterior.log_variance is None else mean + self._noise[rows, None]
        decoded = [self.objective.decoders(chunk).flatten(2) for chunk in z.split(self._chunk)]
        images = torch.cat(decoded).transpose(0, 1).contiguous()
        offset = images.square().sum(2) + self.objective.beta * self.objective.prior(posterior, z).mT
        return images, offset


def _draw_candidates(objective: LatentObjective, budget: InferenceBudget) -> Tensor:
    generator = torch.Generator().manual_seed(budget.seed)
    means = torch.randn(budget.candidates, objective.latent_dim, generator=generator)
    kept = max(1, round(budget.candidates * (1 - budget.drop_least_likely)))
    if kept < budget.candidates:
        means = means[means.norm(dim=1).argsort()[:kept]]
    if budget.radius is not None:
        means = _within_radius(means, budget.radius)
    return means
