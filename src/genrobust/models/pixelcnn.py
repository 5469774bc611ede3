"""A class-conditional PixelCNN: the probability of an image, exactly, pixel by pixel."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._fields import AtLeastOne, AtLeastTwo, ImageShape, Positive, check_fields
from .._precision import without_autocast
from ._likelihood import DEFAULT_BUDGET, ChunkBudget, LikelihoodClassifier

__all__ = ["PixelCNN", "PixelCNNConfig"]

WIDEST = 3.0  # a log-scale; a wider logistic that is cut off is uniform too, and `exp` would overflow


@dataclass(frozen=True, kw_only=True)
class PixelCNNConfig:
    """Hyperparameters of the PixelCNN.

    Attributes:
        num_classes: K.
        input_shape: (C, H, W).
        patch: Side of the squares of pixels that are predicted together, as the channels of a colour are;
            1 predicts single pixels.
        hidden: Maps of every layer.
        layers: Number of residual layers after the one that reads the image.
        reach: Rows above, and pixels to each side, that the first layer reads.
        class_maps: Maps per class with which the class enters every layer at every pixel.
        mixtures: Number of logistic distributions whose mixture is a pixel's distribution.
        levels: Number of levels of a pixel value: 256, or 2 for black and white.
        least_scale: Least scale of a logistic distribution, in units of the distance of two levels.
        temperature: Divisor that turns class scores into logits; None calibrates it on validation data.
        inference: Settings for the memory.

    Raises:
        ValueError: If the squares do not tile the image.
    """

    num_classes: AtLeastTwo = 10
    input_shape: ImageShape = (1, 28, 28)
    patch: AtLeastOne = 1
    hidden: AtLeastOne = 24
    layers: AtLeastOne = 5
    reach: AtLeastOne = 3
    class_maps: AtLeastOne = 2
    mixtures: AtLeastOne = 5
    levels: AtLeastTwo = 256
    least_scale: Positive = 0.25
    temperature: Positive | None = None
    inference: ChunkBudget = DEFAULT_BUDGET

    def __post_init__(self) -> None:
        check_fields(self)
        _, height, width = self.input_shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"Expected `patch` to divide images of {height} x {width}, but got {self.patch}")

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Channels, height and width after the pixels of a square became channels."""
        channels, height, width = self.input_shape
        return channels * self.patch**2, height // self.patch, width // self.patch


