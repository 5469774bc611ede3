"""The summary of a run: every number that a table, a figure, a page or a comparison shows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Self

import numpy as np
from jaxtyping import Bool, Float

from ..results import Failure, Results
from ..suites import ALL, CLEAN, Attack, Norm, Suite
from .distances import Distances, Outcomes, robust_accuracy
from .paper import PaperValue, paper_values
from .significance import Proportion, mcnemar_p, median_interval, wilson, wilson_interval

__all__ = ["Cost", "Curve", "Health", "Median", "Row", "Summary", "summarise"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: clean images, one attack, or all attacks of a norm.

    A model stands in the row if it was attacked so; a model that refuses an image is not right about it.

    Attributes:
        key: `"clean"`, the attack's key, or `"all-linf"`, `"all-l2"` and so on.
        title: For readers.
        norm: Of the threat model; None for clean images.
        epsilon: Of the threat model; None for clean images.
        robust: Per model, where it is right and accepts whatever the attack did, one value per sample.
        rejected: Per model, where refusing is the worst that the attack reached.
        known: Per model, which samples were attacked: all of them, once the run is finished.
    """

    key: str
    title: str
    norm: Norm | None
    epsilon: float | None
    robust: Mapping[str, Bool[np.ndarray, " samples"]]
    rejected: Mapping[str, Bool[np.ndarray, " samples"]]
    known: Mapping[str, Bool[np.ndarray, " samples"]]

    @property
    def is_union(self) -> bool:
        """Whether the row stands for all attacks of a norm."""
        return self.key.startswith(f"{ALL}-")

    def accuracy(self, model: str) -> Proportion:
        """Give how many samples a model is right about and accepts."""
        return self._share(model, self.robust[model])

    def rejection(self, model: str) -> Proportion:
        """Give how many samples a model refuses."""
        return self._share(model, self.rejected[model])

    def error(self, model: str) -> Proportion:
        """Give how many samples a model is wrong about and accepts."""
        return self._share(model, ~self.robust[model] & ~self.rejected[model])

    def coverage(self, model: str) -> Proportion:
        """Give how many samples a model accepts."""
        return self._share(model, ~self.rejected[model])

    def risk(self, model: str) -> Proportion | None:
        """Give how many of the samples that a model accepts it is wrong about; None if it accepts none."""
        accepted = self.coverage(model).count
        return wilson(self.error(model).count, accepted) if accepted else None

    def comparisons(self) -> Iterator[tuple[str, str, float]]:
        """Give McNemar's p for every pair of models, on the samples that both were attacked on."""
        models = list(self.robust)
        right = np.array([self.robust[model] & self.known[model] for model in models], dtype=np.float32)
        wrong = np.array([~self.robust[model] & self.known[model] for model in models], dtype=np.float32)
        only = np.rint(right @ wrong.T).astype(np.int64)
        pairs = list(combinations(range(len(models)), 2))
        first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        p = mcnemar_p(only[first, second], only[second, first])
        for (i, j), value in zip(pairs, p, strict=True):
            yield models[i], models[j], float(value)

    def _share(self, model: str, where: Bool[np.ndarray, " samples"]) -> Proportion:
        known = self.known[model]
        return wilson(int((where & known).sum()), int(known.sum()))


