"""The distance that an attacker needs for each sample, from which accuracies and curves are counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from ..._brief import one_line
from ...verification import Decided, reach
from ..run.results import Results
from ..suites.model import CLEAN, Attack

__all__ = ["Distances", "Outcomes", "breaking_distances", "robust_accuracy"]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """The effect of some attacks on a model, with one value per sample, in the order of the run.

    Attributes:
        error: Length of the shortest perturbation that made the model wrong without rejecting: 0 if it is
            wrong on the clean image, infinite if no attack worked.
        rejection: Length of the shortest perturbation that made the model reject, in the same way.
        known: Whether all of these attacks were run on the sample.
    """

    error: Float[np.ndarray, " samples"]
    rejection: Float[np.ndarray, " samples"]
    known: Bool[np.ndarray, " samples"]

    __repr__ = one_line

    @property
    def lost(self) -> Float[np.ndarray, " samples"]:
        """Length of the shortest perturbation with which the sample is no longer right and accepted."""
        lost: Float[np.ndarray, " samples"] = np.minimum(self.error, self.rejection)
        return lost

    def right(self, epsilon: float) -> Bool[np.ndarray, " samples"]:
        """Returns where the model is right and accepts under every attack within epsilon."""
        right: Bool[np.ndarray, " samples"] = self.lost > reach(epsilon)
        return right

    def rejected(self, epsilon: float) -> Bool[np.ndarray, " samples"]:
        """Returns where rejection is the worst result of any attack within epsilon."""
        return (self.rejection <= reach(epsilon)) & (self.error > reach(epsilon))


class Outcomes:
    """The rows of a run by model and attack.

    Args:
        results: The run.
        by: Which draws decide, of a model that draws noise.
    """

    def __init__(self, results: Results, *, by: Decided = "majority") -> None:
        self._results = results
        self._suffix = "" if by == "majority" else f"_{by}"
        self._attacks = (CLEAN, *(attack.key for attack in results.suite.attacks))
        models = _codes(results.rows["model"], results.models)
        attacks = _codes(results.rows["attack"], self._attacks)
        cells = np.where((models < 0) | (attacks < 0), -1, models * len(self._attacks) + attacks)
        self._order = np.argsort(cells, kind="stable")
        numbers = np.arange(len(results.models) * len(self._attacks) + 1)
        self._starts = np.searchsorted(cells[self._order], numbers)
        self._columns: dict[str, np.ndarray[Any, Any]] = {}

    def column(self, name: str, model: str, attack: str) -> np.ndarray[Any, Any]:
        """Returns a column of the rows of a model and an attack, or of the clean images (`"clean"`)."""
        if name not in self._columns:
            self._columns[name] = self._results.rows[name].to_numpy()[self._order]
        number = self._results.models.index(model) * len(self._attacks) + self._attacks.index(attack)
        return self._columns[name][self._starts[number] : self._starts[number + 1]]

    def here(self, model: str, attack: str, epsilon: float | None) -> Bool[np.ndarray, " rows"]:
        """Returns which rows are examples of one epsilon, or of none."""
        epsilons = self.column("epsilon", model, attack)
        here: Bool[np.ndarray, " rows"] = np.isnan(epsilons) if epsilon is None else epsilons == epsilon
        return here

    def right_clean(self, model: str, attack: str) -> Bool[np.ndarray, " rows"]:
        """Returns which rows have a clean image that the model labels rightly."""
        return self.column(f"right{self._suffix}", model, attack)

    def success(self, model: str, attack: str) -> Bool[np.ndarray, " rows"]:
        """Returns which rows are examples that the verdict confirms."""
        return self.column(f"success{self._suffix}", model, attack)

    def clean(self, model: str) -> Distances:
        """Returns distances without any attack: 0 where the model is wrong, or rejects."""
        at = self._positions(model, CLEAN)
        right, rejected = self.right_clean(model, CLEAN), self.column("rejected", model, CLEAN)
        distances = self._nothing()
        distances.error[at] = np.where(right | rejected, np.inf, 0.0)
        distances.rejection[at] = np.where(rejected, 0.0, np.inf)
        distances.known[at] = True
        return distances

    def attacked(self, model: str, attack: Attack) -> Distances:
        """Returns the effect of an attack on a model.

        An example counts at every epsilon that contains its perturbation, whichever epsilon it was made for.
        """
        at, key = self._positions(model, attack.key), attack.key
        lengths = self.column(f"distance_{attack.norm}", model, key)
        distances, clean_rejections = self._nothing(), self._clean_rejections[model][at]
        wrong_clean = ~self.right_clean(model, key) & ~clean_rejections
        error = np.where(wrong_clean, 0.0, np.where(self.success(model, key), lengths, np.inf))
        rejection = np.where(self.column("rejected", model, key), lengths, np.inf)
        np.minimum.at(distances.error, at, error)
        np.minimum.at(distances.rejection, at, np.where(clean_rejections, 0.0, rejection))
        # A run in progress has examples of only some epsilons, which say too little about the others.
        needed = len(self._results.suite.epsilons(attack)) if self._results.missing else 1
        distances.known[:] = np.bincount(at, minlength=len(distances.known)) >= needed
        return distances

    @staticmethod
    def union(parts: Sequence[Distances]) -> Distances:
        """Returns the effect of the worst of several attacks, sample by sample."""
        return Distances(
            error=np.min([part.error for part in parts], axis=0),
            rejection=np.min([part.rejection for part in parts], axis=0),
            known=np.all([part.known for part in parts], axis=0),
        )

    @cached_property
    def _clean_rejections(self) -> dict[str, Bool[np.ndarray, " samples"]]:
        return {model: self.clean(model).rejection == 0 for model in self._results.models}

    @cached_property
    def _sample_order(self) -> Int[np.ndarray, " samples"]:
        return np.argsort(self._results.samples)

    def _positions(self, model: str, attack: str) -> Int[np.ndarray, " rows"]:
        samples = self.column("sample", model, attack)
        found = np.searchsorted(self._results.samples, samples, sorter=self._sample_order)
        positions: Int[np.ndarray, " rows"] = self._sample_order[found]
        return positions

    def _nothing(self) -> Distances:
        count = len(self._results.samples)
        return Distances(
            error=np.full(count, np.inf), rejection=np.full(count, np.inf), known=np.zeros(count, dtype=bool)
        )


def breaking_distances(results: Results, model: str, attack: Attack) -> Float[np.ndarray, " samples"]:
    """Returns the length of the shortest perturbation with which an attack broke each sample.

    The distance is 0 if the clean image is already labelled wrongly, and infinite if no attack worked. An
    example counts at every epsilon that contains its perturbation, whichever epsilon it was made for.

    Returns:
        One distance per sample, in the order of the samples.
    """
    return Outcomes(results).attacked(model, attack).error


def robust_accuracy(
    distances: Float[np.ndarray, " samples"], epsilons: Float[np.ndarray, " epsilons"]
) -> Float[np.ndarray, " epsilons"]:
    """Returns the share of samples that no perturbation within each epsilon breaks."""
    within = np.searchsorted(np.sort(distances), [reach(float(epsilon)) for epsilon in epsilons], "right")
    accuracy: Float[np.ndarray, " epsilons"] = (len(distances) - within) / len(distances)
    return accuracy


def _codes(column: pa.ChunkedArray, names: Sequence[str]) -> Int[np.ndarray, " rows"]:
    found = pc.index_in(column, value_set=pa.array(names, type=column.type))
    codes: Int[np.ndarray, " rows"] = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return codes
