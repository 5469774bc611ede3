"""Deep Bayes (Li 2018): one conditional VAE, and Bayes' rule by importance sampling."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._fields import AtLeastTwo, Positive, check_fields
from .._precision import without_autocast
from ..capabilities import LabelsLatents
from ..likelihoods import (
    OBSERVATION_VARIANCE,
    bernoulli_log_likelihood,
    gaussian_log_likelihood,
    kl_between_normals,
    log_mean_exp,
    normal_log_density,
)
from ..nets.conditionals import GRAPHS, VAE_CNN, Conditional, ConditionalArchitecture, Graph, ImageConditional
from ..randomness import standard_normal
from ._amortized import AmortizedClassifier, SamplingBudget

__all__ = ["DeepBayes", "DeepBayesConfig"]

PUBLISHED_BUDGET = SamplingBudget()


@dataclass(frozen=True, kw_only=True)
class DeepBayesConfig:
    """Hyperparameters of Deep Bayes, with the published values.

    Attributes:
        num_classes: K.
        architecture: Layers of every network; the default is the VAE-CNN of appendix A. The public code of
            the follow-up has 64 latents and 5 x 5 convolutions.
        graph: The factors of p(x, z, y); the default is p(x | z, y) p(z) p(y) (eq. 2).
        likelihood: Likelihood of the image: `"gaussian"` (the paper's l2 loss) or `"bernoulli"`.
        variance: Variance of the Gaussian likelihood; the l2 loss ||x - mean||^2 corresponds to 1/2.
        inference: Settings of the estimate; the default is 10 samples (section 2).
    """

    num_classes: AtLeastTwo = 10
    architecture: ConditionalArchitecture = VAE_CNN
    graph: Graph = GRAPHS["GF"]
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    variance: Positive = OBSERVATION_VARIANCE
    inference: SamplingBudget = PUBLISHED_BUDGET

    def __post_init__(self) -> None:
        check_fields(self)


class _Observation(Protocol):
    """p(x | z, y), given what the decoder puts out."""

    def mean(self, outputs: Tensor) -> Tensor:
        """Returns E[x | z, y]."""
        ...

    def log_likelihood(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Returns log p(x | z, y), summed over pixels."""
        ...


@final
@dataclass(frozen=True)
class _Gaussian:
    variance: float

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def log_likelihood(self, x: Tensor, outputs: Tensor) -> Tensor:
        return gaussian_log_likelihood(x, outputs.sigmoid(), variance=self.variance)


@final
@dataclass(frozen=True)
class _Bernoulli:
    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def log_likelihood(self, x: Tensor, outputs: Tensor) -> Tensor:
        return bernoulli_log_likelihood(x, outputs)


@final
class DeepBayes(LabelsLatents, AmortizedClassifier):
    """Decides by log (1/S) sum_s p(x, z_s, y) / q(z_s | x, y) with z_s ~ q(z | x, y), per class (eq. 3).

    The estimate is differentiable in x through the samples, so that attackers get the model's own gradient.
    If x has no parents in the graph (DFX, DBX), scores bound log p(y | x) in place of log p(x, y).

    Shapes: x (B, C, H, W), latents (B, K, S, D), scores (B, K).

    Attributes:
        validation_budget: The inference budget with which the training loop compares epochs.

    Example:
        >>> import torch
        >>> from genrobust.models import DeepBayes
        >>> model = DeepBayes().with_inference(samples=2)
        >>> model(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    validation_budget: ClassVar[Mapping[str, Any]] = {"samples": 1}

    def __init__(self, config: DeepBayesConfig | None = None) -> None:
        config = config or DeepBayesConfig()
        arch, graph, classes = config.architecture, config.graph, config.num_classes
        super().__init__(input_shape=arch.input_shape, num_classes=classes, budget=config.inference)
        moments = 2 * arch.latent_dim
        self.encoder = Conditional(arch, ("x", "y"), num_classes=classes, outputs=moments)
        self.decoder = ImageConditional(arch, graph.x, num_classes=classes) if graph.x else None
        self.prior = Conditional(arch, graph.z, num_classes=classes, outputs=moments) if graph.z else None
        self.label = Conditional(arch, graph.y, num_classes=classes, outputs=classes) if graph.y else None
        self.observation: _Observation = (
            _Bernoulli() if config.likelihood == "bernoulli" else _Gaussian(config.variance)
        )
        self.config = config
        self.set_parts_training(False)

    def scores_to_logits(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch columns"]:
        """Returns the scores themselves, over which eq. 3 takes the softmax."""
        return scores

    def probabilities(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns p(y | x) by Bayes' rule (eq. 3)."""
        return scores.softmax(1)

    def combine(self, draws: Float[Tensor, "draws batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns the log-mean-exp, as if all importance samples of all draws were one draw's (eq. 3)."""
        return log_mean_exp(draws)

    def log_weights(
        self,
        x: Float[Tensor, "batch channels height width"],
        y: Float[Tensor, "#batch #classes 1 columns"],
        noise: Float[Tensor, "batch classes samples latent"],
    ) -> Float[Tensor, "batch classes samples"]:
        """Computes log p(x, z, y) / q(z | x, y) at z = mean + deviation * noise.

        Args:
            x: Images.
            y: One-hot classes.
            noise: Standard normal noise.
        """
        mean, log_variance = self._posterior(x, y)
        z = mean + (0.5 * log_variance).exp() * noise
        log_q = -0.5 * (noise.square() + log_variance + math.log(2 * math.pi)).sum(-1)
        return self._log_likelihood(x, z, y) + normal_log_density(z, *self._prior(x, y)) - log_q

    def elbo(
        self,
        x: Float[Tensor, "batch channels height width"],
        y: Float[Tensor, "#batch #classes 1 columns"],
        noise: Float[Tensor, "batch classes samples latent"],
    ) -> Float[Tensor, "batch classes samples"]:
        """Computes log p(x, y | z) - KL[q(z | x, y) || p(z | .)] at z = mean + deviation * noise.

        It is the same bound as the mean of `log_weights`, with less variance.
        """
        mean, log_variance = self._posterior(x, y)
        z = mean + (0.5 * log_variance).exp() * noise
        return self._log_likelihood(x, z, y) - kl_between_normals(mean, log_variance, *self._prior(x, y))

    def decode(
        self, z: Float[Tensor, "batch classes samples latent"]
    ) -> Float[Tensor, "batch classes samples channels height width"]:
        """Returns E[x | z, y] for latents of every class.

        Raises:
            ValueError: If the graph gives the image no parents.
        """
        if self.decoder is None:
            raise ValueError(f"Expected a graph that generates `x`, but got {self.config.graph}")
        return self.observation.mean(self.decoder({"z": z, "y": self._classes(z)}))

    @without_autocast
    def reconstruct(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns r(x, y) = E[x | E_q[z | x, y], y] for every class (eq. 5), differentiable in x.

        Raises:
            ValueError: If the graph gives the image no parents.
        """
        x = self.check(x)
        mean, _ = self._posterior(x, self._classes(x))
        return self.decode(mean).squeeze(2)

    @without_autocast
    def sample(
        self, per_class: int, *, generator: torch.Generator
    ) -> Float[Tensor, "classes samples channels height width"]:
        """Draws images of every class: E[x | z, y] for z from its prior.

        Raises:
            ValueError: If the image has no parents in the graph, or is a parent of z.
        """
        if "x" in self.config.graph.z:
            raise ValueError(f"Expected a graph whose latent has a prior, but got {self.config.graph}")
        like = next(self.parameters())
        shape = (1, self.num_classes, per_class, self.config.architecture.latent_dim)
        noise = standard_normal(shape, generator).to(like)
        mean, log_variance = self._prior(noise, self._classes(noise))
        return self.decode(mean + (0.5 * log_variance).exp() * noise)[0]

    @without_autocast
    def encode(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch latent"]:
        """Returns the mean of q(z | x, y)."""
        x = self.check(x)
        classes = nn.functional.one_hot(y, self.num_classes).to(x.dtype)[:, None, None]
        return self._posterior(x, classes)[0][:, 0, 0]

    @property
    def labels_latents(self) -> bool:
        """Whether the latent is a parent of the class in the graph."""
        return "z" in self.config.graph.y

    @without_autocast
    def label_scores(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Returns the mean of log p(k | z, .) over the samples z ~ q(z | x, k), for every class k.

        Raises:
            ValueError: If the graph does not make the latent a parent of the class.
        """
        if not self.labels_latents:
            raise ValueError(f"Expected a graph with p(y | z), but got {self.config.graph}")
        return self._over_samples(self.check(x), self._log_labels).mean(2)

    @property
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates."""
        return {"elbo": list(self.parameters())}

    def training_loss(
        self, phase: str, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Computes the negative ELBO with one sample from torch's global generator."""
        del phase
        classes = nn.functional.one_hot(y, self.num_classes).to(x.dtype)[:, None, None]
        noise = torch.randn((len(x), 1, 1, self.config.architecture.latent_dim), device=x.device)
        return -self.elbo(x, classes, noise).mean()

    def _estimate(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return log_mean_exp(self._over_samples(x, self.log_weights).movedim(2, 0))

    def _over_samples(
        self, x: Tensor, weigh: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "batch classes samples"]:
        """Computes a weight of every sample, in chunks that fit the budget's memory."""
        noise, classes = self._draw(x), self._classes(x)
        samples = noise.shape[2]
        images_at_once, samples_at_once = self._chunk_sizes(x, samples)
        chunked = images_at_once < len(x) or samples_at_once < samples
        again = chunked and torch.is_grad_enabled()
        rows = []
        for first in range(0, len(x), images_at_once):
            chunk = slice(first, first + images_at_once)
            draws = noise[chunk].split(samples_at_once, dim=2)
            weights = [_weighed(weigh, x[chunk], classes, draw, again=again) for draw in draws]
            rows.append(torch.cat(weights, 2))
        return torch.cat(rows)

    def _chunk_sizes(self, x: Tensor, samples: int) -> tuple[int, int]:
        """Returns how many images and samples fit the budget's memory, at least one of each."""
        triples = self.budget.max_bytes // (self.config.architecture.activations * x.element_size())
        images = triples // (self.num_classes * samples)
        return (images, samples) if images else (1, max(1, triples // self.num_classes))

    def _draw(self, x: Tensor) -> Float[Tensor, "batch classes samples latent"]:
        shape = (len(x), self.num_classes, self.budget.samples, self.config.architecture.latent_dim)
        if self.budget.posterior_mean:
            return x.new_zeros((*shape[:2], 1, shape[3]))
        return self.noise.stream(part=self.budget.seed).normal(shape, like=x)

    def _classes(self, like: Tensor) -> Float[Tensor, "1 classes 1 columns"]:
        return torch.eye(self.num_classes, dtype=like.dtype, device=like.device)[None, :, None]

    def _posterior(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder({"x": x, "y": y}).to(x.dtype).chunk(2, -1)
        return mean, log_variance

    def _prior(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.prior is None:
            zeros = x.new_zeros((1, 1, 1, self.config.architecture.latent_dim))
            return zeros, zeros
        mean, log_variance = self.prior({"x": x, "y": y}).to(x.dtype).chunk(2, -1)
        return mean, log_variance

    def _log_likelihood(
        self, x: Tensor, z: Float[Tensor, "batch classes samples latent"], y: Tensor
    ) -> Float[Tensor, "batch classes samples"]:
        """Returns log p(x | .) + log p(y | .), without the factors that the graph lacks."""
        total = z.new_zeros(z.shape[:-1])
        if self.decoder is not None:
            outputs = self.decoder({"x": x, "z": z, "y": y}).to(x.dtype)
            total = total + self.observation.log_likelihood(x[:, None, None], outputs)
        return total + self._log_label(x, z, y)

    def _log_labels(self, x: Tensor, y: Tensor, noise: Tensor) -> Float[Tensor, "batch classes samples"]:
        """Computes log p(y | .) at z = mean + deviation * noise."""
        mean, log_variance = self._posterior(x, y)
        return self._log_label(x, mean + (0.5 * log_variance).exp() * noise, y)

    def _log_label(self, x: Tensor, z: Tensor, y: Tensor) -> Float[Tensor, "batch classes samples"]:
        """Returns log p(y | .), which is uniform if the class has no parents in the graph."""
        if self.label is None:
            return z.new_full(z.shape[:-1], -math.log(self.num_classes))
        log_probabilities: Tensor = self.label({"x": x, "z": z, "y": y}).to(x.dtype).log_softmax(-1)
        return (log_probabilities * y).sum(-1)


def _weighed(
    weigh: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, y: Tensor, noise: Tensor, *, again: bool
) -> Float[Tensor, "batch classes samples"]:
    """Computes weights; of one chunk among several, the backward pass recomputes the activations."""
    if not again:
        return weigh(x, y, noise)
    weights: Tensor = checkpoint(weigh, x, y, noise, use_reentrant=False, preserve_rng_state=False)
    return weights
