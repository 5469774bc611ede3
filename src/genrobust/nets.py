"""Encoders, decoders and discriminators: banks of K networks that run as one module."""

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .fused import FusedDecoderBank

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Conv",
    "DecoderBank",
    "DiscriminatorBank",
    "EncoderBank",
    "architecture",
    "convolutional_features",
]

Activation = Literal["relu", "leaky_relu", "elu"]


@dataclass(frozen=True)
class Conv:
    """One row of an architecture table: a convolution or a transposed convolution."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0

    def output_size(self, size: int) -> int:
        """Give the side of the convolution's output for an input of side `size`."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    def transposed_size(self, size: int) -> int:
        """Give the side of the transposed convolution's output for an input of side `size`."""
        return (size - 1) * self.stride - 2 * self.padding + self.kernel


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Layers of an encoder, a decoder and a discriminator.

    Attributes:
        input_shape: (C, H, W).
        latent_dim: Size of z.
        encoder: Convolutions, each with batch norm and activation; one linear layer to mean and log-variance
            follows.
        decoder: Transposed convolutions from a 1 x 1 map, each but the last with batch norm and activation;
            the last ends in a sigmoid.
        decoder_stem: Width of the linear layer before the decoder's first transposed convolution, if any.
        discriminator: Hidden widths of the fully connected discriminator.
        encoder_activation: Activation of the encoder.
        decoder_activation: Activation of the decoder.
        dropout: Rate after the encoder's last convolution and after the decoder's linear layer (E-ABS section
            4.3 places them, and does not give the rate).
    """

    input_shape: tuple[int, int, int]
    latent_dim: int
    encoder: tuple[Conv, ...]
    decoder: tuple[Conv, ...]
    decoder_stem: int | None = None
    discriminator: tuple[int, ...] = (256, 128)
    encoder_activation: Activation = "leaky_relu"
    decoder_activation: Activation = "relu"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        channels, height, width = self.input_shape
        if height != width:
            raise ValueError(f"Expected square images, but got {self.input_shape}")
        if not self.encoder or not self.decoder:
            raise ValueError("Expected layers in `encoder` and `decoder`, but one of them has none")
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
        """Number of values that one decoder pass computes for one latent: what chunking has to bound."""
        norm_and_activation = 3
        return sum(
            norm_and_activation * layer.channels * size**2
            for layer, size in zip(self.decoder, self.decoder_sizes, strict=True)
        )


def _lenet(first: int, second: int, hidden: int) -> Architecture:
    """Give LeNet with strides in place of pooling, and its mirror image as decoder."""
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
    "lenet-wide": _lenet(32, 64, 256),  # those of later LeNets: 6 and 16 maps are too few for clothes
    # VGG-16's thirteen convolutions with strides in place of pooling, and their mirror image as decoder.
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
    """Give an architecture by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"Expected an architecture out of {sorted(ARCHITECTURES)}, but got {name!r}")
    return ARCHITECTURES[name]


