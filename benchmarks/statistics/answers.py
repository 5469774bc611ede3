"""What models answered at one epsilon: entropy, what reached its target, was detected, or reclassified."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ..run.results import Results
from ..suites.model import CLEAN, Attack, Norm, Quantity, Suite
from .distances import Outcomes
from .significance import Proportion, mean_interval, wilson

__all__ = [
    "ANSWERED",
    "Entropy",
    "Rejections",
    "Targeted",
    "counted",
    "entropies",
    "rejections",
    "successful_lengths",
    "targeted",
]

Column = np.ndarray[Any, Any]

REJECTED: tuple[Quantity, ...] = ("detection", "reclassified", "recovered")
ANSWERED: tuple[Quantity, ...] = ("reached", *REJECTED)


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """The mean predictive entropy of a model under an attack at one epsilon.

    Attributes:
        model: The model.
        key: The attack's key, or `"clean"`.
        title: For readers.
        norm: The norm of the perturbation; None for clean images.
        epsilon: The bound; None where there is none.
        value: The mean of H[p(y | x)], in nats.
        total: Number of images.
    """

    model: str
    key: str
    title: str
    norm: Norm | None
    epsilon: float | None
    value: float
    total: int


@dataclass(frozen=True, kw_only=True)
class Rejections:
    """Effect of rejection, under an attack at one epsilon.

    Attributes:
        model: The model.
        key: The attack's key, or `"clean"`.
        title: For readers.
        norm: The norm of the perturbation; None for clean images.
        epsilon: The bound; None where there is none.
        detection: Rejected, among the examples that fool what was attacked; None if nothing was fooled.
        reclassified: Rightly relabelled, among the rejected images; None where none was looked at again.
        recovered: Right once rejected images are relabelled, among all; None likewise.
    """

    model: str
    key: str
    title: str
    norm: Norm | None
    epsilon: float | None
    detection: Proportion | None
    reclassified: Proportion | None
    recovered: Proportion | None


@dataclass(frozen=True, kw_only=True)
class Targeted:
    """Result of a targeted attack on a model, at one epsilon.

    Attributes:
        model: The model.
        key: The attack's key.
        title: For readers.
        norm: The norm of the perturbation.
        epsilon: The bound; None where there is none.
        reached: Labelled as the class that the attack goes for, among all attempts.
        length: The mean length of the perturbations that have success, whose label is any wrong one; None
            without any.
        low: Lower end of the mean's 95 % interval; None likewise.
        high: Upper end.
    """

    model: str
    key: str
    title: str
    norm: Norm | None
    epsilon: float | None
    reached: Proportion
    length: float | None
    low: float | None
    high: float | None


def counted(
    outcomes: Outcomes, model: str, attack: str, epsilon: float | None, quantity: Quantity
) -> Bool[np.ndarray, " counted"]:
    """Returns, for every image that a quantity is counted over, whether it counts.

    Args:
        outcomes: The run.
        model: Name of the model.
        attack: Key of the attack, or `"clean"`.
        epsilon: Epsilon of the examples; only these count, unlike in a robust accuracy.
        quantity: `"reached"`: labelled as the class that the attack goes for, among all attempts.
            `"detection"`: rejected, among the examples that fool what was attacked. `"reclassified"`: rightly
            relabelled, among the rejected images. `"recovered"`: right after that, among all.
    """
    rows = _at(outcomes, model, attack, epsilon)
    rejected, label = rows["rejected"], rows["label"]
    relabelled = rows["reclassified"] == label  # not so where it is null, which is NaN
    if quantity == "reached":
        found: Column = (rows["prediction"] == rows["goal"])[~np.isnan(rows["goal"])]
    elif quantity == "detection":
        found = rejected[rows["claimed"]]
    elif quantity == "reclassified":
        found = relabelled[rejected & ~np.isnan(rows["reclassified"])]
    else:
        found = np.where(rejected, relabelled, rows["prediction"] == label)
    return found


def entropies(results: Results, outcomes: Outcomes) -> Iterator[Entropy]:
    """Returns the mean predictive entropy of every model, on clean images and at every epsilon."""
    for model in results.models:
        for attack, epsilon in _places(results.suite, model):
            rows = _at(outcomes, model, attack.key if attack else CLEAN, epsilon)
            known = rows["entropy"][~np.isnan(rows["entropy"])]
            if len(known):
                yield Entropy(**_named(model, attack, epsilon), value=float(known.mean()), total=len(known))


def rejections(results: Results, outcomes: Outcomes) -> Iterator[Rejections]:
    """Returns the effect of rejection, of every model that rejected something."""
    for model in results.models:
        for attack, epsilon in _places(results.suite, model):
            key = attack.key if attack else CLEAN
            if not _at(outcomes, model, key, epsilon)["rejected"].any():
                continue
            detection, reclassified, recovered = (
                _share(counted(outcomes, model, key, epsilon, quantity)) for quantity in REJECTED
            )
            yield Rejections(
                **_named(model, attack, epsilon),
                detection=detection if attack else None,  # else nothing was attacked
                reclassified=reclassified,
                recovered=recovered if reclassified else None,
            )


def targeted(results: Results, outcomes: Outcomes) -> Iterator[Targeted]:
    """Returns the result of every targeted attack."""
    for model in results.models:
        for attack, epsilon in _places(results.suite, model):
            if attack is None or not attack.targeted:
                continue
            reached = _share(counted(outcomes, model, attack.key, epsilon, "reached"))
            lengths = successful_lengths(outcomes, model, attack, epsilon)
            length, low, high = mean_interval(lengths) if len(lengths) else (None, None, None)
            if reached is not None:
                yield Targeted(
                    **_named(model, attack, epsilon), reached=reached, length=length, low=low, high=high
                )


def successful_lengths(
    outcomes: Outcomes, model: str, attack: Attack, epsilon: float | None
) -> Float[np.ndarray, " successes"]:
    """Returns the lengths of the perturbations that made a model wrong about images that it had right."""
    here = outcomes.here(model, attack.key, epsilon)
    won = outcomes.success(model, attack.key) & outcomes.right_clean(model, attack.key)
    lengths: Column = outcomes.column(f"distance_{attack.norm}", model, attack.key)[here & won]
    return lengths


def _places(suite: Suite, model: str) -> Iterator[tuple[Attack | None, float | None]]:
    yield None, None
    for attack in suite.attacks_of(model):
        for epsilon in suite.epsilons(attack):
            yield attack, epsilon


def _at(outcomes: Outcomes, model: str, attack: str, epsilon: float | None) -> Mapping[str, Column]:
    names = ("rejected", "claimed", "label", "goal", "prediction", "reclassified", "entropy")
    here = outcomes.here(model, attack, epsilon)
    return {name: outcomes.column(name, model, attack)[here] for name in names}


def _named(model: str, attack: Attack | None, epsilon: float | None) -> dict[str, Any]:
    return {
        "model": model,
        "key": attack.key if attack else CLEAN,
        "title": attack.title if attack else "clean",
        "norm": attack.norm if attack else None,
        "epsilon": epsilon,
    }


def _share(where: Bool[np.ndarray, " counted"]) -> Proportion | None:
    return wilson(int(where.sum()), len(where)) if len(where) else None
