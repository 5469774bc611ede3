"""Defense-VAE and MAD-VAE (Wang and Morlock 2020): an autoencoder from adversarial images to clean ones."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..classifier import Classifier
from ..purification import TrainablePurifier

__all__ = ["MADVAE", "VARIANTS", "MADVAEConfig"]

SMALLEST_SCALE = 1e-4  # of q(z | x), so that its logarithm stays finite


@dataclass(frozen=True, kw_only=True)
class MADVAEConfig:
    """Hyperparameters of MAD-VAE, with the published values; the default is the vanilla Defense-VAE.

    A loss whose weight is 0 is left out; `VARIANTS` holds the four of the paper.

    Attributes:
        num_classes: K, of the centres.
        input_shape: (C, H, W), of even sides.
        latent_dim: Size of z.
        channels: Maps of the four convolutions of Table 5; the decoder mirrors them.
        kl_weight: beta, of the divergence per latent; the reconstruction loss is per pixel. Of sums over both
            it is 0.1 x 784 / 128, about 0.6.
        classification_weight: Of the classifier's loss: alpha = 0.01, in the combined variant gamma = 0.1.
        proximity_weight: alpha, of the distance to the own class's centre.
        distance_weight: sigma, of the distances to and between the other centres. The published code has
            1e-4 in the variant without the classifier's loss.
        centre_rate: The centres are learned with SGD of this rate, as in the published code; None learns them
            with everything else by Adam, which is all that the paper says.
        max_gradient_norm: What the gradient of a step is clipped to, as in the published code.

    Raises:
        ValueError: If a weight is below 0, there are not four convolutions, or a side is odd.
    """

    num_classes: int = 10
    input_shape: tuple[int, int, int] = (1, 28, 28)
    latent_dim: int = 128
    channels: tuple[int, ...] = (64, 64, 128, 256)
    kl_weight: float = 0.1
    classification_weight: float = 0.0
    proximity_weight: float = 0.0
    distance_weight: float = 0.0
    centre_rate: float | None = None
    max_gradient_norm: float | None = 1.0

    def __post_init__(self) -> None:
        weights = {
            name: getattr(self, name)
            for name in ("kl_weight", "classification_weight", "proximity_weight", "distance_weight")
        }
        if not all(weight >= 0 for weight in weights.values()):
            raise ValueError(f"Expected weights of at least 0, but got {weights}")
        if len(self.channels) != 4:
            raise ValueError(f"Expected `channels` of four convolutions, but got {self.channels}")
        if any(side % 2 or side < 2 for side in self.input_shape[1:]):
            raise ValueError(f"Expected `input_shape` of even sides, but got {self.input_shape}")
        if self.centre_rate is not None and not (self.centre_rate > 0 and self.learns_centres):
            raise ValueError(
                "Expected `centre_rate` above 0, and none without `proximity_weight` or `distance_weight`, "
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
        """Of the second convolution, which leaves four times the grid: 3 for 28 pixels, 1 for 32."""
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


class Code(NamedTuple):
    """q(z | x) = N(mean, diag(scale^2))."""

    mean: Float[Tensor, "batch latent"]
    scale: Float[Tensor, "batch latent"]

    def kl_per_latent(self) -> Float[Tensor, ""]:
        """Give KL[q(z | x) || N(0, I)], as a mean over images and latents."""
        variance = self.scale.square()
        return 0.5 * (self.mean.square() + variance - 1 - variance.log()).mean()


@final
class MADVAE(TrainablePurifier):
    """Encodes an image, takes the mean of q(z | x), and decodes it (Wang and Morlock 2020, Table 5).

    Trained on pairs of an adversarial image x and the clean one: z ~ q(z | x) is to decode to the clean image
    (appendix A.4). The losses beside that are section 2.2's. What the paper leaves open, and what was chosen:

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
        >>> from genrobust import MADVAE
        >>> MADVAE()(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 1, 28, 28])
    """

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
        self.set_parts_training(False)

    def purify(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Decode the mean of q(z | x)."""
        return self.decode(self.encode(x).mean)

    def encode(self, x: Float[Tensor, "batch channels height width"]) -> Code:
        """Give q(z | x)."""
        features = self.encoder(x.contiguous(memory_format=torch.channels_last)).flatten(1)
        mean, scale = self.mean(features), nn.functional.softplus(self.scale(features).to(x.dtype))
        return Code(mean.to(x.dtype), scale + SMALLEST_SCALE)

    def decode(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
        """Decode latents to images."""
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
        """Make Adam, or SGD of `centre_rate` for the centres."""
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
        """Give L_r + beta L_kl, and what the config adds to it (section 2.2), with one sample of z.

        L_r is the binary cross-entropy between the decoded and the clean image, per pixel. The sample is from
        torch's global generator. The phase of the centres has their loss alone.

        Raises:
            ValueError: If there is no such phase.
        """
        if phase not in self.phases:
            raise ValueError(f"Expected `phase` out of {sorted(self.phases)}, but got {phase!r}")
        with torch.set_grad_enabled(phase == "autoencoder"):
            code = self.encode(x)
        z = code.mean + code.scale * torch.randn_like(code.scale)
        if phase == "centres":
            return self.centre_loss(z, y)
        logits = self._pixel_logits(z)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, clean)
        loss = loss + self.config.kl_weight * code.kl_per_latent()
        if self.config.classification_weight:
            judged = nn.functional.cross_entropy(classifier(logits.sigmoid()), y)
            loss = loss + self.config.classification_weight * judged
        return loss + self.centre_loss(z, y) if self.config.learns_centres else loss

    def centre_loss(self, z: Float[Tensor, "batch latent"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Give alpha L_p - sigma L_d, a mean over the latents (section 2.2.2).

        L_p = ||z - c_y||, and L_d is the mean over the other classes j of ||z - c_j|| + ||c_y - c_j||.

        Raises:
            ValueError: If the config has no loss with centres in it.
        """
        if self.centres is None:
            raise ValueError("Expected a config with a proximity or distance loss, but both weights are 0")
        to_latents = (z[:, None] - self.centres).norm(dim=2)
        own = nn.functional.one_hot(y, len(self.centres)).to(z.dtype)
        between = (self.centres[y][:, None] - self.centres).square().sum(2)
        between = (between + own).sqrt() * (1 - own)  # no square root of zero, whose gradient is infinite
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
