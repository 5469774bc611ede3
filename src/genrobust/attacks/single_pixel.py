"""One pixel, set to black or to white."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .registered import register_attack

__all__ = ["single_pixel"]


@register_attack(
    "SinglePixel",
    norm="l0",
    knowledge="decision",
    needs_epsilon=False,
    weak="One pixel in a hundred random places: it seldom fools a model.",
    queries=lambda _model, *, pixels: 2 * pixels + 1,
)
@torch.no_grad()
def single_pixel(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    generator: torch.Generator,
    pixels: int = 100,
) -> Float[Tensor, "batch channels height width"]:
    """Sets one pixel to black or to white, at random places, until the decision changes (Su et al. 2019).

    Su et al. search place and colour by differential evolution. The random search is AdverTorch's attack of
    that name.

    Args:
        model: Logits of images.
        x: Images in [0, 1].
        y: Their classes.
        epsilon: Not used, because one pixel is the least change.
        generator: Generator of the places.
        pixels: Number of places to try, the same for every image.

    Returns:
        Images with one changed pixel, or the image itself if no place served.
    """
    del epsilon
    images = x.clone()
    unchanged = model(x).argmax(1) == y
    for place in torch.randperm(x[0, 0].numel(), generator=generator)[:pixels].tolist():
        for value in (0.0, 1.0):
            trial = x.clone()
            trial.flatten(2)[:, :, place] = value
            fooled = unchanged & (model(trial).argmax(1) != y)
            images[fooled] = trial[fooled]
            unchanged &= ~fooled
    return images
