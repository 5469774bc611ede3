"""What a summary is made of: rows of the table, curves, medians, health and costs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Self

import numpy as np
from jaxtyping import Bool, Float

from ..results import Failure
from ..suites import ALL, Norm
from .paper import PaperValue
from .significance import Proportion, mcnemar_p, wilson

__all__ = ["Cost", "Curve", "Health", "Median", "Row", "Summary"]


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
        attacks: Per model, keys of the attacks that it was run under: not the same where a suite says so.
        second: Keys of the attacks by a second surrogate gradient, which not every model has. They count in a
            union; models are compared although one lacks them.
    """

    key: str
    title: str
    norm: Norm | None
    epsilon: float | None
    robust: Mapping[str, Bool[np.ndarray, " samples"]]
    rejected: Mapping[str, Bool[np.ndarray, " samples"]]
    known: Mapping[str, Bool[np.ndarray, " samples"]]
    attacks: Mapping[str, frozenset[str]]
    second: frozenset[str] = frozenset()

    @property
    def is_union(self) -> bool:
        """Whether the row stands for all attacks of a norm."""
        return self.key.startswith(f"{ALL}-")

    @property
    def comparable(self) -> tuple[str, ...]:
        """The models that were run under the most attacks: only they may be ranked."""
        counts = {model: len(self.common(model)) for model in self.attacks}
        most = max(counts.values())
        return tuple(model for model, count in counts.items() if count == most)

    def common(self, model: str) -> frozenset[str]:
        """Give the attacks that a model was run under, without those by a second gradient."""
        return self.attacks[model] - self.second

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
        """Give McNemar's p for every pair of models under the same attacks, on the samples of both."""
        models = list(self.robust)
        right = np.array([self.robust[model] & self.known[model] for model in models], dtype=np.float32)
        wrong = np.array([~self.robust[model] & self.known[model] for model in models], dtype=np.float32)
        only = np.rint(right @ wrong.T).astype(np.int64)
        pairs = list(combinations(range(len(models)), 2))
        first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        p = mcnemar_p(only[first, second], only[second, first])
        for (i, j), value in zip(pairs, p, strict=True):
            if self.common(models[i]) == self.common(models[j]):
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
        claimed: Examples that the toolkit calls adversarial, of samples that are right clean; none where they
            were made against something else and only transferred, which no claim is about.
        fell: Of them, those that re-scoring did not confirm.
        invalid: Results that are no images: not finite, or outside [0, 1].
        zero_gradient: Samples at which a gradient attack had nothing to go by.
        unstable: Examples whose verdict changed when the model drew its noise again.
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
