"""How far an attacker has to go with each sample: what every accuracy and every curve is counted from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from ...adapters.verification import reach
from ..results import Results
from ..suites import CLEAN, Attack

__all__ = ["Distances", "Outcomes", "breaking_distances", "robust_accuracy"]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """What some attacks did to a model, one value per sample, in the order of the run.

    Attributes:
        error: Length of the shortest perturbation with which the model was wrong and did not refuse: 0 where
            it is so on the clean image, infinite where nothing worked.
        refusal: The same for the model's refusals.
        known: Whether every one of these attacks was run on the sample.
    """

    error: Float[np.ndarray, " samples"]
    refusal: Float[np.ndarray, " samples"]
    known: Bool[np.ndarray, " samples"]

    @property
    def lost(self) -> Float[np.ndarray, " samples"]:
        """How far the sample stays right and accepted."""
        lost: Float[np.ndarray, " samples"] = np.minimum(self.error, self.refusal)
        return lost

    def right(self, epsilon: float) -> Bool[np.ndarray, " samples"]:
        """Say where the model is right and accepts, whatever was done within epsilon."""
        right: Bool[np.ndarray, " samples"] = self.lost > reach(epsilon)
        return right

    def rejected(self, epsilon: float) -> Bool[np.ndarray, " samples"]:
        """Say where refusing is the worst that was reached within epsilon."""
        return (self.refusal <= reach(epsilon)) & (self.error > reach(epsilon))


class Outcomes:
    """The rows of a run, found by model and attack.

    Args:
        results: The run.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        self._attacks = (CLEAN, *(attack.key for attack in results.suite.attacks))
        models = _codes(results.rows["model"], results.models)
        attacks = _codes(results.rows["attack"], self._attacks)
        cells = np.where((models < 0) | (attacks < 0), -1, models * len(self._attacks) + attacks)
        self._order = np.argsort(cells, kind="stable")
        numbers = np.arange(len(results.models) * len(self._attacks) + 1)
        self._starts = np.searchsorted(cells[self._order], numbers)
        self._columns: dict[str, np.ndarray[Any, Any]] = {}

    def column(self, name: str, model: str, attack: str) -> np.ndarray[Any, Any]:
        """Give a column of the rows of a model and an attack, or of `"clean"`."""
        if name not in self._columns:
            self._columns[name] = self._results.rows[name].to_numpy()[self._order]
        number = self._results.models.index(model) * len(self._attacks) + self._attacks.index(attack)
        return self._columns[name][self._starts[number] : self._starts[number + 1]]

    def right_clean(self, model: str, attack: str) -> Bool[np.ndarray, " rows"]:
        """Say of which rows the clean image is labelled rightly."""
        right: Bool[np.ndarray, " rows"] = np.equal(
            self.column("clean_prediction", model, attack), self.column("label", model, attack)
        )
        return right

    def clean(self, model: str) -> Distances:
        """Give 0 where the model is wrong, or refuses, without any attack."""
        at = self._positions(model, CLEAN)
        right, rejected = self.right_clean(model, CLEAN), self.column("rejected", model, CLEAN)
        distances = self._nothing()
        distances.error[at] = np.where(right | rejected, np.inf, 0.0)
        distances.refusal[at] = np.where(rejected, 0.0, np.inf)
        distances.known[at] = True
        return distances

    def attacked(self, model: str, attack: Attack) -> Distances:
        """Give what an attack did to a model.

        An example counts at every epsilon that its perturbation fits in, whichever epsilon it was made for.
        """
        at, key = self._positions(model, attack.key), attack.key
        lengths = self.column(f"distance_{attack.norm}", model, key)
        distances, clean_refusals = self._nothing(), self._clean_refusals[model][at]
        wrong_clean = ~self.right_clean(model, key) & ~clean_refusals
        error = np.where(wrong_clean, 0.0, np.where(self.column("success", model, key), lengths, np.inf))
        refusal = np.where(self.column("rejected", model, key), lengths, np.inf)
        np.minimum.at(distances.error, at, error)
        np.minimum.at(distances.refusal, at, np.where(clean_refusals, 0.0, refusal))
        # A run in progress has examples of some epsilons only, which say too little about the others.
        needed = len(self._results.suite.epsilons(attack)) if self._results.missing else 1
        distances.known[:] = np.bincount(at, minlength=len(distances.known)) >= needed
        return distances

    @staticmethod
    def union(parts: Sequence[Distances]) -> Distances:
        """Give what the worst of several attacks did, sample by sample."""
        return Distances(
            error=np.min([part.error for part in parts], axis=0),
            refusal=np.min([part.refusal for part in parts], axis=0),
            known=np.all([part.known for part in parts], axis=0),
        )

    @cached_property
    def _clean_refusals(self) -> dict[str, Bool[np.ndarray, " samples"]]:
        return {model: self.clean(model).refusal == 0 for model in self._results.models}

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
            error=np.full(count, np.inf), refusal=np.full(count, np.inf), known=np.zeros(count, dtype=bool)
        )


def breaking_distances(results: Results, model: str, attack: Attack) -> Float[np.ndarray, " samples"]:
    """Give the length of the shortest perturbation with which an attack broke each sample.

    0 where the clean image is labelled wrongly already, infinite where nothing worked. An example counts at
    every epsilon that its perturbation fits in, whichever epsilon it was made for.

    Returns:
        One distance per sample, in the order of the samples.
    """
    return Outcomes(results).attacked(model, attack).error


def robust_accuracy(
    distances: Float[np.ndarray, " samples"], epsilons: Float[np.ndarray, " epsilons"]
) -> Float[np.ndarray, " epsilons"]:
    """Give the share of samples that no perturbation within each epsilon breaks."""
    within = np.searchsorted(np.sort(distances), [reach(float(epsilon)) for epsilon in epsilons], "right")
    accuracy: Float[np.ndarray, " epsilons"] = (len(distances) - within) / len(distances)
    return accuracy


def _codes(column: pa.ChunkedArray, names: Sequence[str]) -> Int[np.ndarray, " rows"]:
    found = pc.index_in(column, value_set=pa.array(names, type=column.type))
    codes: Int[np.ndarray, " rows"] = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return codes
