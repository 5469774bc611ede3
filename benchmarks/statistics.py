"""What the rows of a run say: robust accuracies, unions of attacks, significance and distortion curves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest

from ..adapters.verification import reach
from .results import Results
from .suites import CLEAN, Attack, Norm

__all__ = [
    "Claims",
    "Curve",
    "Proportion",
    "Row",
    "Summary",
    "breaking_distances",
    "mcnemar",
    "robust_accuracy",
    "summarise",
    "wilson",
]


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """A share of samples, with its Wilson interval.

    Attributes:
        count: Samples that are counted.
        total: All samples.
        low: Lower end of the interval.
        high: Upper end.
    """

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share."""
        return self.count / self.total


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: clean images, one attack, or all attacks of a norm.

    Attributes:
        key: `"clean"`, the attack's key, or `"all-linf"` and `"all-l2"`.
        title: For readers.
        norm: Of the threat model; None for clean images.
        epsilon: Of the threat model; None for clean images.
        robust: Per model, where the model is right whatever the attack did, one value per sample.
    """

    key: str
    title: str
    norm: Norm | None
    epsilon: float | None
    robust: Mapping[str, Bool[np.ndarray, " samples"]]

    def accuracy(self, model: str) -> Proportion:
        """Give a model's accuracy in this row."""
        return wilson(int(self.robust[model].sum()), len(self.robust[model]))

    def comparisons(self) -> Iterator[tuple[str, str, float]]:
        """Give McNemar's p for every pair of models."""
        for first, second in combinations(self.robust, 2):
            yield first, second, mcnemar(self.robust[first], self.robust[second])


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a toolkit claimed of samples that are right clean, over all epsilons of one attack.

    Attributes:
        model: The model.
        attack: The attack.
        claimed: Examples that the toolkit calls adversarial.
        fell: Of them, those that re-scoring did not confirm.
        invalid: Results that are no images: not finite, or outside [0, 1].
    """

    model: str
    attack: str
    claimed: int
    fell: int
    invalid: int


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Robust accuracy against the size of the perturbation, under the attacks that are known at every size.

    Attributes:
        model: The model.
        norm: Of the perturbation.
        attacks: Titles of these attacks.
        exact: Whether accuracy is known between the epsilons too: a minimal-norm attack is among them.
        epsilons: Sizes, from 0.
        accuracy: Robust accuracy at each of them.
    """

    model: str
    norm: Norm
    attacks: tuple[str, ...]
    exact: bool
    epsilons: Float[np.ndarray, " epsilons"]
    accuracy: Float[np.ndarray, " epsilons"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that table and figure show.

    Attributes:
        rows: Of the table.
        claims: Per model and attack.
        curves: Per norm and model.
    """

    rows: tuple[Row, ...]
    claims: tuple[Claims, ...]
    curves: tuple[Curve, ...]


def wilson(count: int, total: int, *, confidence: float = 0.95) -> Proportion:
    """Give a share with its Wilson score interval.

    Raises:
        ValueError: If there are no samples, or more are counted than there are.
    """
    if total < 1 or not 0 <= count <= total:
        raise ValueError(
            f"Expected `total` of at least 1 and `count` in 0..`total`, but got {total} and {count}"
        )
    interval = binomtest(count, total).proportion_ci(confidence, method="wilson")
    return Proportion(count=count, total=total, low=float(interval.low), high=float(interval.high))


def mcnemar(first: Bool[np.ndarray, " first"], second: Bool[np.ndarray, " second"]) -> float:
    """Give the exact two-sided p of McNemar's test (E-ABS section 4.5).

    Args:
        first: Where one model is right.
        second: Where the other is right, on the same samples.

    Raises:
        ValueError: If the samples are not paired.
    """
    if len(first) != len(second):
        raise ValueError(f"Expected the same samples of both models, but got {len(first)} and {len(second)}")
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def breaking_distances(results: Results, model: str, attack: Attack) -> Float[np.ndarray, " samples"]:
    """Give the length of the shortest perturbation with which an attack broke each sample.

    0 where the clean image is labelled wrongly already, infinite where nothing worked. An example counts at
    every epsilon that its perturbation fits in, whichever epsilon it was made for.

    Returns:
        One distance per sample, in the order of the samples.
    """
    rows = _rows(results, model, attack.key)
    distances = np.where(rows["success"], rows[f"distance_{attack.norm}"], np.inf)
    distances[~_right_clean(rows)] = 0.0
    shortest = np.full(len(results.samples), np.inf)
    np.minimum.at(shortest, _positions(results, rows), distances)
    return shortest


def robust_accuracy(
    distances: Float[np.ndarray, " samples"], epsilons: Float[np.ndarray, " epsilons"]
) -> Float[np.ndarray, " epsilons"]:
    """Give the share of samples that no perturbation within each epsilon breaks."""
    return np.array([(distances > reach(float(epsilon))).mean() for epsilon in epsilons])


def summarise(results: Results) -> Summary:
    """Compute everything that table and figure show."""
    suite = results.suite
    distances = {
        (model, attack.key): breaking_distances(results, model, attack)
        for model in results.models
        for attack in suite.attacks
    }
    rows = [_clean_row(results)]
    curves: list[Curve] = []
    for threat in suite.threat_models:
        attacks = [attack for attack in suite.attacks if attack.norm == threat.norm]
        groups = [(attack.key, attack.title, [attack]) for attack in attacks]
        if len(attacks) > 1:
            groups.append((f"all-{threat.norm}", "all attacks", attacks))
        for key, title, group in groups:
            robust = {
                model: _shortest(distances, model, group) > reach(threat.epsilon) for model in results.models
            }
            rows.append(Row(key=key, title=title, norm=threat.norm, epsilon=threat.epsilon, robust=robust))
        everywhere = [attack for attack in attacks if attack.every_epsilon or attack.kind == "minimal norm"]
        curves += [
            _curve(model, threat.norm, threat.epsilons, everywhere, _shortest(distances, model, everywhere))
            for model in results.models
            if everywhere
        ]
    claims = [_claims(results, model, attack) for attack in suite.attacks for model in results.models]
    return Summary(rows=tuple(rows), claims=tuple(claims), curves=tuple(curves))


def _rows(results: Results, model: str, attack: str) -> pa.Table:
    return results.rows.filter((pc.field("model") == model) & (pc.field("attack") == attack))


def _positions(results: Results, rows: pa.Table) -> Int[np.ndarray, " rows"]:
    order = np.argsort(results.samples)
    positions: Int[np.ndarray, " rows"] = order[
        np.searchsorted(results.samples, rows["sample"], sorter=order)
    ]
    return positions


def _right_clean(rows: pa.Table) -> Bool[np.ndarray, " rows"]:
    right: Bool[np.ndarray, " rows"] = np.equal(rows["clean_prediction"], rows["label"])
    return right


def _clean_row(results: Results) -> Row:
    robust = {}
    for model in results.models:
        rows = _rows(results, model, CLEAN)
        right = np.zeros(len(results.samples), dtype=bool)
        right[_positions(results, rows)] = _right_clean(rows)
        robust[model] = right
    return Row(key=CLEAN, title="clean", norm=None, epsilon=None, robust=robust)


def _shortest(
    distances: Mapping[tuple[str, str], Float[np.ndarray, " samples"]], model: str, attacks: Sequence[Attack]
) -> Float[np.ndarray, " samples"]:
    shortest: Float[np.ndarray, " samples"] = np.min([distances[model, a.key] for a in attacks], axis=0)
    return shortest


def _curve(
    model: str,
    norm: Norm,
    epsilons: Sequence[float],
    attacks: Sequence[Attack],
    distances: Float[np.ndarray, " samples"],
) -> Curve:
    exact = any(attack.kind == "minimal norm" for attack in attacks)
    known = np.unique([0.0, *epsilons, *(distances[np.isfinite(distances)] if exact else ())])
    return Curve(
        model=model,
        norm=norm,
        attacks=tuple(attack.title for attack in attacks),
        exact=exact,
        epsilons=known,
        accuracy=robust_accuracy(distances, known),
    )


def _claims(results: Results, model: str, attack: Attack) -> Claims:
    rows = _rows(results, model, attack.key)
    claimed = np.asarray(rows["claimed"]) & _right_clean(rows)
    return Claims(
        model=model,
        attack=attack.key,
        claimed=int(claimed.sum()),
        fell=int((claimed & ~np.asarray(rows["success"])).sum()),
        invalid=int((~np.asarray(rows["valid"])).sum()),
    )
