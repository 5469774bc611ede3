"""GMVAE (Ghosh et al. 2019): one autoencoder whose latents are a Gaussian mixture with one-hot means."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._fields import AtLeastTwo, Positive, check_fields
from .._precision import without_autocast
from ..capabilities import DecidesByEncoder, DecodesMixture, Tempered
from ..contract import Classifier
from ..data import UNLABELLED
from ..inference import LatentObjective, UniformPrior
from ..likelihoods import gaussian_log_normalizer, kl_between_normals, squared_error
from ..nets.pooling import PoolingArchitecture, PoolingEncoder, UpsamplingDecoder
from ..randomness import standard_normal
from ._amortized import AmortizedClassifier, SamplingBudget

__all__ = ["GMVAE", "GMVAEConfig", "NearestMean"]

PUBLISHED_ARCHITECTURE = PoolingArchitecture()
PUBLISHED_BUDGET = SamplingBudget(samples=1, posterior_mean=True)


@dataclass(frozen=True, kw_only=True)
class GMVAEConfig:
    """Hyperparameters of GMVAE, with the published values if the paper states them.

    Attributes:
        num_classes: K.
        architecture: Layers of encoder and decoder. The paper has convolution, max-pooling, upsampling and
            dense layers with ReLU, and K latents (SVHN: 32). It does not state their widths.
        alpha: Weight of the distance to the class's mean (eq. 7). The paper states no value. It is also the
            precision of the mixture: eq. 7 is -log p(x, z | y) for a class N(mu_y, I / (2 alpha)). With 100
            the means are 20 standard deviations apart.
        encoder_variance: Sigma_constant, the variance of q(z | x) in every latent; 1/3000 for MNIST, less for
            more latents (section 4). None lets the encoder compute the variance and adds its entropy to the
            loss (the ablation of Figure 5).
        temperature: Divisor that turns class scores into logits; None calibrates it on validation data.
        inference: Whether scores use the mean of q(z | x) (section 3.3), or a mean over draws.
    """

    num_classes: AtLeastTwo = 10
    architecture: PoolingArchitecture = PUBLISHED_ARCHITECTURE
    alpha: Positive = 100.0
    encoder_variance: Positive | None = 1 / 3000
    temperature: Positive | None = None
    inference: SamplingBudget = PUBLISHED_BUDGET

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_classes > self.architecture.latent_dim:
            raise ValueError(
                f"Expected a latent for each of the classes of `num_classes`, but got {self.num_classes} and "
                f"{self.architecture.latent_dim} latents"
            )

    @property
    def prior_variance(self) -> float:
        """Variance of every class in every latent, by which eq. 7 scales distances."""
        return 1 / (2 * self.alpha)


@final
class GMVAE(DecodesMixture, DecidesByEncoder, Tempered, AmortizedClassifier):
    """Decides for the mean of the mixture that is nearest to the image's encoding (eq. 8).

    Class scores are the bound of eq. 6 on log p(x, y), with all constants:

        -||x - g(z)||^2 - KL[q(z | x) || N(mu_y, I / (2 alpha))] + constant,

    with a Gaussian of variance 1/2 as likelihood, which makes eq. 7 their negative up to a constant. The
    likelihood is the same for every class. It therefore changes log p(x), but no decision. It is taken at the
    mean f(x), so that a score may exceed the bound by the error that the noise adds. `posterior_mean=False`
    estimates the bound itself with draws. Scores are differentiable in x; inference optimises nothing. The
    paper leaves some choices open. We chose:

    - Widths, alpha, rates and epochs: see the config, `PoolingArchitecture` and `training.recipes`.
    - The covariance of the classes is that of eq. 7 in the scores. Thresholds use the covariance that is
      measured on training images (`selective.chi_square_detector`).
    - Eq. 3 asks for log p(z) of an unlabelled image, which we take at the drawn z. This term is weighted by
      how far above chance the batch's labels are. At full weight from the start, it would pin every image to
      its initial mean, against the few labels.
    - `reconstruct` returns g(f(x)) for every class, because x and y are independent given z (eq. 6).

    Shapes: x (B, C, H, W), latents (B, D), scores (B, K).

    Attributes:
        means: mu_1 to mu_K, one-hot and padded with zeros, shape (K, D).
        temperature: Divisor that turns class scores into logits.
        calibrates_temperature: Whether training sets the temperature on validation data.
        validation_budget: The inference budget with which the training loop compares epochs.

    Example:
        >>> import torch
        >>> from genrobust.models import GMVAE
        >>> GMVAE()(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    validation_budget: ClassVar[Mapping[str, Any]] = {"posterior_mean": True}
    means: Tensor
    temperature: Tensor

    def __init__(self, config: GMVAEConfig | None = None) -> None:
        config = config or GMVAEConfig()
        arch = config.architecture
        super().__init__(
            input_shape=arch.input_shape, num_classes=config.num_classes, budget=config.inference
        )
        moments = 1 if config.encoder_variance is not None else 2
        self.encoder = PoolingEncoder(arch, outputs=moments * arch.latent_dim)
        self.decoder = UpsamplingDecoder(arch)
        self.register_buffer("means", torch.eye(config.num_classes, arch.latent_dim))
        self.register_buffer("temperature", torch.tensor(config.temperature or 1.0))
        self.calibrates_temperature = config.temperature is None
        self.config = config
        self.set_parts_training(False)

    def scores_to_logits(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch columns"]:
        """Returns the scores without their constant, divided by the temperature."""
        return (scores - self._log_constant) / self.temperature

    def probabilities(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns p(y | z), the softmax of negative distances to the means over the temperature (eq. 8)."""
        return self.scores_to_logits(scores).softmax(1)

    @without_autocast
    def encode(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch latent"]:
        """Returns f(x), the mean of q(z | x), differentiable in x; the class does not matter."""
        del y
        return self._posterior(self.check(x))[0]

    def distances(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch classes"]:
        """Returns ||z - mu_k||^2 for every class."""
        return (z[:, None] - self.means).square().sum(2)

    @without_autocast
    def reconstruct(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns g(f(x)), the same for every class, differentiable in x."""
        images: Tensor = self.decoder(self.encode(x)[:, None])
        return images.expand(-1, self.num_classes, -1, -1, -1)

    @torch.no_grad()
    @without_autocast
    def sample(
        self, per_class: int, *, generator: torch.Generator
    ) -> Float[Tensor, "classes samples channels height width"]:
        """Draws images of every class: g(z) for z from N(mu_y, I / (2 alpha))."""
        shape = (self.num_classes, per_class, self.config.architecture.latent_dim)
        noise = standard_normal(shape, generator).to(self.means)
        images: Tensor = self.decoder(self.means[:, None] + math.sqrt(self.config.prior_variance) * noise)
        return images

    @property
    def objective(self) -> LatentObjective:
        """The objective ||x - g(z)||^2 of eq. 9, with one problem per mean, which is its start."""
        scale = math.sqrt(self.config.prior_variance)
        return LatentObjective(
            decoders=self.decoder,
            prior=UniformPrior(self.means, scale=scale),
            beta=1.0,
            num_classes=self.num_classes,
            latent_dim=self.config.architecture.latent_dim,
            variational=False,
        )

    def encoder_view(self) -> "NearestMean":
        """Returns the encoder as a separate classifier that shares the weights; the paper attacks it."""
        return NearestMean(self)

    @property
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates."""
        return {"elbo": list(self.parameters())}

    def training_loss(
        self, phase: str, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Computes the mean over images of eq. 7 for labelled images and eq. 3 for unlabelled ones.

        Both are negated and lack constants. They use one draw of z from torch's global generator. In a batch
        of both, log p(z) of eq. 3 is weighted by how far above chance the labels are.

        Args:
            phase: `"elbo"`.
            x: Images.
            y: Classes; -1 for an unlabelled image.
        """
        if phase != "elbo":
            raise ValueError(f"Expected `phase` to be 'elbo', but got {phase!r}")
        mean, log_variance = self._posterior(x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = squared_error(x[:, None], self.decoder(z[:, None]).to(x.dtype))[:, 0]
        labelled = self._penalty(mean, log_variance, self.means[y.clamp_min(0)])
        unlabelled = math.log(self.num_classes) - (-self.config.alpha * self.distances(z)).logsumexp(1)
        unlabelled = self._trust(mean, y) * unlabelled
        if self.config.encoder_variance is None:
            unlabelled = unlabelled - 0.5 * log_variance.sum(1)
        loss: Tensor = (error + torch.where(y == UNLABELLED, unlabelled, labelled)).mean()
        return loss

    def _penalty(self, mean: Tensor, log_variance: Tensor, target: Tensor) -> Float[Tensor, " batch"]:
        """Computes alpha ||f(x) - mu_y||^2, or the divergence if the encoder computes the variance."""
        if self.config.encoder_variance is not None:
            return self.config.alpha * (mean - target).square().sum(1)
        return kl_between_normals(mean, log_variance, target, self._prior_log_variance(target))

    @torch.no_grad()
    def _trust(self, mean: Float[Tensor, "batch latent"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Returns 0 if labelled images are classified no better than by chance, and 1 if all are right."""
        known = y != UNLABELLED
        if not known.any():
            return mean.new_ones(())
        right = (self.distances(mean).argmin(1) == y)[known].to(mean.dtype).mean()
        trust: Tensor = ((self.num_classes * right - 1) / (self.num_classes - 1)).clamp_min(0)
        return trust

    def _prior_log_variance(self, like: Tensor) -> Tensor:
        return torch.full_like(like, math.log(self.config.prior_variance))

    @property
    def _log_constant(self) -> float:
        return gaussian_log_normalizer(math.prod(self.input_shape)) - math.log(self.num_classes)

    def _posterior(self, x: Tensor) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Returns mean and log-variance of q(z | x)."""
        outputs: Tensor = self.encoder(x).to(x.dtype)
        if self.config.encoder_variance is not None:
            return outputs, torch.full_like(outputs, math.log(self.config.encoder_variance))
        mean, log_variance = outputs.chunk(2, 1)
        return mean, log_variance

    def _estimate(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        draws = 1 if self.budget.posterior_mean else self.budget.samples
        shape = (len(x), draws, self.config.architecture.latent_dim)
        if self.budget.posterior_mean:
            noise = x.new_zeros(shape)
        else:
            noise = self.noise.stream(part=self.budget.seed).normal(shape, like=x)
        image_bytes = draws * self.config.architecture.activations * x.element_size()
        rows = max(1, self.budget.max_bytes // image_bytes)
        parts = zip(x.split(rows), noise.split(rows), strict=True)
        return torch.cat([self._bound(*part) for part in parts])

    def _bound(
        self,
        x: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch draws latent"],
    ) -> Float[Tensor, "batch classes"]:
        mean, log_variance = (part[:, None] for part in self._posterior(x))
        z = mean + (0.5 * log_variance).exp() * noise
        error = squared_error(x[:, None], self.decoder(z)).mean(1, keepdim=True)
        divergence = kl_between_normals(mean, log_variance, self.means, self._prior_log_variance(self.means))
        return self._log_constant - error - divergence


@final
class NearestMean(Classifier):
    """GMVAE's encoder alone, whose logits fall with the squared distance to each mean.

    The paper crafts its FGSM, MIM and PGD examples on it (section 4). Its cross-entropy equals that of the
    whole model, because all classes share the likelihood by which the logits differ. An attack on it knows
    everything but the thresholds.

    Attributes:
        model: The whole model.
    """

    def __init__(self, model: GMVAE) -> None:
        super().__init__(input_shape=model.input_shape, num_classes=model.num_classes)
        self.model = model

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Returns -alpha ||f(x) - mu_k||^2 / temperature."""
        distances = self.model.distances(self.model.encode(x))
        return -self.model.config.alpha * distances / self.model.temperature
