"""The entries of a summary: rows of the table, curves, medians, health and costs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Self

import numpy as np
from jaxtyping import Bool, Float

from ..._brief import one_line
from ..run.results import Failure
from ..suites.model import ALL, Norm
from .answers import Entropy, Rejections, Targeted
from .paper import PaperValue
from .significance import Proportion, mcnemar_p, wilson

__all__ = ["Cost", "Curve", "Drawn", "Health", "Median", "Optimality", "Row", "Summary"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: clean images, one attack, or all attacks of a norm.

    The row holds the models that were attacked in this way. A model that rejects an image is not right about
    it.

    Attributes:
        key: `"clean"`, the attack's key, or `"all-linf"`, `"all-l2"` and so on.
        title: Title for readers.
        norm: Norm of the threat model; None for clean images.
        epsilon: Epsilon of the threat model; None for clean images.
        robust: Per model, whether it is right and accepts despite the attack, one value per sample.
        rejected: Per model, whether rejection is the worst result of the attack, one value per sample.
        known: Per model, which samples were attacked; all of them once the run is finished.
        attacks: Per model, keys of the attacks that it was run under. They differ if the suite says so.
        second: Keys of attacks with a second surrogate gradient, which not every model has. They count in a
            union. Models are compared even if one lacks them.
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

    __repr__ = one_line

    @property
    def is_union(self) -> bool:
        """Whether the row stands for all attacks of a norm."""
        return self.key.startswith(f"{ALL}-")

    @property
    def comparable(self) -> tuple[str, ...]:
        """The models that were run under the most attacks; only they may be ranked."""
        counts = {model: len(self.common(model)) for model in self.attacks}
        most = max(counts.values())
        return tuple(model for model, count in counts.items() if count == most)

    def common(self, model: str) -> frozenset[str]:
        """Returns the attacks that a model was run under, except those with a second gradient."""
        return self.attacks[model] - self.second

    def accuracy(self, model: str) -> Proportion:
        """Returns the share of samples that a model labels rightly and accepts."""
        return self._share(model, self.robust[model])

    def rejection(self, model: str) -> Proportion:
        """Returns the share of samples that a model rejects."""
        return self._share(model, self.rejected[model])

    def error(self, model: str) -> Proportion:
        """Returns the share of samples that a model labels wrongly and accepts."""
        return self._share(model, ~self.robust[model] & ~self.rejected[model])

    def coverage(self, model: str) -> Proportion:
        """Returns the share of samples that a model accepts."""
        return self._share(model, ~self.rejected[model])

    def risk(self, model: str) -> Proportion | None:
        """Returns the share of wrong labels among the samples that a model accepts; None without any."""
        accepted = self.coverage(model).count
        return wilson(self.error(model).count, accepted) if accepted else None

    def comparisons(self) -> Iterator[tuple[str, str, float]]:
        """Returns McNemar's p for every pair of models under the same attacks, on their common samples."""
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
class Drawn:
    """A robust accuracy by the first draw of a model's noise, by the majority, and by the worst draw.

    Attributes:
        model: The model.
        row: The row of the table, by the majority.
        first: Share by the first draw.
        majority: Share by the decision that most draws share: the number of the table.
        worst: Share by every draw.
    """

    model: str
    row: Row
    first: Proportion
    majority: Proportion
    worst: Proportion

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Optimality:
    """How near an attack comes to all attacks of its norm together, on one model (Cinà et al. 2025).

    With A the sum of the robust accuracy over the epsilons of the threat model, it is

        (A of no attack - A of this attack) / (A of no attack - A of all attacks)

    where all attacks count the nearest example of each image: 1 if no other attack brings any accuracy
    lower, 0 if this one found nothing. AttackBench takes the area under the curve, which tells nothing of
    attacks that run at the largest epsilon alone.

    Attributes:
        model: The model.
        key: The attack's key.
        title: Title for readers.
        norm: Norm of the perturbation.
        value: The ratio.
        total: Number of images.
    """

    model: str
    key: str
    title: str
    norm: Norm
    value: float
    total: int


