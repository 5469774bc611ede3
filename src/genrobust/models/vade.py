"""VaDE as a classifier (Zhang 2020): one VAE whose latents are a Gaussian mixture, a part per class."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..gradients import Automatic
from ..inference import ClassPrior, InferenceBudget, observation
from ..likelihood import kl_between_normals
from ..nets import ARCHITECTURES, Architecture, DecoderBank, EncoderBank
from .latent import LatentClassifier

__all__ = ["VaDEClassifier", "VaDEConfig"]

PUBLISHED_BUDGET = InferenceBudget(candidates=0)
MOMENTUM = 0.05  # of the running mean of the encoder's log-variance


@dataclass(frozen=True, kw_only=True)
class VaDEConfig:
    """Hyperparameters of VaDE, with the published values.

    Attributes:
        num_classes: K.
        architecture: Of encoder and decoder: LeNet with 20 latents (MNIST, Fashion-MNIST), or VGG-16 with 10
            (CIFAR).
        likelihood: Of the image: `"gaussian"` (eq. 29) or `"bernoulli"` (eq. 27, for binary images).
        variance: sigma_x^2 of the Gaussian; None has the decoder give it for every pixel (eq. 17). The paper
            allows both, and assumes a constant one where it bounds the distance of adversarial examples.
        variational: Whether inference optimises the variance of q(z) beside its mean, and draws z. Eq. 35
            optimises the mean alone.
        alpha: Factor of the scores, in nats, within p(y | x) (eq. 36). The paper gives no value: None
            calibrates it on validation data.
        eta: Offset within p(y | x) (eq. 36). The paper refers to ABS, whose value is tied to the scale of its
            scores: 0 by default.
        separation: mu_y starts at so many times a standard normal draw, sigma_y at 1. The paper does not say
            how they start; nearer classes overlap, and stay so.
        inference: The encoder's output is where refinement starts (section 3.4). The paper does not give the
            number of steps: at most 50, as in ABS.
    """

    num_classes: int = 10
    architecture: Architecture = ARCHITECTURES["lenet-mnist"]
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    variance: float | None = None
    variational: bool = False
    alpha: float | None = None
    eta: float = 0.0
    separation: float = 10.0
    inference: InferenceBudget = PUBLISHED_BUDGET

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"Expected `num_classes` of at least 2, but got {self.num_classes}")
        if (self.alpha is not None and not self.alpha > 0) or not (self.eta >= 0 and self.separation >= 0):
            raise ValueError(
                "Expected `alpha` above 0, `eta` and `separation` of at least 0, "
                f"but got {self.alpha}, {self.eta} and {self.separation}"
            )
        observation(self.likelihood, variance=self.variance)


@final
class VaDEClassifier(LatentClassifier):
    """Decides by max over q(z) of log p(x | z) - KL[q(z) || N(mu_y, diag(sigma_y^2))], per class (eq. 35).

    One encoder and one decoder serve all classes, which differ in mu_y and sigma_y, both learned.

    By default q has the mean that is optimised and a variance that is not (eq. 35), and the likelihood is
    taken at the mean (eq. 37). What the paper leaves open, and what was chosen:

    - Eq. 35 leaves the variance to the encoder. Here it is the encoder's typical one (the geometric mean over
      training images), not that of the image: x then enters the score through the likelihood alone. The
      envelope gradient is exact, eq. 38 can hold, and no attacker moves a score by moving a variance.
    - "z obeys N(mu_y, sigma_y^2)" below eq. 35 would ignore the image: z is that of q, as in eq. 31.
    - Eq. 27 halves the Bernoulli likelihood, which would be no bound on log p(x): it is not halved here.
    - The rate of Adam, the number of epochs: see `zoo.recipes`.

    A likelihood at the mean leaves out how it falls around it: the score may exceed log p(x, y), by about
    half the trace of the likelihood's curvature times the variance. `variational=True` gives the bound
    proper, with the variance optimised too, estimated with a draw.

    Inference starts from the encoder's proposal (section 3.4) and ends in an optimum near it, also where an
    attack has moved the proposal: the decision is then the encoder's. The default gradient therefore goes
    through the encoder (`Proposal`): with the envelope's, which takes the optimum as given, PGD misses many
    adversarial examples. `with_inference(candidates=2000)` has inference start from the best of so many
    latents of every class too: it is much nearer to exact, and the default gradient is the envelope's there.

    Shapes: x (B, C, H, W), latents (B, K, D), scores (B, K).

    Attributes:
        class_balanced: Whether training batches are (B, K, C, H, W); they are not.
        validation_budget: What the training loop compares epochs with.

    Example:
        >>> import torch
        >>> from genrobust import VaDEClassifier
        >>> model = VaDEClassifier().with_inference(steps=2)
        >>> model(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    class_balanced = False
    validation_budget: ClassVar[Mapping[str, Any]] = {"candidates": 0, "steps": 1}
    prior: ClassPrior

    def __init__(self, config: VaDEConfig | None = None) -> None:
        config = config or VaDEConfig()
        arch, likelihood = config.architecture, observation(config.likelihood, variance=config.variance)
        super().__init__(
            encoders=EncoderBank(arch, encoders=1),
            decoders=DecoderBank(arch, decoders=1, maps_per_channel=likelihood.maps_per_channel),
            prior=ClassPrior(config.num_classes, arch.latent_dim, separation=config.separation),
            observation=likelihood,
            input_shape=arch.input_shape,
            num_classes=config.num_classes,
            latent_dim=arch.latent_dim,
            variational=config.variational,
            beta=1.0,
            log_constant=-math.log(config.num_classes),
            temperature=None if config.alpha is None else 1 / config.alpha,
            probability_floor=config.eta,
            budget=config.inference,
        )
        self.config = config
        self.gradient = Automatic()

    @property
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates (Algorithm 1)."""
        return {"elbo": list(self.parameters())}

    def training_loss(
        self, phase: str, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Give the mean over images of -log p(x | z) + KL[q(z | x) || p(z | y)] in nats (eq. 27 and 29).

        With one sample z, from torch's global generator. While the parts are in training mode, the running
        mean of the encoder's log-variance is updated too.
        """
        if phase != "elbo":
            raise ValueError(f"Expected `phase` to be 'elbo', but got {phase!r}")
        mean, log_variance = (part.to(x.dtype) for part in self.encoders(x[:, None]))
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        prior_mean, prior_log_variance = self.prior.mean[y, None], self.prior.log_variance[y, None]
        divergence = kl_between_normals(mean, log_variance, prior_mean, prior_log_variance)
        cost = self.observation.cost(x[:, None], self.decoders(z).to(x.dtype))
        if self.encoders.training:
            self._track(log_variance)
        loss: Tensor = (cost + divergence).mean()
        return loss

    @torch.no_grad()
    def _track(self, log_variance: Float[Tensor, "batch 1 latent"]) -> None:
        self.prior.log_variance_of_points.lerp_(log_variance.mean((0, 1)), MOMENTUM)
