"""Decoder banks in their fastest form: folded norms, sub-pixel convolutions, no weight gradients.

They equal the training form up to rounding. A transposed convolution of stride s is an ordinary convolution
that computes the s x s phases of its output as channels, followed by a pixel shuffle (Shi et al. 2016,
section 3.2). On CPUs this form is the faster one where the output has few channels, and the slower one where
many of its taps are zero. An ELU runs faster without the scalar `expm1`.
"""

import copy
import math
from typing import Any, Self, TypeVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["FusedDecoderBank"]

FULL_CHANNELS = 16  # channels per vector: a convolution with fewer outputs wastes the rest of the vector
MAX_PHASES = 4
FEW_CHANNELS = 4
HALF_CHANNELS = 8  # with fewer outputs, a transposed convolution wastes more of the vector than phases do
WASTE = 1.5  # a sub-pixel convolution with more taps per tap of the kernel than this is the slower form

Layer = TypeVar("Layer", bound="_Layer")


@final
class FusedDecoderBank(nn.Module):
    """K decoders z -> image in [0, 1] for inference, with the interface of a `DecoderBank`.

    It holds a copy of the weights. Build another one when they change.
    """

    def __init__(self, layers: nn.Sequential, *, decoders: int, activations: int) -> None:
        super().__init__()
        self.decoders = decoders
        self.activations = activations
        first, *rest = _stages(layers)
        self.entry = _FusedEntry(first, decoders=decoders)
        convolutions: list[_Convolution] = []
        last: _FusedEntry | _Convolution = self.entry
        for stage in rest:
            last = _convolution(stage, decoders=decoders, size=last.size)
            convolutions.append(last)
        self.convolutions = nn.ModuleList(convolutions)
        self.image_shape = (last.channels, last.size, last.size)

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
        maps = self.entry(z.reshape(-1, self.decoders, z.shape[2]))
        for layer in self.convolutions:
            maps = layer(maps)
        images: Tensor = maps.sigmoid().reshape(batch, classes, *self.image_shape)
        return images

    def select(self, classes: Int[Tensor, " groups"]) -> Self:
        """Returns the bank whose decoder g is decoder `classes[g]`; a shared decoder serves any class."""
        if self.decoders == 1:
            return self
        bank = copy.copy(self)
        bank._modules = {}
        bank.decoders = len(classes)
        bank.entry = _select(self.entry, classes)
        layers = (_select(layer, classes) for layer in self.convolutions if isinstance(layer, _Layer))
        bank.convolutions = nn.ModuleList(layers)
        return bank

    def for_inference(self) -> Self:
        """Returns this bank."""
        return self