def convolutional_features(arch: Architecture, *, networks: int = 1) -> nn.Sequential:
    """Build the encoder's convolutions (batch norm, activation, dropout after the last) as grouped layers."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = arch.input_shape[0]
    for index, layer in enumerate(arch.encoder):
        layers[f"conv{index}"] = nn.Conv2d(
            networks * channels,
            networks * layer.channels,
            layer.kernel,
            layer.stride,
            layer.padding,
            groups=networks,
            bias=False,
        )
        layers[f"norm{index}"] = nn.BatchNorm2d(networks * layer.channels)
        layers[f"activation{index}"] = _activation(arch.encoder_activation)
        channels = layer.channels
    layers["dropout"] = nn.Dropout(arch.dropout)
    return nn.Sequential(layers)


@final
class EncoderBank(nn.Module):
    """K encoders x -> (mean, log-variance) of q(z | x), as grouped convolutions.

    Args:
        arch: The architecture of each encoder.
        encoders: How many; 1 is an encoder that all classes share.
    """

    def __init__(self, arch: Architecture, *, encoders: int) -> None:
        super().__init__()
        self.encoders = encoders
        self.features = convolutional_features(arch, networks=encoders)
        self.head = nn.Conv2d(
            encoders * arch.encoder[-1].channels,
            encoders * 2 * arch.latent_dim,
            arch.feature_size,
            groups=encoders,
        )

    def forward(
        self, x: Float[Tensor, "batch encoders channels height width"]
    ) -> tuple[Float[Tensor, "batch encoders latent"], Float[Tensor, "batch encoders latent"]]:
        """Encode one image per encoder; an image for all is passed as `x[:, None].expand(...)`.

        Raises:
            ValueError: If the number of images is not the number of encoders.
        """
        if x.shape[1] != self.encoders:
            raise ValueError(f"Expected images for {self.encoders} encoders, but got {x.shape[1]}")
        features = self.features(_to_channels_last(x.flatten(1, 2)))
        mean, log_variance = self.head(features).flatten(1).unflatten(1, (self.encoders, 2, -1)).unbind(2)
        return mean, log_variance


@final
class DecoderBank(nn.Module):
    """K decoders z -> image in [0, 1], evaluated as one module of grouped transposed convolutions.

    Args:
        arch: The architecture of each decoder.
        decoders: How many; 1 is a decoder that all classes share.
        maps_per_channel: 2 has the decoder give two values in [0, 1] for every value of the image: all the
            first ones come before the second.

    Memory is laid out channels-last: grouped transposed convolutions run several times faster so on CPUs.
    """

    def __init__(self, arch: Architecture, *, decoders: int, maps_per_channel: int = 1) -> None:
        super().__init__()
        self.decoders = decoders
        image_channels, height, width = arch.input_shape
        self.image_shape = (maps_per_channel * image_channels, height, width)
        self.activations = arch.decoder_activations
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = arch.latent_dim
        if arch.decoder_stem is not None:
            layers["stem"] = nn.Conv2d(decoders * channels, decoders * arch.decoder_stem, 1, groups=decoders)
            layers["dropout"] = nn.Dropout(arch.dropout)
            channels = arch.decoder_stem
        for index, layer in enumerate(arch.decoder):
            last = index == len(arch.decoder) - 1
            maps = layer.channels * (maps_per_channel if last else 1)
            layers[f"conv{index}"] = nn.ConvTranspose2d(
                decoders * channels,
                decoders * maps,
                layer.kernel,
                layer.stride,
                layer.padding,
                groups=decoders,
                bias=last,
            )
            if not last:
                layers[f"norm{index}"] = nn.BatchNorm2d(decoders * layer.channels)
                layers[f"activation{index}"] = _activation(arch.decoder_activation)
            channels = layer.channels
        layers["sigmoid"] = nn.Sigmoid()
        self.layers = nn.Sequential(layers)

    def forward(
        self, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Decode one latent per class; a shared decoder takes any number of classes.

        Raises:
            ValueError: If the number of classes is not the number of decoders (and that is not 1).
        """
        batch, classes, _ = z.shape
        if self.decoders not in (1, classes):
            raise ValueError(f"Expected latents of {self.decoders} classes, but got {classes}")
        maps = z.reshape(batch * classes // self.decoders, -1, 1, 1)
        images: Tensor = self.layers(_to_channels_last(maps))
        return images.reshape(batch, classes, *self.image_shape)

    @torch.no_grad()
    def for_inference(self) -> FusedDecoderBank:
        """Give the same decoders in the form that runs fastest; it follows no later change of weights."""
        return FusedDecoderBank(self.layers, decoders=self.decoders, activations=self.activations)

    def select(self, classes: Int[Tensor, " groups"]) -> FusedDecoderBank:
        """Give, for inference, the bank whose decoder g is decoder `classes[g]`; a shared one takes any."""
        return self.for_inference().select(classes)


@final
class DiscriminatorBank(nn.Module):
    """K fully connected discriminators z -> logit of "z was drawn from the prior"."""

    def __init__(self, arch: Architecture, *, discriminators: int) -> None:
        super().__init__()
        self.discriminators = discriminators
        layers: list[nn.Module] = []
        width = arch.latent_dim
        for hidden in arch.discriminator:
            layers += [
                nn.Conv1d(discriminators * width, discriminators * hidden, 1, groups=discriminators),
                nn.LeakyReLU(),
            ]
            width = hidden
        layers.append(nn.Conv1d(discriminators * width, discriminators, 1, groups=discriminators))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Float[Tensor, "batch classes latent"]) -> Float[Tensor, "batch classes"]:
        """Give one logit per latent; a shared discriminator takes any number of classes.

        Raises:
            ValueError: If the number of classes is not the number of discriminators (and that is not 1).
        """
        batch, classes, _ = z.shape
        if self.discriminators not in (1, classes):
            raise ValueError(f"Expected latents of {self.discriminators} classes, but got {classes}")
        if self.discriminators == 1:
            flat: Tensor = self.layers(z.mT)
            return flat.squeeze(1)
        logits: Tensor = self.layers(z.reshape(batch, -1, 1))
        return logits.squeeze(2)

    def select(self, classes: Int[Tensor, " groups"]) -> "DiscriminatorBank":
        """Give the bank whose discriminator g is this bank's `classes[g]`; a shared one is itself."""
        if self.discriminators == 1:
            return self
        bank = copy.copy(self)
        bank._modules = {}
        bank.discriminators = len(classes)
        bank.layers = nn.Sequential(*(self._select_layer(layer, classes) for layer in self.layers))
        return bank

    def _select_layer(self, layer: nn.Module, classes: Int[Tensor, " groups"]) -> nn.Module:
        if not isinstance(layer, nn.Conv1d):
            return layer
        selected = copy.copy(layer)
        selected._parameters = {
            name: nn.Parameter(
                values.detach().unflatten(0, (self.discriminators, -1))[classes].flatten(0, 1),
                requires_grad=False,
            )
            for name, values in layer.named_parameters()
        }
        selected.groups = len(classes)
        return selected


def _activation(name: Activation) -> nn.Module:
    if name == "relu":
        return nn.ReLU(inplace=True)
    return nn.LeakyReLU(inplace=True) if name == "leaky_relu" else nn.ELU(inplace=True)


def _to_channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)
