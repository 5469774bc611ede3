"""ComDefend (Jia et al. 2019), which compresses an image to few bits and reconstructs it."""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._fields import AtLeastOne, ImageShape, NotNegative, Sizes, check_fields
from ..contract import Classifier
from ..gradients import straight_through
from .base import TrainablePurifier

__all__ = ["ComDefend", "ComDefendConfig", "binarize"]


@dataclass(frozen=True, kw_only=True)
class ComDefendConfig:
    """Hyperparameters of ComDefend, with the published values.

    Attributes:
        input_shape: (C, H, W).
        bits: Bits of the code per pixel and channel: 8 bits become 4.
        compression: Maps of the 3 x 3 convolutions before the code.
        reconstruction: Maps of the 3 x 3 convolutions between the code and the image.
        noise_std: phi, the standard deviation of the Gaussian noise on the code in training. It drives the
            code away from 0, where its bits would not survive.
        code_weight: lambda, the weight of the squared norm of the code.

    Raises:
        ValueError: If there are no bits, or a weight or the noise is below 0.
    """

    input_shape: ImageShape = (1, 28, 28)
    bits: AtLeastOne = 4
    compression: Sizes = (16, 32, 64, 128, 256, 128, 64, 32)
    reconstruction: Sizes = (32, 64, 128, 256, 128, 64, 32, 16)
    noise_std: NotNegative = 20.0
    code_weight: NotNegative = 1e-4

    def __post_init__(self) -> None:
        check_fields(self)


def binarize(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns 1 for values above 1/2 and 0 for others, with the gradient of the values themselves."""
    return straight_through(values, (values > 0.5).to(values.dtype))


@final
class ComDefend(TrainablePurifier):
    """Compresses an image to a binary code and reconstructs it, which removes small perturbations.

    The compact code is `compress(x)`, real numbers per pixel. In training, noise of standard deviation 20 is
    subtracted from it, and a sigmoid makes it near-binary. When images are purified there is no noise, and
    the sigmoid is rounded. The derivative of the rounding is zero nearly everywhere, so that its gradient is
    the straight-through estimator's. ComDefend is trained on clean images alone, without a classifier. It
    therefore composes with any: `Purified(comdefend, classifier)` (Zhang et al. 2020, Tables 5 to 7).

    The penalised code is the sigmoid's. The squared norms are sums over an image and means over a batch.
    Every convolution but the last of each network has batch normalisation and ELU. The published work states
    these points only in figures, and also the widths for grey images, whose code has 4 bits per pixel.

    Example:
        >>> import torch
        >>> from genrobust.purifiers import ComDefend
        >>> ComDefend()(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(self, config: ComDefendConfig | None = None) -> None:
        config = config or ComDefendConfig()
        super().__init__(input_shape=config.input_shape)
        channels = config.input_shape[0]
        bits = config.bits * channels
        self.compression = _convolutions((channels, *config.compression, bits))
        self.reconstruction = _convolutions((bits, *config.reconstruction, channels))
        self.config = config
        self.set_parts_training(False)

    def purify(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns images reconstructed from their binary codes."""
        return self.reconstruct(binarize(self.compress(x).sigmoid()))

    def compress(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch bits height width"]:
        """Returns the code before the sigmoid."""
        code: Tensor = self.compression(x.contiguous(memory_format=torch.channels_last))
        return code.to(x.dtype)

    def reconstruct(
        self, code: Float[Tensor, "batch bits height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the images of codes in [0, 1]."""
        pixels: Tensor = self.reconstruction(code)
        return pixels.to(code.dtype).sigmoid()

    @property
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates."""
        return {"autoencoder": list(self.parameters())}

    def training_loss(
        self,
        phase: str,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        clean: Float[Tensor, "batch channels height width"],
        classifier: Classifier,
    ) -> Float[Tensor, ""]:
        """Computes ||reconstruction - clean||^2 / 2 + lambda ||code||^2 as a mean over images.

        The noise on the code is from torch's global generator.

        Raises:
            ValueError: If the phase is unknown.
        """
        del y, classifier
        if phase not in self.phases:
            raise ValueError(f"Expected `phase` out of {sorted(self.phases)}, but got {phase!r}")
        code = self.compress(x)
        code = (code - self.config.noise_std * torch.randn_like(code)).sigmoid()
        error = (self.reconstruct(code) - clean).square().flatten(1).sum(1)
        return (0.5 * error + self.config.code_weight * code.square().flatten(1).sum(1)).mean()


def _convolutions(channels: tuple[int, ...]) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last = len(channels) - 2
    for index, (before, after) in enumerate(pairwise(channels)):
        layers[f"conv{index}"] = nn.Conv2d(before, after, 3, padding=1)
        if index < last:
            layers[f"norm{index}"] = nn.BatchNorm2d(after)
            layers[f"activation{index}"] = nn.ELU()
    return nn.Sequential(layers)