class _Stage:
    """One convolution with its norm and activation. It holds weights per decoder, in float64."""

    def __init__(self, layer: nn.ConvTranspose2d | nn.Conv2d) -> None:
        transposed = isinstance(layer, nn.ConvTranspose2d)
        weight = layer.weight.detach().double().unflatten(0, (layer.groups, -1))
        self.weight: Tensor = weight if transposed else weight.transpose(1, 2)  # (K, in, out, kernel, kernel)
        channels = self.weight.shape[2]
        self.bias = weight.new_zeros(layer.groups, channels)
        if layer.bias is not None:
            self.bias = layer.bias.detach().double().unflatten(0, (layer.groups, -1))
        self.stride, self.padding = int(layer.stride[0]), int(layer.padding[0])
        self.activation: nn.Module = nn.Identity()
        self.dtype = layer.weight.dtype

    @property
    def pointwise(self) -> bool:
        """Whether this is a 1 x 1 convolution to few channels."""
        return self.weight.shape[-1] == 1 and self.stride == 1 and self.weight.shape[2] <= FEW_CHANNELS

    def output_size(self, size: int) -> int:
        """Returns the side of the output for an input of side `size`."""
        return (size - 1) * self.stride - 2 * self.padding + self.weight.shape[-1]

    def taps(self, phases: int) -> range:
        """Returns the input pixels that r phases need along a side, counted from the first phase's."""
        first = math.ceil((self.padding - self.weight.shape[-1] + 1) / self.stride)
        return range(first, (phases - 1 + self.padding) // self.stride + 1)

    def fold(self, norm: nn.BatchNorm2d) -> None:
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError("Expected batch norms with running statistics, but got one without")
        mean, variance, gain, shift = (
            part.detach().double().unflatten(0, (len(self.bias), -1))
            for part in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        scale = gain / (variance + norm.eps).sqrt()
        self.weight = self.weight * scale[:, None, :, None, None]
        self.bias = (self.bias - mean) * scale + shift

    def fold_before(self, stem: "_Stage") -> None:
        """Returns this stage merged with a linear 1 x 1 stage in front of it."""
        self.bias = self.bias[..., None, None] + torch.einsum("ki,kiohw->kohw", stem.bias, self.weight)
        self.weight = torch.einsum("kji,kiohw->kjohw", stem.weight[..., 0, 0], self.weight)


def _stages(layers: nn.Sequential) -> list[_Stage]:
    """Reads the layers of a decoder bank; the stem is merged into the first transposed convolution."""
    stages: list[_Stage] = []
    for layer in layers:
        if isinstance(layer, nn.ConvTranspose2d | nn.Conv2d):
            stages.append(_Stage(layer))
        elif isinstance(layer, nn.BatchNorm2d):
            stages[-1].fold(layer)
        elif isinstance(layer, nn.ReLU | nn.LeakyReLU | nn.ELU):
            stages[-1].activation = _FastELU() if isinstance(layer, nn.ELU) else layer
        elif not isinstance(layer, nn.Dropout | nn.Sigmoid):
            raise ValueError(f"Expected the layers of a decoder bank, but got {type(layer).__name__}")
    if isinstance(layers[0], nn.Conv2d):
        stem = stages.pop(0)
        stages[0].fold_before(stem)
    else:
        stages[0].bias = stages[0].bias[..., None, None]
    return stages


class _Layer(nn.Module):
    """Abstract: a layer that holds a copy of its weights; the decoders are the first axis."""

    weight: Tensor
    bias: Tensor

    def __init__(self, stage: _Stage, *, decoders: int) -> None:
        super().__init__()
        self.decoders, self.activation = decoders, stage.activation

    def _hold(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.register_buffer("weight", weight.to(dtype).contiguous())
        self.register_buffer("bias", bias.to(dtype).contiguous())


@final
class _FusedEntry(_Layer):
    """The first transposed convolution, which is a matrix product per decoder for a 1 x 1 map."""

    def __init__(self, stage: _Stage, *, decoders: int) -> None:
        super().__init__(stage, decoders=decoders)
        kept = slice(stage.padding, stage.weight.shape[-1] - stage.padding)
        weight = stage.weight[..., kept, kept]
        bias = stage.bias.expand(-1, -1, *stage.weight.shape[3:])[..., kept, kept]
        self.channels, self.size = weight.shape[2], weight.shape[3]
        weight, bias = weight.permute(0, 1, 3, 4, 2).flatten(2), bias.permute(0, 2, 3, 1).flatten(1)
        self._hold(weight, bias[:, None], stage.dtype)

    def forward(self, z: Float[Tensor, "rows decoders latent"]) -> Float[Tensor, "rows maps height width"]:
        """Returns maps whose memory is channels-last."""
        maps = torch.baddbmm(self.bias, z.transpose(0, 1), self.weight)
        maps = self.activation(maps).unflatten(2, (self.size, self.size, self.channels))
        nhwc = maps.permute(1, 2, 3, 0, 4).flatten(3)
        channels_last: Tensor = nhwc.permute(0, 3, 1, 2)
        return channels_last


@final
class _PointwiseConvolution(_Layer):
    """A 1 x 1 convolution to few channels, for which grouped convolution kernels are slow."""

    def __init__(self, stage: _Stage, *, decoders: int, size: int) -> None:
        super().__init__(stage, decoders=decoders)
        self.channels, self.size = stage.weight.shape[2], size
        self._hold(stage.weight[..., 0, 0].transpose(1, 2), stage.bias, stage.dtype)

    def forward(
        self, maps: Float[Tensor, "rows maps height width"]
    ) -> Float[Tensor, "rows out height width"]:
        """Returns maps whose memory is channels-last."""
        source = maps.permute(0, 2, 3, 1).unflatten(3, (self.decoders, -1))
        sums = [(source * self.weight[:, channel]).sum(4) for channel in range(self.channels)]
        nhwc = self.activation(torch.stack(sums, 4) + self.bias).flatten(3)
        channels_last: Tensor = nhwc.permute(0, 3, 1, 2)
        return channels_last


@final
class _SubpixelConvolution(_Layer):
    """A transposed convolution as a convolution to r x r phases and a shuffle of the phases.

    Kernel element a + padding - stride t connects input pixel m i + t to output pixel r i + a, for
    m = r / stride.
    """

    def __init__(self, stage: _Stage, *, decoders: int, size: int) -> None:
        super().__init__(stage, decoders=decoders)
        self.channels, self.size = stage.weight.shape[2], stage.output_size(size)
        self.phases = _phases(stage, size=self.size)
        self.step, self.count = self.phases // stage.stride, math.ceil(self.size / self.phases)
        taps = stage.taps(self.phases)
        # Both ends share one padding, so the side that needs less of it gets taps of zero.
        self.padding = max(-taps.start, self.step * (self.count - 1) + taps.stop - size, 0)
        weight = _phase_weights(stage, self.phases, taps=range(-self.padding, taps.stop))
        bias = stage.bias[:, None].expand(-1, self.phases**2, -1).flatten(1)
        self._hold(weight, bias, stage.dtype)

    def forward(self, maps: Float[Tensor, "rows maps height width"]) -> Tensor:
        """Returns maps whose memory is channels-last."""
        weight = self.weight.permute(0, 1, 4, 2, 3).flatten(0, 1)
        bias = self.bias.flatten()
        phases = nn.functional.conv2d(maps, weight, bias, self.step, self.padding, groups=self.decoders)
        phases = self.activation(phases)
        if self.phases == 1:
            cropped: Tensor = phases[..., : self.size, : self.size]
            return cropped
        shuffled: Tensor = _Shuffle.apply(phases, self.decoders, self.phases, self.size)
        return shuffled


@final
class _TransposedConvolution(_Layer):
    """A transposed convolution as it is, which needs no shuffle."""

    def __init__(self, stage: _Stage, *, decoders: int, size: int) -> None:
        super().__init__(stage, decoders=decoders)
        self.channels, self.size = stage.weight.shape[2], stage.output_size(size)
        self.stride, self.padding = stage.stride, stage.padding
        self._hold(stage.weight, stage.bias, stage.dtype)

    def forward(self, maps: Float[Tensor, "rows maps height width"]) -> Tensor:
        """Returns maps whose memory is channels-last."""
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
        geometry = {"stride": self.stride, "padding": self.padding, "groups": self.decoders}
        activated: Tensor = self.activation(nn.functional.conv_transpose2d(maps, weight, bias, **geometry))
        return activated


_Convolution = _PointwiseConvolution | _SubpixelConvolution | _TransposedConvolution


def _convolution(stage: _Stage, *, decoders: int, size: int) -> _Convolution:
    """Builds a stage in the form that is fastest on CPUs."""
    if stage.pointwise:
        return _PointwiseConvolution(stage, decoders=decoders, size=size)
    taps = len(stage.taps(_phases(stage, size=stage.output_size(size))))
    wasteful = (taps * stage.stride / stage.weight.shape[-1]) ** 2 > WASTE
    if wasteful and stage.weight.shape[2] >= HALF_CHANNELS:
        return _TransposedConvolution(stage, decoders=decoders, size=size)
    return _SubpixelConvolution(stage, decoders=decoders, size=size)


def _phases(stage: _Stage, *, size: int) -> int:
    """Chooses r: the stride, or more if the output has few channels, so that the phases fill a vector."""
    channels, kernel = stage.weight.shape[2], stage.weight.shape[-1]
    if stage.stride > 1 or kernel == 1:
        return stage.stride
    phases = 1
    while phases < MAX_PHASES and channels * phases**2 < FULL_CHANNELS and size % (2 * phases) == 0:
        phases *= 2
    return phases


def _phase_weights(stage: _Stage, phases: int, *, taps: range) -> Float[Tensor, "decoders out high wide in"]:
    """Returns, for every phase and tap, the element of the transposed kernel that connects them."""
    kernel = stage.weight.shape[-1]
    device = stage.weight.device
    offset = torch.arange(phases, device=device)[:, None] + stage.padding
    offset = offset - stage.stride * torch.arange(taps.start, taps.stop, taps.step, device=device)
    inside = (offset >= 0) & (offset < kernel)
    offset = offset.clamp(0, kernel - 1)
    grid = stage.weight[:, :, :, offset[:, None, :, None], offset[None, :, None, :]]
    grid = grid * (inside[:, None, :, None] & inside[None, :, None, :])  # (K, in, out, a, b, high, wide)
    weights: Tensor = grid.permute(0, 3, 4, 2, 5, 6, 1).flatten(1, 3)
    return weights


def _select(layer: Layer, classes: Int[Tensor, " groups"]) -> Layer:
    selected = copy.copy(layer)
    selected._buffers = {name: values[classes] for name, values in layer.named_buffers()}
    selected.decoders = len(classes)
    return selected


@final
class _FastELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _ELU.apply(x)
        return y


class _ELU(torch.autograd.Function):
    """ELU as max(x, exp(min(x, 0)) - 1), because `exp` is vectorised and `expm1` is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        torch.maximum(x, x.clamp_max(0).exp_().sub_(1), out=x)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        slope: Tensor = torch.ops.aten.elu_backward(gradients[0], 1, 1, 1, True, *ctx.saved_tensors)
        return slope


class _Shuffle(torch.autograd.Function):
    """Pixel shuffle of channels ordered (decoder, phase, channel), and the crop to `size`."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, decoders: int, phases: int, size: int) -> Tensor:
        ctx.layout = (decoders, phases, size, maps.shape[2])
        source = maps.permute(0, 2, 3, 1).unflatten(3, (decoders, phases, phases, -1))
        target = maps.new_empty(len(maps), size, size, decoders, source.shape[-1])
        for a in range(phases):
            for b in range(phases):
                part = target[:, a::phases, b::phases]
                part.copy_(source[:, : part.shape[1], : part.shape[2], :, a, b])
        return target.flatten(3).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _Unshuffle.apply(gradients[0], *ctx.layout), None, None, None


class _Unshuffle(torch.autograd.Function):
    """The adjoint of `_Shuffle`."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, decoders: int, phases: int, size: int, count: int) -> Tensor:
        ctx.layout = (decoders, phases, size)
        source = maps.permute(0, 2, 3, 1).unflatten(3, (decoders, -1))
        shape = (len(maps), count, count, decoders, phases, phases, source.shape[-1])
        target = maps.new_empty(shape)
        if phases * count > size:
            target[:, -1].zero_()
            target[:, :, -1].zero_()
        for a in range(phases):
            for b in range(phases):
                part = source[:, a::phases, b::phases]
                target[:, : part.shape[1], : part.shape[2], :, a, b] = part
        return target.flatten(3).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _Shuffle.apply(gradients[0], *ctx.layout), None, None, None, None
