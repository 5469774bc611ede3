"""The base of ABS and E-ABS, which have one autoencoder per class."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..capabilities import Certifiable
from ..inference import DiscriminatorPrior, InferenceBudget, KLPrior, Posterior, SquaredError
from ..likelihoods import OBSERVATION_VARIANCE, gaussian_log_normalizer, squared_error
from ..nets.architectures import Architecture
from ..nets.banks import DecoderBank, DiscriminatorBank, EncoderBank
from ._latent import LatentClassifier

__all__ = ["SynthesisClassifier"]


class SynthesisClassifier(LatentClassifier, Certifiable):
    """Abstract: a decoder per class, trained by the squared error; a subclass sets the switches.

    Attributes:
        class_balanced: Whether training batches are (B, K, C, H, W), with equally many images of every class.
    """

    def __init__(
        self,
        arch: Architecture,
        *,
        num_classes: int,
        adversarial: bool,
        discriminative: bool,
        variational: bool,
        beta: float,
        gamma: float,
        temperature: float | None,
        probability_floor: float,
        budget: InferenceBudget,
    ) -> None:
        networks = 1 if discriminative else num_classes
        super().__init__(
            encoders=EncoderBank(arch, encoders=networks),
            decoders=DecoderBank(arch, decoders=num_classes),
            prior=DiscriminatorPrior(DiscriminatorBank(arch, discriminators=networks))
            if adversarial
            else KLPrior(),
            observation=SquaredError(),
            input_shape=arch.input_shape,
            num_classes=num_classes,
            latent_dim=arch.latent_dim,
            variational=variational,
            beta=beta,
            log_constant=gaussian_log_normalizer(math.prod(arch.input_shape)) - math.log(num_classes),
            temperature=temperature,
            probability_floor=probability_floor,
            budget=budget,
        )
        self.class_balanced = not discriminative
        self.gamma = gamma

    def certificate_terms(self) -> tuple[float, float]:
        """Returns 1/2 and 0: neither -beta log D(z) nor beta KL is ever negative."""
        return OBSERVATION_VARIANCE, 0.0

    @property
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates (E-ABS Algorithm 1)."""
        autoencoder = [*self.encoders.parameters(), *self.decoders.parameters()]
        if isinstance(self.prior, DiscriminatorPrior):
            return {"autoencoder": autoencoder, "discriminator": list(self.prior.parameters())}
        return {"autoencoder": autoencoder}

    def training_loss(self, phase: str, x: Tensor, y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Computes the loss of one phase, with noise from torch's global generator.

        Args:
            phase: `"autoencoder"` or `"discriminator"`.
            x: Images (B, C, H, W), or (B, K, C, H, W) when `class_balanced`.
            y: Labels; unused when `class_balanced`.
        """
        images = x if self.class_balanced else x[:, None]
        if phase == "discriminator":
            return self._discriminator_loss(images)
        if phase != "autoencoder":
            raise ValueError(f"Expected `phase` out of {sorted(self.phases)}, but got {phase!r}")
        posterior, z = self._encode_sample(images)
        penalty = self.beta * self.prior(posterior, z)
        latents = z.expand(-1, self.num_classes, -1)
        cost = squared_error(images.float(), self.decoders(latents).float())
        if self.class_balanced:  # ABS eq. 1: every image belongs to its decoder's class
            balanced: Tensor = (cost + penalty).mean()
            return balanced
        own: Tensor = (cost.gather(1, y[:, None]) + penalty).mean()  # E-ABS eq. 5
        return own + self.gamma * nn.functional.cross_entropy(-cost, y)

    def _discriminator_loss(self, images: Float[Tensor, "batch classes channels height width"]) -> Tensor:
        if not isinstance(self.prior, DiscriminatorPrior):
            raise ValueError("Expected an adversarial model for the phase 'discriminator'")
        with torch.no_grad():
            encoded = self._encode_sample(images)[1]
            if self.class_balanced:
                encoded = torch.cat([encoded, self._encode_other_classes(images)])
        softplus, discriminate = nn.functional.softplus, self.prior.discriminators
        fake, real = discriminate(encoded), discriminate(torch.randn_like(encoded))
        return self.beta * (softplus(-real).mean() + softplus(fake).mean())

    def _encode_other_classes(
        self, images: Float[Tensor, "batch classes channels height width"]
    ) -> Float[Tensor, "batch classes latent"]:
        """Encodes images of other classes, which class-specific discriminators see too (E-ABS section 4.4).

        The encoders run in evaluation mode, because their batch statistics belong to their own classes.
        """
        shift, training = int(torch.randint(1, self.num_classes, ())), self.encoders.training
        self.encoders.eval()
        encoded = self._encode_sample(images.roll(shift, 1))[1]
        self.encoders.train(training)
        return encoded

    def _encode_sample(
        self, images: Float[Tensor, "batch encoders channels height width"]
    ) -> tuple[Posterior, Float[Tensor, "batch encoders latent"]]:
        mean, log_variance = (part.float() for part in self.encoders(images))
        return Posterior(mean, log_variance), mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
