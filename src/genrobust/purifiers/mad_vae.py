"""Defense-VAE and MAD-VAE (Wang and Morlock 2020): an autoencoder from adversarial images to clean ones."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._fields import AtLeastOne, AtLeastTwo, ImageShape, NotNegative, Positive, Sizes, check_fields
from ..contract import Classifier
from .base import TrainablePurifier

__all__ = ["DEFENSE_VAE", "MADVAE", "VARIANTS", "MADVAEConfig"]

SMALLEST_SCALE = 1e-4  # least scale of q(z | x), so that its logarithm stays finite


@dataclass(frozen=True, kw_only=True)
class MADVAEConfig:
    """Hyperparameters of MAD-VAE, with the published values; the default is the vanilla Defense-VAE.

    A loss whose weight is 0 is left out. `VARIANTS` holds the four of the paper. `DEFENSE_VAE` is the model
    of Table 4: the code of Defense-VAE's authors leaves out the divergence too, by a beta of 0.

    Attributes:
        num_classes: K, the number of centres.
        input_shape: (C, H, W), with even sides.
        latent_dim: Size of z.
        channels: Maps of the four convolutions of Table 5; the decoder mirrors them.
        kl_weight: beta, the weight of the divergence per latent; the reconstruction loss is per pixel. If
            both were sums, the weight would be 0.1 x 784 / 128, about 0.6.
        classification_weight: Weight of the classifier's loss: alpha = 0.01, or gamma = 0.1 in the combined
            variant.
        proximity_weight: alpha, the weight of the distance to the own class's centre.
        distance_weight: sigma, the weight of the distances to and between the other centres. The published
            code has 1e-4 in the variant without the classifier's loss.
        centre_rate: Rate of SGD for the centres, as in the published code. None learns them by Adam with all
            other parameters; the paper names nothing else.
        max_gradient_norm: Largest norm of a step's gradient, as in the published code.

    Raises:
        ValueError: If a weight is below 0, there are not four convolutions, or a side is odd.
    """

    num_classes: AtLeastTwo = 10
    input_shape: ImageShape = (1, 28, 28)
    latent_dim: AtLeastOne = 128
    channels: Sizes = (64, 64, 128, 256)
    kl_weight: NotNegative = 0.1
    classification_weight: NotNegative = 0.0
    proximity_weight: NotNegative = 0.0
    distance_weight: NotNegative = 0.0
    centre_rate: Positive | None = None
    max_gradient_norm: Positive | None = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.channels) != 4:
            raise ValueError(f"Expected `channels` of four convolutions, but got {self.channels}")
        if any(side % 2 for side in self.input_shape[1:]):
            raise ValueError(f"Expected `input_shape` of even sides, but got {self.input_shape}")
        if self.centre_rate is not None and not self.learns_centres:
            raise ValueError(
                "Expected no `centre_rate` without `proximity_weight` or `distance_weight`, "
                f"but got {self.centre_rate}"
            )

    @property
    def learns_centres(self) -> bool:
        """Whether a loss has the classes' centres in it."""
        return bool(self.proximity_weight or self.distance_weight)

    @property
    def grid(self) -> tuple[int, int]:
        """Sides of the encoder's last map: an eighth of the image's, rounded up."""
        _, height, width = self.input_shape
        return -(-height // 8), -(-width // 8)

    @property
    def padding(self) -> tuple[int, int]:
        """Padding of the second convolution, which leaves four times the grid: 3 for 28 pixels, 1 for 32."""
        _, height, width = self.input_shape
        return 4 * self.grid[0] + 1 - height // 2, 4 * self.grid[1] + 1 - width // 2


VARIANTS: Mapping[str, MADVAEConfig] = MappingProxyType(
    {
        "vanilla": MADVAEConfig(),
        "classification": MADVAEConfig(classification_weight=0.01),
        "proximity": MADVAEConfig(proximity_weight=0.01, distance_weight=1e-5),
        "combined": MADVAEConfig(classification_weight=0.1, proximity_weight=0.01, distance_weight=1e-5),
    }
)

DEFENSE_VAE = MADVAEConfig(kl_weight=0.0)


class Code(NamedTuple):
    """q(z | x) = N(mean, diag(scale^2))."""

    mean: Float[Tensor, "batch latent"]
    scale: Float[Tensor, "batch latent"]

    def kl_per_latent(self) -> Float[Tensor, ""]:
        """Computes KL[q(z | x) || N(0, I)] as a mean over images and latents."""
        variance = self.scale.square()
        return 0.5 * (self.mean.square() + variance - 1 - variance.log()).mean()


@final
class MADVAE(TrainablePurifier):
    """Encodes an image, takes the mean of q(z | x), and decodes it (Wang and Morlock 2020, Table 5).

    It is trained on pairs of an adversarial image x and the clean one: z ~ q(z | x) should decode to the
    clean image (appendix A.4). Section 2.2 defines the other losses. The paper leaves some choices open. We
    chose:

    - Table 5's last row ends at 64 maps. The decoder mirrors the encoder: the last row ends at the image's
      channels, with a sigmoid in place of batch normalisation and ReLU.
    - The second linear layer gives the scale of q(z | x), by softplus.
    - The proximity and distance losses are means over the images of a batch, taken at the sampled z.
    - Images other than 28 x 28: the padding of the second convolution changes, and of its mirror.

    Shapes: x (B, C, H, W), z (B, D).

    Attributes:
        centres: c_i of each class, shape (K, D); None without a loss that needs them.

    Example:
        >>> import torch
        >>> from genrobust.purifiers import MADVAE
        >>> MADVAE()(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 1, 28, 28])
    """

    generates: ClassVar[bool] = True
    caches: ClassVar[frozenset[str]] = frozenset({"_drawn"})

    def __init__(self, config: MADVAEConfig | None = None) -> None:
        config = config or MADVAEConfig()
        super().__init__(input_shape=config.input_shape)
        features = config.channels[-1] * config.grid[0] * config.grid[1]
        self.encoder = _encoder(config)
        self.mean = nn.Linear(features, config.latent_dim)
        self.scale = nn.Linear(features, config.latent_dim)
        self.stem = nn.Linear(config.latent_dim, features)
        self.decoder = _decoder(config)
        shape = (config.num_classes, config.latent_dim)
        self.centres = nn.Parameter(torch.randn(shape)) if config.learns_centres else None
        self.config = config
        self.max_gradient_norm = config.max_gradient_norm
        self._drawn: Tensor | None = None
        self.set_parts_training(False)

    def purify(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the decoded mean of q(z | x)."""
        return self.decode(self.latents(x))

    @property
    def training_only(self) -> frozenset[str]:
        """The layer that gives the scale of q(z | x): an image is purified by its mean."""
        return frozenset({"scale"})

    def latents(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent"]:
        """Computes the mean of q(z | x)."""
        mean: Tensor = self.mean(self._features(x))
        return mean.to(x.dtype)

    def encode(self, x: Float[Tensor, "batch channels height width"]) -> Code:
        """Computes q(z | x)."""
        features = self._features(x)
        mean, scale = self.mean(features), nn.functional.softplus(self.scale(features).to(x.dtype))
        return Code(mean.to(x.dtype), scale + SMALLEST_SCALE)

    def _features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        features: Tensor = self.encoder(x.contiguous(memory_format=torch.channels_last))
        return features.flatten(1)

    def decode(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
        """Decodes latents to images."""
        return self._pixel_logits(z).sigmoid()

    def _pixel_logits(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
        maps = self.stem(z).relu().unflatten(1, (-1, *self.config.grid))
        logits: Tensor = self.decoder(maps.contiguous(memory_format=torch.channels_last))
        return logits.to(z.dtype)

    @property
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates."""
        if self.config.centre_rate is None or self.centres is None:
            return {"autoencoder": list(self.parameters())}
        others = [parameter for parameter in self.parameters() if parameter is not self.centres]
        return {"autoencoder": others, "centres": [self.centres]}

    def make_optimizer(
        self, phase: str, parameters: list[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """Builds Adam, or SGD with rate `centre_rate` for the centres."""
        if phase == "centres" and self.config.centre_rate is not None:
            return torch.optim.SGD(parameters, lr=self.config.centre_rate)
        return super().make_optimizer(phase, parameters, learning_rate)

    def training_loss(
        self,
        phase: str,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        clean: Float[Tensor, "batch channels height width"],
        classifier: Classifier,
    ) -> Float[Tensor, ""]:
        """Computes L_r + beta L_kl and the config's other losses (section 2.2), with one sample of z.

        L_r is the binary cross-entropy between the decoded and the clean image, per pixel. The sample is from
        torch's global generator. The phase of the centres only has their loss, at the latents that the other
        phase drew for the same images: an image is encoded once a step.

        Raises:
            ValueError: If the phase is unknown, or the centres' does not follow the autoencoder's.
        """
        if phase not in self.phases:
            raise ValueError(f"Expected `phase` out of {sorted(self.phases)}, but got {phase!r}")
        if phase == "centres":
            z, self._drawn = self._drawn, None
            if z is None or len(z) != len(y):
                raise ValueError("Expected the phase 'autoencoder' of the same images before 'centres'")
            return self.centre_loss(z, y)
        code = self.encode(x)
        z = code.mean + code.scale * torch.randn_like(code.scale)
        if "centres" in self.phases:
            self._drawn = z.detach()
        logits = self._pixel_logits(z)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, clean)
        loss = loss + self.config.kl_weight * code.kl_per_latent()
        if self.config.classification_weight:
            judged = nn.functional.cross_entropy(classifier(logits.sigmoid()), y)
            loss = loss + self.config.classification_weight * judged
        return loss + self.centre_loss(z, y) if self.config.learns_centres else loss

    def centre_loss(self, z: Float[Tensor, "batch latent"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Computes alpha L_p - sigma L_d as a mean over the latents (section 2.2.2).

        L_p = ||z - c_y||, and L_d is the mean over the other classes j of ||z - c_j|| + ||c_y - c_j||.

        Raises:
            ValueError: If the config has no loss with centres in it.
        """
        if self.centres is None:
            raise ValueError("Expected a config with a proximity or distance loss, but both weights are 0")
        to_latents = (z[:, None] - self.centres).norm(dim=2)
        own = nn.functional.one_hot(y, len(self.centres)).to(z.dtype)
        between = (self.centres[y][:, None] - self.centres).square().sum(2)
        between = (between + own).sqrt() * (1 - own)  # the root of zero has an infinite gradient
        others = ((1 - own) * to_latents + between).sum(1) / (len(self.centres) - 1)
        nearest = (own * to_latents).sum(1)
        loss = self.config.proximity_weight * nearest - self.config.distance_weight * others
        return torch.mean(loss)


def _encoder(config: MADVAEConfig) -> nn.Sequential:
    first, second, third, fourth = config.channels
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    rows = [
        nn.Conv2d(config.input_shape[0], first, 5, 1, 2),
        nn.Conv2d(first, second, 4, 2, config.padding),
        nn.Conv2d(second, third, 4, 2, 1),
        nn.Conv2d(third, fourth, 4, 2, 1),
    ]
    for index, (row, channels) in enumerate(zip(rows, config.channels, strict=True)):
        layers[f"conv{index}"] = row
        layers[f"norm{index}"] = nn.BatchNorm2d(channels)
        layers[f"activation{index}"] = nn.ReLU()
    return nn.Sequential(layers)


def _decoder(config: MADVAEConfig) -> nn.Sequential:
    first, second, third, fourth = config.channels
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    rows = [
        nn.ConvTranspose2d(fourth, third, 4, 2, 1),
        nn.ConvTranspose2d(third, second, 4, 2, 1),
        nn.ConvTranspose2d(second, first, 4, 2, config.padding),
    ]
    for index, (row, channels) in enumerate(zip(rows, (third, second, first), strict=True)):
        layers[f"conv{index}"] = row
        layers[f"norm{index}"] = nn.BatchNorm2d(channels)
        layers[f"activation{index}"] = nn.ReLU()
    layers["pixels"] = nn.ConvTranspose2d(first, config.input_shape[0], 5, 1, 2)
    return nn.Sequential(layers)
