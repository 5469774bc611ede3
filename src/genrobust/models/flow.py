"""A class-conditional normalizing flow (Fetaya et al. 2020): the density of an image, exactly."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution

from .._fields import AtLeastOne, AtLeastTwo, ImageShape, Positive, check_fields
from .._precision import without_autocast
from ..likelihoods import normal_log_density
from ..randomness import standard_normal
from ._likelihood import DEFAULT_BUDGET, ChunkBudget, LikelihoodClassifier

__all__ = ["ConditionalFlow", "FlowConfig"]

_LARGEST_LEVELS = 2**12  # single precision then rounds to less than the margin
_MARGIN = 1e-3  # share of a level at both ends that the noise leaves out: the logits of 0 and 1 are infinite


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Hyperparameters of the flow.

    Attributes:
        num_classes: K.
        input_shape: (C, H, W).
        patch: Side of the squares whose pixels become channels, as RealNVP squeezes images.
        couplings: Number of coupling layers.
        hidden: Maps of the two hidden layers of a coupling's network.
        levels: Number of levels of a pixel value: the width of the noise of dequantisation is the distance
            of two of them, and the density is that of images with this noise.
        temperature: Divisor that turns class scores into logits; None calibrates it on validation data.
        inference: Settings for the memory.

    Raises:
        ValueError: If the patches do not tile the image, or have one value, or there are too many levels.
    """

    num_classes: AtLeastTwo = 10
    input_shape: ImageShape = (1, 28, 28)
    patch: AtLeastOne = 4
    couplings: AtLeastOne = 8
    hidden: AtLeastOne = 48
    levels: AtLeastTwo = 256
    temperature: Positive | None = None
    inference: ChunkBudget = DEFAULT_BUDGET

    def __post_init__(self) -> None:
        check_fields(self)
        channels, height, width = self.input_shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"Expected `patch` to divide images of {height} x {width}, but got {self.patch}")
        if channels * self.patch**2 < 2:
            raise ValueError(f"Expected `patch` above 1 for images of one channel, but got {self.patch}")
        if self.levels > _LARGEST_LEVELS:
            raise ValueError(f"Expected `levels` up to {_LARGEST_LEVELS}, but got {self.levels}")

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Channels, height and width after the patches became channels."""
        channels, height, width = self.input_shape
        return channels * self.patch**2, height // self.patch, width // self.patch


@final
class ConditionalFlow(LikelihoodClassifier):
    """Decides for the class under which an invertible network finds the image most likely.

    A flow turns images into Gaussian noise z = f_y(x), and log p(x | y) = log N(z; m_y, s_y) + log |det J|.
    Scores are log p(x | y) + log p(y) in nats. Fetaya et al. (2020, "Understanding the limitations of
    conditional generative models") ask whether such classifiers are robust; theirs is a Glow.

    **What the density is of.** An image of L levels has no density. Training adds noise, which is uniform
    over the distance h = 1 / (L - 1) of two levels: x' = x + h (u - 1/2). The score is the density of x',
    per pixel value in [0, 1], with the Jacobian of everything below. It integrates to 1 over
    [-h/2, 1 + h/2]. Evaluation adds no noise: the density at x itself is deterministic and differentiable.
    The chain of transforms is: v = ((L - 1) x + 1/2) / L in (0, 1), logit(v), couplings, Gaussian.

    We chose, because no weights or sizes for a CPU are published:

    - Affine couplings (RealNVP, Dinh et al. 2017), as zuko's transforms, over patches as channels. Their
      masks halve the channels by one binary digit of the channel's number after the other.
    - The class enters every coupling (FiLM), and the base has a mean and a scale per class, as Glow's.

    Shapes: x (B, C, H, W), scores (B, K).

    Attributes:
        means: The means of the base, per class, shape (K, D).
        log_variances: The logarithms of its variances, shape (K, D).

    Raises:
        ImportError: If zuko is not installed.

    Example:
        >>> import torch
        >>> from genrobust.models import ConditionalFlow
        >>> ConditionalFlow()(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    masks: Tensor

    def __init__(self, config: FlowConfig | None = None) -> None:
        config = config or FlowConfig()
        _transforms()
        super().__init__(
            input_shape=config.input_shape,
            num_classes=config.num_classes,
            temperature=config.temperature,
            budget=config.inference,
        )
        kept = _kept(config)
        self.networks = nn.ModuleList(_Coupling(config, sum(channels)) for channels in kept)
        positions = math.prod(config.map_shape[1:])
        masks = torch.tensor(kept).repeat_interleave(positions, 1)
        self.register_buffer("masks", masks, persistent=False)
        base = (config.num_classes, math.prod(config.input_shape))
        self.means = nn.Parameter(torch.zeros(base))
        self.log_variances = nn.Parameter(torch.zeros(base))
        self.config = config
        self.set_parts_training(False)

    def log_likelihood(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, "batch given"]
    ) -> Float[Tensor, "batch given"]:
        """Computes log p(x | y) for several classes of each image, per pixel value in [0, 1], in nats."""
        levels = self.config.levels
        v = ((levels - 1) * x + 0.5) / levels
        log_v, log_rest = v.log(), (-v).log1p()
        constant = math.prod(self.input_shape) * math.log((levels - 1) / levels / self._logit_scale)
        log_slope = constant - (log_v + log_rest).flatten(1).sum(1)
        logits = (log_v - log_rest) / self._logit_scale
        maps = nn.functional.pixel_unshuffle(logits, self.config.patch).flatten(1)
        rows, given = y.flatten(), y.shape[1]
        z, log_determinant = self._flow(rows).call_and_ladj(maps.repeat_interleave(given, 0))
        density = normal_log_density(z, self.means[rows], self.log_variances[rows]) + log_determinant
        likelihoods: Tensor = density.unflatten(0, y.shape) + log_slope[:, None]
        return likelihoods

    def training_images(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the images with the noise of dequantisation, from torch's global generator."""
        noise = torch.rand_like(x).clamp(_MARGIN, 1 - _MARGIN) - 0.5
        return x + noise / (self.config.levels - 1)

    @property
    def activations(self) -> int:
        """Number of values that the likelihood of one image and class takes, about."""
        _, height, width = self.config.map_shape
        network = 6 * self.config.hidden * height * width
        return self.config.couplings * (network + 6 * math.prod(self.input_shape))

    @torch.no_grad()
    @without_autocast
    def sample(
        self, per_class: int, *, generator: torch.Generator
    ) -> Float[Tensor, "classes samples channels height width"]:
        """Draws images of every class, rounded to the levels: the noise of dequantisation is taken off."""
        shape = (self.num_classes, per_class, self.means.shape[1])
        noise = standard_normal(shape, generator).to(self.means)
        z = self.means[:, None] + (0.5 * self.log_variances)[:, None].exp() * noise
        y = torch.arange(self.num_classes, device=z.device).repeat_interleave(per_class)
        maps = self._flow(y).inv(z.flatten(0, 1)).unflatten(1, self.config.map_shape)
        v = (self._logit_scale * nn.functional.pixel_shuffle(maps, self.config.patch)).sigmoid()
        levels = self.config.levels
        values = (v * levels).floor().clamp(0, levels - 1) / (levels - 1)
        images: Tensor = values.unflatten(0, shape[:2])
        return images

    @property
    def _logit_scale(self) -> float:
        """The divisor that maps the logits of the darkest and the brightest level to -2 and 2."""
        return 0.5 * math.log(2 * self.config.levels - 1)

    def _flow(self, y: Int[Tensor, " rows"]) -> Any:
        """Returns the transform of vectors for the class of each row; its methods are torch's and zuko's."""
        transforms = _transforms()
        parts = zip(self.networks, self.masks, strict=True)
        return transforms.ComposedTransform(
            *(transforms.CouplingTransform(_given(network, y), mask) for network, mask in parts)
        )


@final
class _Coupling(nn.Module):
    """Computes shift and scale of one half of the channels from the other half and the class."""

    def __init__(self, config: FlowConfig, kept: int) -> None:
        super().__init__()
        channels, self.height, self.width = config.map_shape
        self.kept = kept
        hidden = config.hidden
        self.first = nn.Conv2d(kept, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, hidden, 1)
        self.last = nn.Conv2d(hidden, 2 * (channels - kept), 3, padding=1)
        self.film = nn.Parameter(0.1 * torch.randn(config.num_classes, 4 * hidden))
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "rows values"], y: Int[Tensor, " rows"]) -> tuple[Tensor, Tensor]:
        """Returns shift and unconstrained log-scale, each of shape (rows, other values)."""
        maps = x.unflatten(1, (self.kept, self.height, self.width))
        scale_1, shift_1, scale_2, shift_2 = self.film[y, :, None, None].chunk(4, 1)
        maps = nn.functional.silu(self.first(maps) * (1 + scale_1) + shift_1)
        maps = nn.functional.silu(self.second(maps) * (1 + scale_2) + shift_2)
        shift, scale = self.last(maps).to(x.dtype).flatten(1).chunk(2, 1)
        return shift, scale


def _given(network: nn.Module, y: Int[Tensor, " rows"]) -> Callable[[Tensor], Any]:
    """Returns the function from the kept half to the transform of the other half."""
    transforms = _transforms()
    return lambda kept: transforms.DependentTransform(
        transforms.MonotonicAffineTransform(*network(kept, y)), 1
    )


def _kept(config: FlowConfig) -> list[list[bool]]:
    """Returns which channels each coupling keeps: by one binary digit of the channel after the other."""
    channels = config.map_shape[0]
    digits = (channels - 1).bit_length()
    return [
        [(channel >> (i // 2 % digits)) % 2 == i % 2 for channel in range(channels)]
        for i in range(config.couplings)
    ]


def _transforms() -> Any:
    """Imports zuko's transforms, and leaves torch's checks of distributions as they are.

    Raises:
        ImportError: If zuko is not installed.
    """
    if (loaded := sys.modules.get("zuko.transforms")) is not None:
        return loaded
    validates = Distribution._validate_args
    try:
        from zuko import transforms
    except ImportError as error:
        raise ImportError(
            "Expected zuko to be installed: pip install 'genrobust[flows]'", name="zuko"
        ) from error
    Distribution.set_default_validate_args(validates)  # zuko's import switches the checks off
    return transforms
