"""The attacks of a suite, checked and run by the adapters of their toolkits."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..._fields import check_choice, checked_parameter
from ...adapters._targets import nearest_claim, nearest_start
from ...adapters.catalogues.own import TOOLKIT
from ...adapters.contract import AttackEntry, Crafted, resolve
from ...attack_view import InvalidQueryWarning
from ...attacks import ATTACKS, OwnAttack
from ...capabilities import Quantizes
from ...checks import valid_images
from ...contract import Classifier
from ...randomness import isolated_rng
from ...verification import wrong_and_accepted
from ..suites.model import Attack

__all__ = [
    "check_attack",
    "claims",
    "craft",
    "goals_of",
    "queries_of",
    "registered_attacks",
    "shortened",
    "starting_points",
    "uses_gradients",
]

Pool = tuple[Float[Tensor, "pool channels height width"], Int[Tensor, " pool"]]

# What toolkits call the number of their steps, and what multiplies it.
_ROUNDS = (
    *("steps", "num_steps", "nb_iter", "n_iter", "max_iter", "max_iterations", "iterations", "iter"),
    *("repeats", "n_queries", "queries"),
)
_TIMES = (
    ("binary_search_steps",),
    ("restarts", "n_restarts", "nb_restarts", "num_random_init"),
    ("eot_iter",),
)
BISECTIONS = 8  # between an image and its starting point: to 1/256 of their distance


def check_attack(attack: Attack, *, channels: int = 1) -> None:
    """Checks that an attack is there, runs here, and takes what the suite gives it.

    Args:
        attack: The attack.
        channels: Number of channels of the images.

    Raises:
        ValueError: If its toolkit or name is unknown (the nearest are named), it cannot run here, it is of
            the other kind or of another norm, or it takes no such parameter, target or starting point.
    """
    adapter, entry = resolve(attack.toolkit, attack.name)
    if obstacle := adapter.obstacle(entry, channels=channels):
        raise ValueError(
            f"Expected an attack that runs here, but {attack.name} of {adapter.title}: {obstacle}"
        )
    if entry.needs_epsilon != (attack.kind == "fixed epsilon"):
        raise ValueError(
            f"Expected {attack.name} to be an attack of `kind` {attack.kind!r}, but it "
            f"{'needs' if entry.needs_epsilon else 'takes no'} epsilon"
        )
    if entry.norm not in (attack.norm, "other"):
        raise ValueError(
            f"Expected `norm` of {attack.key!r} to be {entry.norm!r}, the norm of {attack.name}, "
            f"but got {attack.norm!r}"
        )
    if attack.targeted and not entry.targeted:
        raise ValueError(f"Expected no `targeted` for {attack.key!r}: {attack.name} cannot be told a class")
    if attack.start_from_images and not entry.starts:
        raise ValueError(
            f"Expected no `start_from_images` for {attack.key!r}: {attack.name} takes no starting points"
        )
    accepted = adapter.load().accepts(entry.name)
    for name in attack.parameters:
        check_choice(f"parameters of {attack.key}", name, sorted(accepted))
    _parameters(attack)


def _parameters(attack: Attack) -> dict[str, Any]:
    """Returns what the suite gives an attack, as its toolkit takes it: 4 where a file says 4.0."""
    if not attack.parameters:
        return {}
    adapter, entry = resolve(attack.toolkit, attack.name)
    accepted = adapter.load().accepts(entry.name)
    return {
        name: checked_parameter(value, accepted[name], f"`{name}` of {attack.key!r}")
        for name, value in attack.parameters.items()
    }


def queries_of(attack: Attack, model: Classifier) -> int:
    """Estimates how often an attack asks about an image that resists to the end; at least 1.

    The attack declares it, or its parameters say it by their names: the suite's, the catalogue's, or the
    toolkit's by default.

    Args:
        attack: The attack.
        model: The attacked classifier.
    """
    adapter, entry = resolve(attack.toolkit, attack.name)
    given = {name: accepted.default for name, accepted in adapter.load().accepts(entry.name).items()}
    given |= entry.configured(_parameters(attack)).parameters
    if entry.queries is None:
        queries = _first(given, _ROUNDS) * math.prod(_first(given, names) for names in _TIMES)
    else:
        queries = entry.queries(model, **given)
    if not attack.targeted and (entry.every_class or (entry.targeted and model.rejects)):
        queries *= model.num_classes - 1
    return max(1, queries * attack.restarts)


def _first(given: Mapping[str, Any], names: Sequence[str]) -> int:
    """Returns the first parameter that is there and a number of at least 1; otherwise 1."""
    found = (given.get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), 1)


def registered_attacks(attacks: Iterable[Attack]) -> tuple[OwnAttack, ...]:
    """Returns the functions behind attacks that are registered and of no toolkit, each once."""
    own = {attack.name: ATTACKS.get(attack.name) for attack in attacks if attack.toolkit == TOOLKIT}
    return tuple(own.values())


def uses_gradients(attack: Attack) -> bool:
    """Returns whether an attack uses gradients, so that a vanished gradient would stop it."""
    return resolve(attack.toolkit, attack.name)[1].knowledge == "white"


def goals_of(
    attack: Attack, labels: Int[Tensor, " batch"], num_classes: int, *, seed: int
) -> Int[Tensor, " batch"] | None:
    """Draws the class that a targeted attack goes for, other than its own, for every image.

    Args:
        attack: The attack.
        labels: The classes of the images.
        num_classes: K.
        seed: The seed of the draw.

    Returns:
        The classes; None if the attack is not targeted.
    """
    if not attack.targeted:
        return None
    shift = torch.randint(1, num_classes, labels.shape, generator=torch.Generator().manual_seed(seed))
    return (labels + shift.to(labels.device)) % num_classes


def craft(
    attack: Attack,
    model: Classifier,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    goals: Int[Tensor, " batch"] | None = None,
    epsilon: float | None,
    seed: int,
    eot: int = 1,
    pool: Pool | None = None,
) -> Crafted:
    """Runs one attack on one batch, with every random draw from `seed`.

    Args:
        attack: The attack.
        model: The variant that is attacked.
        images: Images in [0, 1], on the model's device.
        labels: Their classes.
        goals: The classes that a targeted attack is to reach; see `goals_of`.
        epsilon: The bound of a fixed-epsilon attack; None for a minimal-norm attack.
        seed: Seed of the attack's draws and of the EOT draws.
        eot: Draws of the model's noise per query.
        pool: Images and labels that starting points are chosen from, if the attack asks for them.

    Raises:
        ValueError: If the attack needs a pool, or goals, and none are given.
    """
    if attack.targeted and goals is None:
        raise ValueError(f"Expected `goals` for {attack.key!r}, which is targeted, but got none")
    if attack.start_from_images and pool is None:
        raise ValueError(f"Expected a `pool` of images for {attack.key!r}, but got none")
    with isolated_rng(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", InvalidQueryWarning)  # re-scoring judges what comes of it
        entry = resolve(attack.toolkit, attack.name)[1].configured(_parameters(attack))
        aims = labels if goals is None else goals
        if pool is None or not attack.start_from_images:
            made = _repeated(attack, entry, model, images, aims, epsilon=epsilon, seed=seed, eot=eot)
            return replace(made, images=shortened(made.images, model, images))
        points, found = starting_points(model, images, labels, pool)
        crafted, claimed = images.clone(), torch.zeros_like(found)
        if found.any():
            started = entry.configured({entry.starts: points})
            part = _repeated(
                attack, started, model, images[found], aims[found], epsilon=epsilon, seed=seed, eot=eot
            )
            crafted[found], claimed[found] = part.images, part.claimed if part.claimed is not None else False
        return Crafted(shortened(crafted, model, images), claimed)


def shortened(
    made: Float[Tensor, "batch channels height width"],
    model: Classifier,
    images: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels height width"]:
    """Leaves out of perturbations what a model that reads few levels does not see."""
    if not isinstance(model, Quantizes):
        return made
    return model.nearest_alike(made, images.to(made))


def _repeated(
    attack: Attack,
    entry: AttackEntry,
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | None,
    seed: int,
    eot: int,
) -> Crafted:
    """Runs an attack as often as the suite says, and keeps each image's nearest claim.

    `labels` are the classes to reach if the attack is targeted.
    """
    implementation = resolve(attack.toolkit, attack.name)[0].load()
    options = {name: value for name, value in entry.options.items() if name != "seed"}
    target = implementation.wrap(model, eot=eot, seed=seed, **options)

    def run() -> Crafted:
        return implementation.craft(entry, target, images, labels, epsilon=epsilon, targeted=attack.targeted)

    if attack.restarts == 1:
        return run()
    runs = (run() for _ in range(attack.restarts))
    claiming = (replace(made, claimed=claims(attack, model, made, labels)) for made in runs)
    return Crafted(*nearest_claim(claiming, images, norm=attack.norm))


def claims(attack: Attack, model: Classifier, made: Crafted, aims: Tensor) -> Bool[Tensor, " batch"]:
    """Returns the claims of an attack; for a toolkit that makes none, where the attacked model is wrong.

    Args:
        attack: The attack.
        model: The model that it attacked.
        made: What it made.
        aims: The classes of the images; the classes to reach if the attack is targeted.
    """
    if made.claimed is not None:
        return made.claimed
    return _fooled(model, made.images, aims, targeted=attack.targeted)


def _fooled(model: Classifier, images: Tensor, labels: Tensor, *, targeted: bool) -> Tensor:
    """Returns where the attacked model is wrong, for a toolkit that makes no claims."""
    valid = valid_images(images)
    fooled = torch.zeros_like(valid)
    if valid.any():
        decision = model.predict(images[valid].to(model.like.dtype))
        reached = decision.labels == labels[valid]
        fooled[valid] = (reached if targeted else ~reached) & ~decision.rejected
    return fooled


@torch.no_grad()
def starting_points(
    model: Classifier,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    pool: Pool,
) -> tuple[Float[Tensor, "found channels height width"], Bool[Tensor, " batch"]]:
    """Finds, for every image, an image that the model labels otherwise (E-ABS section 4.2).

    The nearest image of another class is taken and moved to the decision boundary by bisection, which saves a
    short decision-based attack most of its way. An image that the model rejects is no starting point.

    Args:
        model: The model, whose decision must repeat.
        images: The attacked images.
        labels: Their classes.
        pool: Images to choose from, and their classes.

    Returns:
        The starting points of the images that have one, and which images these are.
    """
    candidates, classes = pool
    answers, count = model(candidates), model.num_classes
    fooled = [wrong_and_accepted(answers, label.expand(len(answers)), num_classes=count) for label in labels]
    usable = torch.stack(fooled) & (classes != labels[:, None])
    nearest, distances = nearest_start(images, candidates, usable, norm="l2")
    found = distances.isfinite()
    near, far, labels = images[found], nearest[found], labels[found]
    low, high = near.new_zeros(len(near), 1, 1, 1), near.new_ones(len(near), 1, 1, 1)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        moved = wrong_and_accepted(model(torch.lerp(near, far, middle)), labels, num_classes=count)
        adversarial = moved[:, None, None, None]
        low, high = torch.where(adversarial, low, middle), torch.where(adversarial, middle, high)
    return torch.lerp(near, far, high), found
