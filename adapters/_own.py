"""This package's attacks, and those that users register: functions of an `AttackView`."""

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attack_view import AttackView, Output, attack_view
from ..attacks import ATTACKS, OwnAttack
from ..checks import valid_images
from ..contract import Classifier
from ..verification import wrong_and_accepted
from ._targets import nearest_claim_of_every_class
from .contract import AttackEntry, Crafted

__all__ = ["accepts", "craft", "wrap"]

SEEDS = 1 << 31


def wrap(model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0) -> AttackView:
    """Returns the view that an attack gets; see `attack_view`."""
    return attack_view(model, eot=eot, output=output, seed=seed)


def accepts(name: str) -> Mapping[str, Parameter]:
    """Returns the parameters of an attack; see `contract.Implementation`."""
    return ATTACKS.get(name).keywords


def craft(
    entry: AttackEntry,
    target: AttackView,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    targeted: bool = False,
) -> Crafted:
    """Runs one attack on one batch; see `contract.Implementation`.

    The attack's generator gets its seed from torch's global one. An attack that reaches for a class, run
    untargeted, goes through every other class; so does an attack that can do either, on a model that may
    reject: a rejection is no success. Each image's nearest claim is kept.

    Args:
        entry: Which attack, with its parameters.
        target: What `wrap` gave.
        images: Images in [0, 1], on the model's device.
        labels: Their classes; the classes to reach when `targeted`.
        epsilon: Radius of the ball, for attacks that search within one.
        targeted: Whether `labels` are to be reached, not left.

    Raises:
        ValueError: If the attack is not registered, needs an epsilon and gets none, cannot be told a class
            and is, or returns something else than a batch of images.
    """
    attack = ATTACKS.get(entry.name)
    if targeted and attack.targets == "none":
        raise ValueError(f"Expected `targeted` of False for {entry.name}, which cannot be told a class")
    if attack.needs_epsilon and epsilon is None:
        raise ValueError(f"Expected an `epsilon` for {entry.name}, which searches in a ball, but got none")
    given: dict[str, Any] = {
        **entry.parameters,
        "epsilon": epsilon if attack.needs_epsilon else None,
        "generator": torch.Generator().manual_seed(int(torch.randint(SEEDS, ()))),
    }
    if targeted or attack.targets == "none" or (attack.targets == "optional" and not target.model.rejects):
        return Crafted(_run(attack, target, images, labels, targeted=targeted, given=given))

    def toward(goal: Tensor) -> Crafted:
        found = _run(attack, target, images, goal, targeted=True, given=given)
        return Crafted(found, _reached(target, found, goal))

    return nearest_claim_of_every_class(
        toward, images, labels, num_classes=target.model.num_classes, norm=entry.measure
    )


def _run(
    attack: OwnAttack,
    target: AttackView,
    images: Tensor,
    labels: Tensor,
    *,
    targeted: bool,
    given: dict[str, Any],
) -> Tensor:
    aim = {"targeted": targeted} if attack.targets == "optional" else {}
    found = attack.function(target, images.clone(), labels.clone(), **aim, **given)
    if not isinstance(found, Tensor) or found.shape != images.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"Expected {attack.name} to return images of shape {tuple(images.shape)}, but got {got}"
        )
    return found.detach().to(images)


@torch.no_grad()
def _reached(target: AttackView, images: Tensor, goal: Tensor) -> Tensor:
    valid = valid_images(images)
    reached = torch.zeros_like(valid)
    if valid.any():
        answers = target.model(images[valid])  # not by the view: the attack does not ask this
        reached[valid] = wrong_and_accepted(
            answers, goal[valid], num_classes=target.model.num_classes, targeted=True
        )
    return reached