@dataclass(frozen=True, kw_only=True)
class Health:
    """Counts that tell whether the results of an attack on a model are credible, over all its epsilons.

    Attributes:
        model: The model.
        attack: The attack.
        examples: Number of examples that the attack returned.
        claimed: Number of examples that the toolkit calls adversarial, among samples that the model labels
            rightly when clean. It is 0 for transferred examples, about which the toolkit claims nothing.
        fell: Number of claimed examples that verification did not confirm, whatever was attacked again.
        fell_first: The same before the attack ran again on these images.
        reason: Why they fell, where one reason holds for all of them; empty otherwise.
        invalid: Number of results that are not images: not finite, or outside [0, 1].
        zero_gradient: Number of samples at which a gradient attack was shown a gradient of zero.
        unstable: Number of examples whose verdict changed when the model drew its noise again.
        undefined: Number of images about which the model's answer is NaN or infinite, which is wrong.
        unchanged: Number of examples that are the clean image.
    """

    model: str
    attack: str
    examples: int
    claimed: int
    fell: int
    fell_first: int
    reason: str
    invalid: int
    zero_gradient: int
    unstable: int
    undefined: int
    unchanged: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of an attack on a model, as means over its examples.

    Attributes:
        model: The model.
        attack: The attack.
        seconds: Seconds per example.
        queries: Forward calls per example.
        gradients: Backward calls per example.
    """

    model: str
    attack: str
    seconds: float
    queries: float
    gradients: float


@dataclass(frozen=True, kw_only=True)
class Median:
    """The median distance to the nearest adversarial example that a minimal-norm attack found.

    A sample that is wrong without any attack has distance 0. A sample that no attack broke has an infinite
    distance.

    Attributes:
        model: The model.
        key: The attack's key, or `"all-l2"` and so on: the nearest of several attacks.
        title: Title for readers.
        norm: Norm of the perturbation.
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
        norm: Norm of the perturbation.
        attacks: Titles of these attacks.
        exact: Whether accuracy is known between the epsilons too, because one attack is a minimal-norm one.
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

    __repr__ = one_line

    def thinned(self, points: int) -> Self:
        """Returns the curve with at most this many points, including both ends.

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
    """All numbers that a report shows of a run.

    Attributes:
        rows: Rows of the table.
        grid: The rows of the table, and rows of every attack at every other epsilon at which it is known.
        drawn: The rows of models that draw noise by the first draw, by the majority and by the worst, where
            these differ.
        claims: The credibility of every attack, per model and attack.
        curves: Curves per norm and model.
        medians: Median distances per model and minimal-norm attack.
        optimalities: How near each attack comes to all attacks together, per model.
        entropies: Mean predictive entropies, per model, attack and epsilon.
        rejections: The effect of rejection, per model, attack and epsilon.
        targeted: What targeted attacks reached, per model, attack and epsilon.
        costs: Costs per model and attack.
        paper: The paper's numbers next to ours.
        failures: Cells that could not be computed.
        missing: Number of cells that are missing, including the failed ones.
    """

    rows: tuple[Row, ...]
    grid: tuple[Row, ...]
    drawn: tuple[Drawn, ...]
    claims: tuple[Health, ...]
    curves: tuple[Curve, ...]
    medians: tuple[Median, ...]
    optimalities: tuple[Optimality, ...]
    entropies: tuple[Entropy, ...]
    rejections: tuple[Rejections, ...]
    targeted: tuple[Targeted, ...]
    costs: tuple[Cost, ...]
    paper: tuple[PaperValue, ...]
    failures: tuple[Failure, ...]
    missing: int

    __repr__ = one_line

    def lowest(self, model: str) -> Row:
        """Returns the row of the table in which a model's accuracy is lowest; the first of several."""
        mine = (row for row in self.rows if model in row.robust)
        return min(mine, key=lambda row: row.accuracy(model).value)
