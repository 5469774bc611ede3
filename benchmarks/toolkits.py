"""The attacks of the toolkits, built and run as a suite's entries say."""

import warnings
from collections.abc import Callable
from typing import Any

import foolbox
import torch
from foolbox.attacks.base import FixedEpsilonAttack, MinimizationAttack
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..adapters._foolbox import wrap_for_foolbox
from ..adapters.registry import Crafted
from ..classifier import Classifier
from ..randomness import isolated_rng
from ..views import InvalidQueryWarning
from .suites import Attack, Kind, check_choice

__all__ = ["build_attack", "craft", "starting_points"]

BISECTIONS = 8  # between an image and its starting point: to 1/256 of their distance


def build_attack(attack: Attack) -> foolbox.Attack:
    """Make the toolkit's own attack object.

    Raises:
        ValueError: If the toolkit has no such attack, or it takes other parameters or is of the other kind.
    """
    names = [name for name in dir(foolbox.attacks) if isinstance(getattr(foolbox.attacks, name), type)]
    check_choice(f"name of {attack.key}", attack.name, names)
    found = getattr(foolbox.attacks, attack.name)
    base = MinimizationAttack if attack.kind == "minimal norm" else FixedEpsilonAttack
    if not issubclass(found, base):
        raise ValueError(f"Expected {attack.name} to be an attack of `kind` {attack.kind!r}, but it is none")
    try:
        built: foolbox.Attack = found(**attack.parameters)
    except TypeError as error:
        raise ValueError(
            f"Expected `parameters` of {attack.key!r} that {attack.name} takes: {error}"
        ) from error
    return built.repeat(attack.restarts) if attack.restarts > 1 else built


def craft(
    attack: Attack,
    model: Classifier,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | None,
    seed: int,
    eot: int = 1,
    pool: tuple[Float[Tensor, "pool channels height width"], Int[Tensor, " pool"]] | None = None,
) -> Crafted:
    """Run one attack on one batch, with every random draw from `seed`.

    Args:
        attack: The attack.
        model: The variant that is attacked.
        images: Images in [0, 1], on the model's device.
        labels: Their classes.
        epsilon: The bound of a fixed-epsilon attack; None for a minimal-norm attack.
        seed: Of the attack's draws and of the EOT draws.
        eot: Draws of the model's noise per query.
        pool: Images and labels that starting points are chosen from, if the attack asks for them.

    Raises:
        ValueError: If the attack needs a pool and none is given.
    """
    if attack.start_from_images and pool is None:
        raise ValueError(f"Expected a `pool` of images for {attack.key!r}, but got none")
    built = build_attack(attack)
    with isolated_rng(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", InvalidQueryWarning)  # re-scoring judges what comes of it
        target = wrap_for_foolbox(model, eot=eot, seed=seed)
        if pool is None or not attack.start_from_images:
            return Crafted(*_run(built, attack.kind, target, images, labels, epsilon))
        points, found = starting_points(model, images, labels, pool)
        crafted, claimed = images.clone(), torch.zeros_like(found)
        if found.any():
            chosen, classes = images[found], labels[found]
            part = _run(built, attack.kind, target, chosen, classes, epsilon, starting_points=points)
            crafted[found], claimed[found] = part
        return Crafted(crafted, claimed)


@torch.no_grad()
def starting_points(
    model: Classifier,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    pool: tuple[Float[Tensor, "pool channels height width"], Int[Tensor, " pool"]],
) -> tuple[Float[Tensor, "found channels height width"], Bool[Tensor, " batch"]]:
    """Find, for every image, an image that the model labels otherwise (E-ABS section 4.2).

    The nearest image of another class is taken and moved to the decision boundary by bisection, which saves a
    short decision-based attack most of its way.

    Args:
        model: The model, whose decision must repeat.
        images: The attacked images.
        labels: Their classes.
        pool: Images to choose from, and their classes.

    Returns:
        The starting points of the images that have one, and which images these are.
    """
    candidates, classes = pool
    usable = (model(candidates).argmax(1) != labels[:, None]) & (classes != labels[:, None])
    found = usable.any(1)
    distances = torch.cdist(images.flatten(1), candidates.flatten(1)).masked_fill(~usable, torch.inf)
    near, far, labels = images[found], candidates[distances.argmin(1)][found], labels[found]
    low, high = near.new_zeros(len(near), 1, 1, 1), near.new_ones(len(near), 1, 1, 1)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        adversarial = (model(torch.lerp(near, far, middle)).argmax(1) != labels)[:, None, None, None]
        low, high = torch.where(adversarial, low, middle), torch.where(adversarial, middle, high)
    return torch.lerp(near, far, high), found


def _run(
    attack: foolbox.Attack,
    kind: Kind,
    target: foolbox.models.Model,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    epsilon: float | None,
    **arguments: Any,
) -> tuple[Tensor, Tensor]:
    # Foolbox returns the raw and the clipped images; without an epsilon they are the same.
    run: Callable[..., tuple[Tensor, Tensor, Tensor]] = attack.__call__
    bound = None if kind == "minimal norm" else epsilon
    _, clipped, claimed = run(target, images, labels, epsilons=bound, **arguments)
    return clipped.detach(), claimed.bool()
