"""Encoders, decoders and discriminators: banks of K networks that run as one module."""

import copy
from collections import OrderedDict
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .architectures import Activation, Architecture
from .fused import FusedDecoderBank

__all__ = ["DecoderBank", "DiscriminatorBank", "EncoderBank", "convolutional_features"]


def convolutional_features(arch: Architecture, *, networks: int = 1) -> nn.Sequential:
    """Builds the encoder's convolutions (batch norm, activation, final dropout) as grouped layers."""
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
        encoders: Number of encoders; 1 means that all classes share it.
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
        """Encodes one image per encoder. To encode an image with all of them, expand it: `x[:, None].expand`.

        Raises:
            ValueError: If the number of images differs from the number of encoders.
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
        decoders: Number of decoders; 1 means that all classes share it.
        maps_per_channel: Number of output values in [0, 1] per value of the image. With 2, all first values
            precede all second ones.

    The memory layout is channels-last, because grouped transposed convolutions then run several times faster
    on CPUs.
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
        """Decodes one latent per class; a shared decoder takes any number of classes.

        Raises:
            ValueError: If the number of classes differs from the number of decoders, and that is not 1.
        """
        batch, classes, _ = z.shape
        if self.decoders not in (1, classes):
            raise ValueError(f"Expected latents of {self.decoders} classes, but got {classes}")
        maps = z.reshape(batch * classes // self.decoders, -1, 1, 1)
        images: Tensor = self.layers(_to_channels_last(maps))
        return images.reshape(batch, classes, *self.image_shape)

    @torch.no_grad()
    def for_inference(self) -> FusedDecoderBank:
        """Returns a copy of the decoders in their fastest form; it does not follow the weights."""
        return FusedDecoderBank(self.layers, decoders=self.decoders, activations=self.activations)

    def select(self, classes: Int[Tensor, " groups"]) -> FusedDecoderBank:
        """Returns the fast bank whose decoder g is decoder `classes[g]`; a shared one serves any class."""
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
        """Returns one logit per latent; a shared discriminator takes any number of classes.

        Raises:
            ValueError: If the number of classes differs from the number of discriminators, and that is not 1.
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
        """Returns the bank whose discriminator g is discriminator `classes[g]`; a shared one is unchanged."""
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
