"""Latent descent: towards what a generative classifier would draw in the image's place."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attack_view import classifier_behind
from ..selective import reconstruction
from .registered import register_attack

__all__ = ["latent_descent"]


@register_attack(
    "LatentDescent",
    norm="l2",
    needs_epsilon=False,
    asks_for="reconstructions",
    note="Made for analysis by synthesis: it asks the model what it would draw.",
    queries=lambda _model, *, steps, **_: 2 * steps + 1,
)
@torch.no_grad()
def latent_descent(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    generator: torch.Generator | None = None,
    steps: int = 200,
    relative_step: float = 0.01,
    bisections: int = 10,
) -> Float[Tensor, "batch channels height width"]:
    """Moves towards the reconstruction of the likeliest other class (Schott et al. 2018, Latent Descent).

    Every step takes the likeliest class y' that is not `y`, and what the model would draw as y':

        x <- (1 - e) x + e E[x | z, y'],    e = `relative_step`,

    until the decision changes. Two bisections follow: on the last step, and between the example and the clean
    image. The number of steps, e and the number of bisections are ours. E-ABS section 4.2 says no more than
    that the attack goes in the direction of the closest reconstruction of another class. The public code of
    Schott et al. stays on a line from the clean image x_0 to the last reconstruction,

        x <- (1 - t) x_0 + t E[x | z, y'],    t = 0, 0.02, ..., 1,

    in at most 51 such steps, and then halves the distance to x_0 at most twice. Every step here starts where
    the last one ended, and goes on until the decision changes or `steps` are taken.

    Args:
        model: A view of a generative classifier with reconstructions, or that classifier.
        x: Images in [0, 1].
        y: Their classes.
        epsilon: Not used: it looks for a near example.
        generator: Not used: nothing is drawn.
        steps: The most steps.
        relative_step: e.
        bisections: Number of bisections of each of the two searches.

    Returns:
        Images in [0, 1]; the clean image where no step changed the decision.

    Raises:
        ValueError: If the model has no reconstructions.
    """
    del epsilon, generator
    classifier = classifier_behind(model)
    own = torch.nn.functional.one_hot(y, classifier.num_classes).bool()
    before, current = x.clone(), x.clone()
    found = _fooled(model, current, y, classifier.num_classes)
    for _ in range(steps):
        rows = (~found).nonzero()[:, 0]
        if not len(rows):
            break
        start = current[rows]
        other = model(start)[:, : classifier.num_classes].masked_fill(own[rows], -torch.inf).argmax(1)
        drawn = reconstruction(classifier, start, other).to(x)  # type: ignore[arg-type]
        before[rows] = start
        current[rows] = torch.lerp(start, drawn, relative_step).clamp(0, 1)
        found[rows] = _fooled(model, current[rows], y[rows], classifier.num_classes)
    search = partial(_bisected, model, num_classes=classifier.num_classes, steps=bisections)
    images = x.clone()
    if found.any():
        near = search(before[found], current[found], y[found])
        images[found] = search(x[found], near, y[found])
    return images


def _fooled(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    decision = model(x).argmax(1)
    return (decision != y) & (decision < num_classes)


def _bisected(
    model: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, y: Tensor, *, num_classes: int, steps: int
) -> Tensor:
    """Finds the fooling image that is nearest to the start of a line whose end fools the model."""
    low, high = start.new_zeros(len(start), 1, 1, 1), start.new_ones(len(start), 1, 1, 1)
    for _ in range(steps):
        middle = (low + high) / 2
        fooled = _fooled(model, torch.lerp(start, end, middle), y, num_classes)[:, None, None, None]
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    return torch.lerp(start, end, high)