@final
class PixelCNN(LikelihoodClassifier):
    """Decides for the class under which a network predicts every pixel best from those before it.

    log p(x | y) = sum_i log p(x_i | x_1, ..., x_(i-1), y), in raster order (van den Oord et al. 2016,
    "Conditional image generation with PixelCNN decoders"). A pixel's distribution is a mixture of discretised
    logistics (Salimans et al. 2017, "PixelCNN++"). In colour, the mean of a channel is linear in the channels
    before it, as theirs. Scores are log p(x | y) + log p(y) in nats: logarithms of probabilities.

    **Off the grid.** A level x has the mass of the bin [x - h, x + h] with h = 1 / (2 (L - 1)), which is
    1/510 for 256 levels. This is defined and differentiable for every real x. Every logistic is cut off at
    -h and 1 + h and normalised there. The probabilities of the L levels then sum to 1, as with the paper's
    outermost bins, which reach to infinity. Those would make the score jump between the levels.

    The network has the two stacks without blind spot: one reads the rows above, the other one the pixels to
    the left too. It is smaller than the published ones, which have 10^7 weights and more. The class enters
    every layer as a bias, and by maps of its own, which depend on the place (van den Oord et al., eq. 5). The
    first layer reads the image alone, and runs once for all classes.

    Shapes: x (B, C, H, W), scores (B, K).

    Example:
        >>> import torch
        >>> from genrobust.models import PixelCNN, PixelCNNConfig
        >>> PixelCNN(PixelCNNConfig(input_shape=(1, 8, 8), hidden=4))(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(self, config: PixelCNNConfig | None = None) -> None:
        config = config or PixelCNNConfig()
        super().__init__(
            input_shape=config.input_shape,
            num_classes=config.num_classes,
            temperature=config.temperature,
            budget=config.inference,
        )
        (channels, height, width), reach = config.map_shape, config.reach
        self.above = _Shifted(channels, config.hidden, rows=reach, left=reach, right=reach, below=1)
        self.left = _Shifted(channels, config.hidden, rows=1, left=reach, right=-1)
        self.maps = nn.Parameter(torch.randn(config.num_classes, config.class_maps, height, width))
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        outputs = config.mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)
        self.output = nn.Conv2d(config.hidden, outputs, 1)
        bias = dict(self.output.named_parameters())["bias"]
        with torch.no_grad():  # the mixture's means begin apart
            apart = torch.linspace(-1, 1, config.mixtures + 2)[1:-1, None]
            bias.unflatten(0, (config.mixtures, -1))[:, 1 : 1 + channels] = apart
        self.config = config
        self.set_parts_training(False)

    def log_likelihood(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, "batch given"]
    ) -> Float[Tensor, "batch given"]:
        """Computes log p(x | y) for several classes of each image, in nats."""
        x = nn.functional.pixel_unshuffle(x, self.config.patch)
        outputs = self._outputs(x, y)
        images = x.repeat_interleave(y.shape[1], 0)
        log_weights, means, log_scales = self._mixture(outputs, images)
        masses = self._log_mass(images[:, None], means, log_scales).sum(2)
        log_pixels = (log_weights + masses).logsumexp(1)
        likelihoods: Tensor = log_pixels.flatten(1).sum(1).unflatten(0, y.shape)
        return likelihoods

    @property
    def activations(self) -> int:
        """Number of values that the likelihood of one image and class takes, about."""
        channels, height, width = self.config.map_shape
        outputs = 8 * self.config.mixtures * (1 + 2 * channels)
        return height * width * (8 * self.config.hidden * (self.config.layers + 1) + outputs)

    @torch.no_grad()
    @without_autocast
    def sample(
        self, per_class: int, *, generator: torch.Generator
    ) -> Float[Tensor, "classes samples channels height width"]:
        """Draws images of every class, pixel by pixel: as many passes through the network as pixels."""
        channels, height, width = self.config.map_shape
        y = torch.arange(self.num_classes, device=self.maps.device).repeat_interleave(per_class)
        images = self.maps.new_zeros((len(y), channels, height, width))
        for row in range(height):
            for column in range(width):
                outputs = self._outputs(images[:, :, : row + 1], y[:, None])[..., row, column]
                images[:, :, row, column] = self._drawn_pixel(outputs, generator)
        images = nn.functional.pixel_shuffle(images, self.config.patch)
        drawn: Tensor = images.unflatten(0, (self.num_classes, per_class))
        return drawn

    def _outputs(
        self, x: Float[Tensor, "batch channels rows width"], y: Int[Tensor, "batch given"]
    ) -> Float[Tensor, "pairs outputs rows width"]:
        """Returns the parameters of every pixel's distribution, for images that may lack their last rows."""
        centred = 2 * x - 1
        given, rows = y.shape[1], y.flatten()
        above = self.above(centred).repeat_interleave(given, 0)
        left = self.left(centred).repeat_interleave(given, 0)
        maps = self.maps[:, :, : x.shape[2]]
        left = above + left
        for layer in self.layers:
            above, left = layer(above, left, maps, rows)
        outputs: Tensor = self.output(left).to(x.dtype)
        return outputs

    def _mixture(
        self, outputs: Float[Tensor, "pairs outputs *places"], images: Float[Tensor, "pairs channels *places"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns log-weights (pairs, M, ...), means and log-scales (pairs, M, C, ...) of the mixtures."""
        channels = self.config.map_shape[0]
        split = outputs.unflatten(1, (self.config.mixtures, -1))
        sizes = (1, channels, channels, channels * (channels - 1) // 2)
        log_weights, means, log_scales, slopes = split.split(sizes, 2)
        means = 0.5 + 1.5 * (means / 3).tanh()  # farther out, a logistic that is cut off changes no more
        slopes, shifted, first = slopes.tanh(), list(means.unbind(2)), 0
        for channel in range(1, channels):
            for earlier in range(channel):
                shifted[channel] = shifted[channel] + slopes[:, :, first] * (images[:, None, earlier] - 0.5)
                first += 1
        least = math.log(self.config.least_scale / (self.config.levels - 1))
        log_scales = least + nn.functional.softplus(log_scales - least - 2)
        log_scales = WIDEST - nn.functional.softplus(WIDEST - log_scales)
        return log_weights[:, :, 0].log_softmax(1), torch.stack(shifted, 2), log_scales

    def _log_mass(
        self,
        x: Float[Tensor, "*#rows"],
        means: Float[Tensor, "*#rows"],
        log_scales: Float[Tensor, "*#rows"],
    ) -> Float[Tensor, "*_rows"]:
        """Computes the logarithm of the mass of the bin around x in a logistic that is cut off outside."""
        half = 0.5 / (self.config.levels - 1)
        scales = log_scales.exp()
        bin_mass = _log_mass_around((x - means) / scales, half / scales)
        return bin_mass - _log_mass_around((0.5 - means) / scales, (0.5 + half) / scales)

    def _drawn_pixel(
        self, outputs: Float[Tensor, "rows outputs"], generator: torch.Generator
    ) -> Float[Tensor, "rows channels"]:
        """Draws a component of the mixture for each row, and then a level for one channel after the other."""
        channels, levels = self.config.map_shape[0], self.config.levels
        pixel = outputs.new_zeros((len(outputs), channels))
        grid = torch.linspace(0, 1, levels, device=pixel.device, dtype=pixel.dtype)
        component = _drawn(self._mixture(outputs, pixel)[0], generator)[:, None, None]
        for channel in range(channels):
            _, means, log_scales = self._mixture(outputs, pixel)
            mean, log_scale = (
                part.take_along_dim(component, 1)[:, 0, channel, None] for part in (means, log_scales)
            )
            pixel[:, channel] = grid[_drawn(self._log_mass(grid, mean, log_scale), generator)]
        return pixel


@final
class _Shifted(nn.Module):
    """Convolves with a kernel that ends at the pixel itself, or before it.

    Args:
        inputs: Maps of the input.
        outputs: Maps of the output.
        rows: Rows of the kernel.
        left: Pixels that it reads to the left.
        right: Pixels that it reads to the right, 0 to end at the pixel, -1 to end before it.
        below: 1 to end in the row above, 0 to end in the pixel's own row.
    """

    def __init__(
        self, inputs: int, outputs: int, *, rows: int, left: int, right: int, below: int = 0
    ) -> None:
        super().__init__()
        self.padding = (left, right, rows - 1 + below, -below)
        self.convolution = nn.Conv2d(inputs, outputs, (rows, left + right + 1))

    def forward(
        self, x: Float[Tensor, "rows inputs height width"]
    ) -> Float[Tensor, "rows maps height width"]:
        """Returns maps of the same size, whose pixels read earlier pixels alone."""
        maps: Tensor = self.convolution(nn.functional.pad(x, self.padding))
        return maps


@final
class _Layer(nn.Module):
    """A residual layer of both stacks."""

    def __init__(self, config: PixelCNNConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.above = _Shifted(hidden, hidden, rows=2, left=1, right=1)
        self.left = _Shifted(hidden, hidden, rows=1, left=1, right=0)
        self.down = nn.Conv2d(hidden, hidden, 1)
        self.places = nn.Conv2d(config.class_maps, 2 * hidden, 1)
        self.classes = nn.Parameter(0.1 * torch.randn(config.num_classes, 2 * hidden))

    def forward(
        self, above: Tensor, left: Tensor, maps: Tensor, y: Int[Tensor, " rows"]
    ) -> tuple[Tensor, Tensor]:
        """Returns both stacks after the layer, each of shape (rows, hidden, height, width)."""
        biases = self.places(maps) + self.classes[:, :, None, None]
        bias_above, bias_left = biases[y].chunk(2, 1)
        above = above + nn.functional.silu(self.above(above) + bias_above)
        left = left + nn.functional.silu(self.left(left) + self.down(above) + bias_left)
        return above, left


def _log_mass_around(
    centre: Float[Tensor, "*#rows"], half: Float[Tensor, "*#rows"]
) -> Float[Tensor, "*_rows"]:
    """Computes log(F(centre + half) - F(centre - half)) for the standard logistic, also far from 0.

    F(b) - F(a) = F(b) F(-a) (1 - e^(a - b)), in which nothing cancels.
    """
    tails = nn.functional.logsigmoid(centre + half) + nn.functional.logsigmoid(half - centre)
    return tails + torch.log(-torch.expm1(-2 * half))


def _drawn(logits: Float[Tensor, "rows choices"], generator: torch.Generator) -> Int[Tensor, " rows"]:
    """Draws a choice for each row, with probabilities that are the softmax of its logits."""
    uniform = torch.rand(
        (len(logits), 1), generator=generator, device=generator.device, dtype=torch.float64
    ).to(logits.device)
    cumulative = logits.double().softmax(1).cumsum(1)
    return (cumulative < uniform * cumulative[:, -1:]).sum(1).clamp_max(logits.shape[1] - 1)
