"""The sizes of our models, which follow from the shape of the images and from tables in `schedules`."""

import math
from dataclasses import replace

from ..data import DatasetInfo
from ..nets.architectures import Architecture, Conv, architecture
from ..nets.conditionals import VAE_CNN, VAE_MLP, ConditionalArchitecture
from ..nets.denoisers import DenoiserArchitecture
from ..nets.pooling import PoolingArchitecture
from .schedules import ARCHITECTURES, NARROWED, POOLING

__all__ = [
    "conditional_sizes",
    "denoiser_sizes",
    "fitted",
    "narrowed",
    "pooling_sizes",
    "synthesis_sizes",
    "variance_of_pixels",
    "width_share",
]

_MNIST_VALUES = 28 * 28


def width_share(info: DatasetInfo) -> int:
    """Returns the number by which widths are divided: above 1 for a data set of few images."""
    return NARROWED.get(info.name, 1)


def synthesis_sizes(info: DatasetInfo) -> Architecture:
    """Returns the sizes of E-ABS Table 9: for grey images of 28 x 28 pixels, and for others."""
    if info.input_shape == (1, 28, 28):
        return architecture("eabs-mnist")
    return fitted(architecture(ARCHITECTURES.get(("eabs", info.name), "eabs-svhn")), info.input_shape)


def conditional_sizes(info: DatasetInfo, *, convolutional: bool) -> ConditionalArchitecture:
    """Returns the sizes of Li 2018, appendix A."""
    arch, share = VAE_CNN if convolutional else VAE_MLP, width_share(info)
    return replace(
        arch,
        input_shape=info.input_shape,
        channels=tuple(width // share for width in arch.channels),
        hidden=tuple(width // share for width in arch.hidden),
    )


def denoiser_sizes(info: DatasetInfo) -> DenoiserArchitecture:
    """Returns the sizes of a denoiser: 64 maps for grey images, 128 for colour."""
    maps = 64 if info.input_shape[0] == 1 else 128
    return DenoiserArchitecture(input_shape=info.input_shape, channels=(maps, maps))


def pooling_sizes(info: DatasetInfo) -> PoolingArchitecture:
    """Returns the sizes of a GMVAE with a latent a class, and at least 10."""
    arch = PoolingArchitecture(input_shape=info.input_shape, latent_dim=max(10, info.num_classes))
    return replace(arch, **POOLING.get(info.name, {}))


def variance_of_pixels(info: DatasetInfo) -> float:
    """Returns the variance of a VaDE's pixels: 1/2 for 28 x 28 values, and in proportion for more."""
    return max(1, round(math.prod(info.input_shape) / _MNIST_VALUES)) / 2


def fitted(arch: Architecture, shape: tuple[int, int, int]) -> Architecture:
    """Returns an architecture for square images of another size.

    The decoder's first layer starts from another size, and its last layer adds the pixels that doubling does
    not reach. An encoder's kernel is at most as large as its input map.

    Raises:
        ValueError: If the images are not square, or too small.
    """
    channels, height, width = shape
    if height != width:
        raise ValueError(f"Expected square images, but got {shape}")
    encoder, size = [], height
    for layer in arch.encoder:
        encoder.append(replace(layer, kernel=min(layer.kernel, size + 2 * layer.padding)))
        size = encoder[-1].output_size(size)
    first, *middle, last = arch.decoder
    for start in range(height, 0, -1):
        size = start
        for layer in middle:
            size = layer.transposed_size(size)
        kernel = height - size + 1 + 2 * last.padding
        if size <= height:
            first = replace(first, kernel=start + 2 * first.padding)
            last = replace(last, channels=channels, kernel=kernel)
            return replace(arch, input_shape=shape, encoder=tuple(encoder), decoder=(first, *middle, last))
    raise ValueError(f"Expected larger images for these layers, but got {shape}")


def narrowed(arch: Architecture, share: int) -> Architecture:
    """Returns an architecture with maps divided by a number."""

    def narrow(layers: tuple[Conv, ...]) -> tuple[Conv, ...]:
        return tuple(replace(layer, channels=layer.channels // share) for layer in layers)

    *hidden, last = arch.decoder
    return replace(arch, encoder=narrow(arch.encoder), decoder=(*narrow(tuple(hidden)), last))
