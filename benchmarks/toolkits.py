"""The attacks of the toolkits, built and run as a suite's entries say."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import foolbox
import torch
from foolbox.attacks.base import FixedEpsilonAttack, MinimizationAttack
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..adapters._foolbox import wrap_for_foolbox
from ..adapters.registry import Crafted, registered
from ..adapters.verification import distance
from ..classifier import Classifier, valid_images
from ..randomness import isolated_rng
from ..views import InvalidQueryWarning
from .counting import Calls
from .own import OWN_ATTACKS
from .suites import OWN, Attack, Kind, check_choice

__all__ = ["build_attack", "check_attack", "craft", "starting_points", "uncounted_calls", "uses_gradients"]

FOOLBOX = "foolbox"

BISECTIONS = 8  # between an image and its starting point: to 1/256 of their distance


def check_attack(attack: Attack, *, channels: int = 1) -> None:
    """Check that an attack is there, and runs here.

    Args:
        attack: The attack.
        channels: Of the images.

    Raises:
        ValueError: If its toolkit or name is unknown (the nearest is named), it cannot run here, or it is of
            the other kind.
    """
    adapters = registered()
    check_choice(f"toolkit of {attack.key}", attack.toolkit, [*adapters, OWN])
    if attack.toolkit == OWN:
        check_choice(f"name of {attack.key}", attack.name, list(OWN_ATTACKS))
        return
    adapter = adapters[attack.toolkit]
    if attack.toolkit == FOOLBOX:
        build_attack(attack)
        return
    check_choice(f"name of {attack.key}", attack.name, [entry.name for entry in adapter.attacks])
    entry = adapter.attack(attack.name)
    if obstacle := adapter.obstacle(entry, channels=channels):
        raise ValueError(
            f"Expected an attack that runs here, but {attack.name} of {adapter.title}: {obstacle}"
        )
    if entry.needs_epsilon != (attack.kind == "fixed epsilon"):
        raise ValueError(
            f"Expected {attack.name} to be an attack of `kind` {attack.kind!r}, but it "
            f"{'needs' if entry.needs_epsilon else 'takes no'} epsilon"
        )


def uncounted_calls(attack: Attack, *, num_classes: int, images: int) -> Calls:
    """Give the calls of an attack that asks for more than a toolkit's view shows."""
    if attack.toolkit != OWN:
        return Calls()
    return OWN_ATTACKS[attack.name].calls(attack, num_classes=num_classes, images=images)


def uses_gradients(attack: Attack) -> bool:
    """Say whether an attack differentiates, so that a vanished gradient would stop it."""
    if attack.toolkit == OWN:
        return OWN_ATTACKS[attack.name].uses_gradients
    known = {entry.name: entry.knowledge == "white" for entry in registered()[attack.toolkit].attacks}
    return known.get(attack.name, False)


def build_attack(attack: Attack) -> foolbox.Attack:
    """Make Foolbox's own attack object.

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
    with isolated_rng(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", InvalidQueryWarning)  # re-scoring judges what comes of it
        if attack.toolkit == OWN:
            return OWN_ATTACKS[attack.name].run(model, images, labels, attack, epsilon, seed)
        if attack.toolkit != FOOLBOX or attack.targeted or (model.rejects and not attack.start_from_images):
            return _by_adapter(attack, model, images, labels, epsilon=epsilon, seed=seed, eot=eot)
        built = build_attack(attack)
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


def _by_adapter(
    attack: Attack,
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | None,
    seed: int,
    eot: int,
) -> Crafted:
    """Run an attack by the toolkit's adapter; of several restarts, keep each image's nearest claim."""
    adapter = registered()[attack.toolkit]
    implementation, entry = adapter.load(), adapter.attack(attack.name)
    if attack.toolkit == FOOLBOX:
        entry = replace(entry, parameters={})  # Foolbox's own defaults, as on models that do not reject
    options = {name: value for name, value in entry.options.items() if name != "seed"}
    target = implementation.wrap(model, eot=eot, seed=seed, **options)
    parameters: dict[str, Any] = dict(attack.parameters)
    if attack.targeted:
        shift = torch.randint(
            1, model.num_classes, labels.shape, generator=torch.Generator().manual_seed(seed)
        )
        labels = (labels + shift.to(labels.device)) % model.num_classes
    best: Crafted | None = None
    for _ in range(attack.restarts):
        found = implementation.craft(
            entry, target, images, labels, epsilon=epsilon, targeted=attack.targeted, **parameters
        )
        if attack.restarts > 1 and found.claimed is None:
            found = Crafted(found.images, _fooled(model, found.images, labels, targeted=attack.targeted))
        best = found if best is None else _nearer(best, found, images, attack)
    if best is None:
        raise ValueError(f"Expected `restarts` of at least 1, but got {attack.restarts}")
    return best


def _fooled(model: Classifier, images: Tensor, labels: Tensor, *, targeted: bool) -> Tensor:
    """Say where the attacked model is wrong, for a toolkit that does not."""
    valid = valid_images(images)
    fooled = torch.zeros_like(valid)
    if valid.any():
        decision = model.predict(images[valid].to(next(model.parameters()).dtype))
        reached = decision.labels == labels[valid]
        fooled[valid] = (reached if targeted else ~reached) & ~decision.rejected
    return fooled


def _nearer(kept: Crafted, found: Crafted, images: Tensor, attack: Attack) -> Crafted:
    if kept.claimed is None or found.claimed is None:
        raise ValueError(f"Expected claims of {attack.key!r}, but got none")
    shorter = distance(found.images - images, attack.norm) < distance(kept.images - images, attack.norm)
    better = found.claimed & (~kept.claimed | shorter)
    rows = better[:, None, None, None]
    return Crafted(torch.where(rows, found.images, kept.images), kept.claimed | found.claimed)


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
