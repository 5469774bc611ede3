"""Encoders, decoders and discriminators: banks of K networks that run as one module."""

from dataclasses import dataclass
from typing import Literal

from .._fields import AtLeastOne, AtLeastZero, Fraction, ImageShape, Sizes, check_fields

__all__ = ["ARCHITECTURES", "Architecture", "Conv", "architecture"]

Activation = Literal["relu", "leaky_relu", "elu"]


@dataclass(frozen=True)
class Conv:
    """One row of an architecture table: a convolution or a transposed convolution."""

    channels: AtLeastOne
    kernel: AtLeastOne
    stride: AtLeastOne = 1
    padding: AtLeastZero = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def output_size(self, size: int) -> int:
        """Returns the side of the convolution's output for an input of side `size`."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    def transposed_size(self, size: int) -> int:
        """Returns the side of the transposed convolution's output for an input of side `size`."""
        return (size - 1) * self.stride - 2 * self.padding + self.kernel


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Layers of an encoder, a decoder and a discriminator.

    Attributes:
        input_shape: (C, H, W).
        latent_dim: Size of z.
        encoder: Convolutions, each with batch norm and activation. A linear layer to mean and log-variance
            follows them.
        decoder: Transposed convolutions from a 1 x 1 map, each but the last with batch norm and activation.
            The last one ends in a sigmoid.
        decoder_stem: Width of the linear layer before the first transposed convolution; None leaves it out.
        discriminator: Hidden widths of the fully connected discriminator.
        encoder_activation: Activation of the encoder.
        decoder_activation: Activation of the decoder.
        dropout: Dropout rate after the encoder's last convolution and after the decoder's linear layer (E-ABS
            section 4.3 names the places, but not the rate).
    """

    input_shape: ImageShape
    latent_dim: AtLeastOne
    encoder: tuple[Conv, ...]
    decoder: tuple[Conv, ...]
    decoder_stem: AtLeastOne | None = None
    discriminator: Sizes = (256, 128)
    encoder_activation: Activation = "leaky_relu"
    decoder_activation: Activation = "relu"
    dropout: Fraction = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        channels, height, width = self.input_shape
        if height != width:
            raise ValueError(f"Expected square images, but got {self.input_shape}")
        if not self.encoder or not self.decoder:
            raise ValueError("Expected layers in `encoder` and `decoder`, but one of them is empty")
        size = self.decoder_sizes[-1]
        if size != height or self.decoder[-1].channels != channels:
            raise ValueError(
                f"Expected a decoder that ends at {self.input_shape}, "
                f"but it ends at {(self.decoder[-1].channels, size, size)}"
            )
        if self.feature_size < 1:
            raise ValueError(f"Expected an encoder that fits {self.input_shape}, but its last map is empty")

    @property
    def feature_size(self) -> int:
        """Side of the encoder's last map."""
        size = self.input_shape[1]
        for layer in self.encoder:
            size = layer.output_size(size)
        return size

    @property
    def decoder_sizes(self) -> tuple[int, ...]:
        """Side of the map after each transposed convolution."""
        sizes = [1]
        for layer in self.decoder:
            sizes.append(layer.transposed_size(sizes[-1]))
        return tuple(sizes[1:])

    @property
    def decoder_activations(self) -> int:
        """Number of values that one decoder pass computes for one latent; chunk sizes depend on it."""
        norm_and_activation = 3
        return sum(
            norm_and_activation * layer.channels * size**2
            for layer, size in zip(self.decoder, self.decoder_sizes, strict=True)
        )


def _lenet(first: int, second: int, hidden: int) -> Architecture:
    """Returns LeNet with strides in place of pooling, and its mirror image as the decoder."""
    return Architecture(
        input_shape=(1, 28, 28),
        latent_dim=20,
        encoder=(Conv(first, 5, 2, 2), Conv(second, 5, 2), Conv(hidden, 5)),
        decoder_stem=hidden,
        decoder=(Conv(second, 5), Conv(first, 6, 2), Conv(1, 4, 2, 1)),
        encoder_activation="relu",
        dropout=0.0,
    )