@dataclass(frozen=True, kw_only=True)
class Health:
    """Whether what an attack says of a model can be believed, over all its epsilons.

    Attributes:
        model: The model.
        attack: The attack.
        examples: What the attack returned.
        claimed: Examples that the toolkit calls adversarial, of samples that are right clean.
        fell: Of them, those that re-scoring did not confirm.
        invalid: Results that are no images: not finite, or outside [0, 1].
        zero_gradient: Samples at which a gradient attack had nothing to go by.
        unstable: Verdicts that changed when the model drew its noise again.
    """

    model: str
    attack: str
    examples: int
    claimed: int
    fell: int
    invalid: int
    zero_gradient: int
    unstable: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an attack on a model took, means over its examples.

    Attributes:
        model: The model.
        attack: The attack.
        seconds: Per example.
        queries: Forward calls.
        gradients: Backward calls.
    """

    model: str
    attack: str
    seconds: float
    queries: float
    gradients: float


@dataclass(frozen=True, kw_only=True)
class Median:
    """The median distance to the nearest adversarial example that a minimal-norm attack found.

    A sample that is wrong without any attack has distance 0, one that nothing broke has an infinite one.

    Attributes:
        model: The model.
        key: The attack's key, or `"all-l2"` and so on: the nearest of several attacks.
        title: For readers.
        norm: Of the perturbation.
        value: The median.
        low: Lower end of its 95 % interval, an order statistic.
        high: Upper end.
        total: Number of samples.
    """

    model: str
    key: str
    title: str
    norm: Norm
    value: float
    low: float
    high: float
    total: int


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
        low: Lower ends of the 95 % Wilson intervals.
        high: Upper ends.
    """

    model: str
    norm: Norm
    attacks: tuple[str, ...]
    exact: bool
    epsilons: Float[np.ndarray, " epsilons"]
    accuracy: Float[np.ndarray, " epsilons"]
    low: Float[np.ndarray, " epsilons"]
    high: Float[np.ndarray, " epsilons"]

    def thinned(self, points: int) -> Self:
        """Give the curve with at most this many points, both ends among them; too few are not worth drawing.

        Raises:
            ValueError: If `points` is below 2.
        """
        if points < 2:
            raise ValueError(f"Expected `points` of at least 2, but got {points}")
        if len(self.epsilons) <= points:
            return self
        kept = np.linspace(0, len(self.epsilons) - 1, points).round().astype(np.int64)
        return replace(
            self,
            epsilons=self.epsilons[kept],
            accuracy=self.accuracy[kept],
            low=self.low[kept],
            high=self.high[kept],
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that is shown of a run.

    Attributes:
        rows: Of the table.
        grid: The rows of the table, and those of every attack at every other epsilon where it is known.
        claims: Whether the attacks can be believed, per model and attack.
        curves: Per norm and model.
        medians: Median distances, per model and minimal-norm attack.
        costs: Per model and attack.
        paper: The paper's numbers beside ours.
        failures: Cells that could not be computed.
        missing: Number of cells that are not there, the failed ones among them.
    """

    rows: tuple[Row, ...]
    grid: tuple[Row, ...]
    claims: tuple[Health, ...]
    curves: tuple[Curve, ...]
    medians: tuple[Median, ...]
    costs: tuple[Cost, ...]
    paper: tuple[PaperValue, ...]
    failures: tuple[Failure, ...]
    missing: int


def summarise(results: Results) -> Summary:
    """Compute everything that is shown of a run, or of as much of it as is there."""
    suite, outcomes = results.suite, Outcomes(results)
    clean = {model: outcomes.clean(model) for model in results.models}
    attacked = {
        (model, attack.key): outcomes.attacked(model, attack)
        for model in results.models
        for attack in suite.attacks_of(model)
    }
    rows = [_row(CLEAN, "clean", None, None, clean)]
    elsewhere: list[Row] = []
    curves: list[Curve] = []
    medians: list[Median] = []
    for norm in suite.norms:
        attacks = [attack for attack in suite.attacks if attack.norm == norm]
        rows += _rows_of_norm(suite, norm, attacks, attacked)
        elsewhere += _rows_elsewhere(suite, norm, attacks, attacked)
        curves += _curves(results, norm, attacks, attacked)
        medians += _medians(norm, attacks, attacked)
    pairs = [(model, attack) for attack in suite.attacks for model in results.models]
    pairs = [(model, attack) for model, attack in pairs if len(outcomes.column("sample", model, attack.key))]
    return Summary(
        rows=tuple(row for row in rows if row.robust),
        grid=tuple(row for row in (*rows, *elsewhere) if row.robust),
        claims=tuple(_health(outcomes, model, attack.key) for model, attack in pairs),
        curves=tuple(curves),
        medians=tuple(medians),
        costs=tuple(_cost(outcomes, model, attack.key) for model, attack in pairs),
        paper=paper_values(results, clean, attacked),
        failures=results.failures,
        missing=results.missing,
    )


Attacked = Mapping[tuple[str, str], Distances]


def _row(
    key: str, title: str, norm: Norm | None, epsilon: float | None, distances: Mapping[str, Distances]
) -> Row:
    bound = epsilon or 0.0
    there = {model: part for model, part in distances.items() if part.known.any()}
    return Row(
        key=key,
        title=title,
        norm=norm,
        epsilon=epsilon,
        robust={model: part.right(bound) for model, part in there.items()},
        rejected={model: part.rejected(bound) for model, part in there.items()},
        known={model: part.known for model, part in there.items()},
    )


def _rows_of_norm(suite: Suite, norm: Norm, attacks: Sequence[Attack], attacked: Attacked) -> Iterator[Row]:
    epsilon = suite.threat_model(norm).epsilon
    groups = [(attack.key, attack.title, [attack]) for attack in attacks]
    if len(attacks) > 1:
        groups.append((f"{ALL}-{norm}", "all attacks", list(attacks)))
    for key, title, group in groups:
        yield _row(key, title, norm, epsilon, _unions(group, attacked))


def _rows_elsewhere(suite: Suite, norm: Norm, attacks: Sequence[Attack], attacked: Attacked) -> Iterator[Row]:
    threat = suite.threat_model(norm)
    for epsilon in threat.epsilons:
        for attack in attacks:
            if epsilon != threat.epsilon and (attack.every_epsilon or attack.kind == "minimal norm"):
                yield _row(attack.key, attack.title, norm, epsilon, _unions([attack], attacked))


def _unions(attacks: Sequence[Attack], attacked: Attacked) -> dict[str, Distances]:
    """Give, per model, what the worst of those attacks did that it was run under."""
    parts: dict[str, list[Distances]] = {}
    keys = {attack.key for attack in attacks}
    for (model, key), distances in attacked.items():
        if key in keys:
            parts.setdefault(model, []).append(distances)
    return {model: Outcomes.union(found) for model, found in parts.items()}


def _curves(results: Results, norm: Norm, attacks: Sequence[Attack], attacked: Attacked) -> Iterator[Curve]:
    everywhere = [attack for attack in attacks if attack.every_epsilon or attack.kind == "minimal norm"]
    epsilons = results.suite.threat_model(norm).epsilons
    for model, distances in _unions(everywhere, attacked).items():
        mine = [attack for attack in everywhere if (model, attack.key) in attacked]
        lost = distances.lost[distances.known]
        if not len(lost):
            continue
        exact = any(attack.kind == "minimal norm" for attack in mine)
        known = np.unique([0.0, *epsilons, *(lost[np.isfinite(lost)] if exact else ())])
        accuracy = robust_accuracy(lost, known)
        low, high = wilson_interval(accuracy, len(lost))
        yield Curve(
            model=model,
            norm=norm,
            attacks=tuple(attack.title for attack in mine),
            exact=exact,
            epsilons=known,
            accuracy=accuracy,
            low=low,
            high=high,
        )


def _medians(norm: Norm, attacks: Sequence[Attack], attacked: Attacked) -> Iterator[Median]:
    minimal = [attack for attack in attacks if attack.kind == "minimal norm"]
    groups = [(attack.key, attack.title, [attack]) for attack in minimal]
    if len(minimal) > 1:
        groups.append((f"{ALL}-{norm}", "nearest of all attacks", minimal))
    for key, title, group in groups:
        for model, distances in _unions(group, attacked).items():
            if len(known := distances.error[distances.known]):
                value, low, high = median_interval(known)
                yield Median(
                    model=model,
                    key=key,
                    title=title,
                    norm=norm,
                    value=value,
                    low=low,
                    high=high,
                    total=len(known),
                )


def _health(outcomes: Outcomes, model: str, attack: str) -> Health:
    claimed = outcomes.column("claimed", model, attack) & outcomes.right_clean(model, attack)
    success = outcomes.column("success", model, attack)
    return Health(
        model=model,
        attack=attack,
        examples=len(claimed),
        claimed=int(claimed.sum()),
        fell=int((claimed & ~success).sum()),
        invalid=int((~outcomes.column("valid", model, attack)).sum()),
        zero_gradient=int(outcomes.column("zero_gradient", model, attack).sum()),
        unstable=int(outcomes.column("unstable", model, attack).sum()),
    )


def _cost(outcomes: Outcomes, model: str, attack: str) -> Cost:
    return Cost(
        model=model,
        attack=attack,
        **{
            name: float(outcomes.column(name, model, attack).mean())
            for name in ("seconds", "queries", "gradients")
        },
    )
