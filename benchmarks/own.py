"""This package's own attacks, as suites name them: toolkit "genrobust"."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..adapters._foolbox import wrap_for_foolbox
from ..adapters.registry import Crafted
from ..adapters.verification import attack_every_class
from ..attacks import fooling_attack, threshold_attack
from ..classifier import Classifier
from ..selective import SelectiveClassifier
from ..views import attack_view
from ..zoo.pairs import random_fgsm
from .counting import Calls
from .suites import Attack

__all__ = ["OWN_ATTACKS", "OwnAttack", "single_pixel"]

PIXELS = 100  # places that the single-pixel attack tries

Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, " batch"]


@final
@dataclass(frozen=True, kw_only=True)
class OwnAttack:
    """An attack of this package.

    Attributes:
        run: Crafts a batch: takes model, images, labels, the suite's entry, epsilon and seed.
        uses_gradients: Whether it differentiates.
        steps: Its default steps towards each other class, if it asks for class scores and not for logits, so
            that nobody counts its queries.
    """

    run: Callable[[Classifier, Tensor, Tensor, Attack, float | None, int], Crafted]
    uses_gradients: bool
    steps: int | None = None

    def calls(self, attack: Attack, *, num_classes: int, images: int) -> Calls:
        """Give the calls that `counted_calls` does not see."""
        if self.steps is None:
            return Calls()
        steps = int(attack.parameters.get("steps", self.steps))
        runs = images * (num_classes - 1)
        return Calls(queries=runs * (steps + 1), gradients=runs * steps)


@torch.no_grad()
def single_pixel(
    model: Callable[[Tensor], Tensor],
    x: Images,
    y: Labels,
    *,
    pixels: int = PIXELS,
    generator: torch.Generator,
) -> Images:
    """Set one pixel to black or to white, at random places, until the label changes (Su et al. 2019).

    As AdverTorch's attack of that name does; Foolbox has none.

    Args:
        model: The attacked model.
        x: Images in [0, 1].
        y: Their classes.
        pixels: Places that are tried, the same for every image.
        generator: Of the places.

    Returns:
        Images of which one pixel differs, or none where no place served.
    """
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


def _single_pixel(
    model: Classifier, x: Tensor, y: Tensor, attack: Attack, epsilon: float | None, seed: int
) -> Crafted:
    del epsilon
    generator = torch.Generator().manual_seed(seed)
    view = attack_view(model)
    return Crafted(single_pixel(view, x, y, generator=generator, **_integers(attack.parameters)))


def _random_fgsm(
    model: Classifier, x: Tensor, y: Tensor, attack: Attack, epsilon: float | None, seed: int
) -> Crafted:
    """Step at random first, and then along the sign of the gradient (Tramer et al. 2018)."""
    import foolbox

    del attack, seed
    if epsilon is None:
        raise ValueError("Expected an `epsilon` for RandFGSM, but got none")
    target, fgsm = wrap_for_foolbox(model), foolbox.attacks.LinfFastGradientAttack(random_start=False)

    def run(images: Tensor, labels: Tensor, bound: float) -> Tensor:
        found: Tensor = fgsm(target, images, labels, epsilons=bound)[1]
        return found

    return Crafted(random_fgsm(run, x, y, epsilon).detach())


def _thresholds(
    model: Classifier, x: Tensor, y: Tensor, attack: Attack, epsilon: float | None, seed: int
) -> Crafted:
    """Attack both thresholds towards every other class (Ghosh et al. 2019, eq. 10)."""
    selective = _selective(model, attack)

    def craft(target: Tensor) -> Tensor:
        return threshold_attack(selective, x, target, epsilon=epsilon, **attack.parameters)  # type: ignore[arg-type]

    images, found = attack_every_class(craft, selective, x, y, attack.norm, epsilon, seed=seed)
    return Crafted(images, found.success)


def _fooling(
    model: Classifier, x: Tensor, y: Tensor, attack: Attack, epsilon: float | None, seed: int
) -> Crafted:
    """Start from uniform noise, and look for what is accepted as any other class (eq. 11)."""
    del epsilon
    selective = _selective(model, attack)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)

    def craft(target: Tensor) -> Tensor:
        return fooling_attack(selective, noise, target, **attack.parameters)  # type: ignore[arg-type]

    images, found = attack_every_class(craft, selective, x, y, attack.norm, None, seed=seed)
    return Crafted(images, found.success)


def _selective(model: Classifier, attack: Attack) -> SelectiveClassifier:
    if not isinstance(model, SelectiveClassifier):
        raise ValueError(
            f"Expected a SelectiveClassifier for {attack.key!r}, but got {type(model).__name__}: give the "
            "model `detectors` in the suite"
        )
    return model


def _integers(parameters: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(value) for name, value in parameters.items()}


OWN_ATTACKS: Mapping[str, OwnAttack] = {
    "Fooling": OwnAttack(run=_fooling, uses_gradients=True, steps=500),
    "RandFGSM": OwnAttack(run=_random_fgsm, uses_gradients=True),
    "SinglePixel": OwnAttack(run=_single_pixel, uses_gradients=False),
    "Threshold": OwnAttack(run=_thresholds, uses_gradients=True, steps=200),
}