ARCHITECTURES: dict[str, Architecture] = {
    # E-ABS Table 9. Its last MNIST row reads "1 1 1" without padding: only 0 ends at 28 x 28.
    "eabs-mnist": Architecture(
        input_shape=(1, 28, 28),
        latent_dim=10,
        encoder=(Conv(16, 5, 2, 2), Conv(32, 5, 2, 2), Conv(64, 5, 2, 2), Conv(64, 4, 1, 1)),
        decoder_stem=32,
        decoder=(Conv(32, 4), Conv(32, 5, 2), Conv(16, 5, 2), Conv(8, 4), Conv(1, 1)),
        discriminator=(256, 128),
    ),
    "eabs-supertraffic": Architecture(
        input_shape=(3, 32, 32),
        latent_dim=16,
        encoder=(Conv(16, 5, 2, 2), Conv(32, 5, 2, 2), Conv(64, 5, 2, 2), Conv(128, 4)),
        decoder_stem=64,
        decoder=(Conv(64, 4), Conv(64, 4, 2, 1), Conv(32, 4, 2, 1), Conv(16, 4, 2, 1), Conv(3, 1)),
        discriminator=(256, 128),
    ),
    "eabs-svhn": Architecture(
        input_shape=(3, 32, 32),
        latent_dim=40,
        encoder=(Conv(32, 5, 2, 2), Conv(64, 5, 2, 2), Conv(128, 5, 2, 2), Conv(128, 4)),
        decoder_stem=64,
        decoder=(Conv(64, 4), Conv(64, 4, 2, 1), Conv(32, 4, 2, 1), Conv(16, 4, 2, 1), Conv(3, 1)),
        discriminator=(512, 256),
    ),
    # Schott et al. 2018; the encoder's fourth convolution (5 x 5 on a 5 x 5 map) is the linear head.
    "abs-mnist": Architecture(
        input_shape=(1, 28, 28),
        latent_dim=8,
        encoder=(Conv(32, 5), Conv(32, 4, 2), Conv(64, 3, 2)),
        decoder=(Conv(32, 4), Conv(16, 5, 2), Conv(16, 5, 2), Conv(1, 4)),
        encoder_activation="elu",
        decoder_activation="elu",
        dropout=0.0,
    ),
    "lenet-mnist": _lenet(6, 16, 120),  # the widths of LeNet-5
    "lenet-wide": _lenet(32, 64, 256),  # later LeNets' widths: 6 and 16 maps are too few for clothes
    # VGG-16's thirteen convolutions with strides in place of pooling, and their mirror image as the decoder.
    "vgg16-cifar": Architecture(
        input_shape=(3, 32, 32),
        latent_dim=10,
        encoder=(
            *(Conv(64, 3, 1, 1), Conv(64, 3, 2, 1)),
            *(Conv(128, 3, 1, 1), Conv(128, 3, 2, 1)),
            *(Conv(256, 3, 1, 1), Conv(256, 3, 1, 1), Conv(256, 3, 2, 1)),
            *(Conv(512, 3, 1, 1), Conv(512, 3, 1, 1), Conv(512, 3, 2, 1)),
            *(Conv(512, 3, 1, 1), Conv(512, 3, 1, 1), Conv(512, 3, 2, 1)),
        ),
        decoder=(
            *(Conv(512, 4, 2, 1), Conv(512, 3, 1, 1), Conv(512, 3, 1, 1)),
            *(Conv(512, 4, 2, 1), Conv(512, 3, 1, 1), Conv(256, 3, 1, 1)),
            *(Conv(256, 4, 2, 1), Conv(256, 3, 1, 1), Conv(128, 3, 1, 1)),
            *(Conv(128, 4, 2, 1), Conv(64, 3, 1, 1)),
            *(Conv(64, 4, 2, 1), Conv(3, 3, 1, 1)),
        ),
        encoder_activation="relu",
        dropout=0.0,
    ),
}


def architecture(name: str) -> Architecture:
    """Returns an architecture by name.

    Raises:
        ValueError: If no architecture has that name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"Expected an architecture out of {sorted(ARCHITECTURES)}, but got {name!r}")
    return ARCHITECTURES[name]
