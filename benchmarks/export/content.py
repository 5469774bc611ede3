"""What every format is made of: a run, its verified accuracies, and the example that decides each image."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from ..._brief import one_line
from ...verification import reach
from ..run.cells import Cell
from ..run.gallery import EXAMPLES, read_examples
from ..run.references import GIVEN
from ..run.results import Results
from ..run.tasks import Array
from ..statistics import Drawn, Row, Summary
from ..suites.model import CLEAN, Attack

__all__ = ["Content", "deciding_rows", "kept_images"]

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_WRONG, _FOOLED, _REJECTED, _RIGHT, _OTHER = range(5)  # in the order in which they decide


@dataclass(frozen=True, kw_only=True)
class Content:
    """A finished run, with what its rows cannot tell.

    Attributes:
        results: The run.
        summary: Its numbers.
        owner: Who has the models, as in `owner/model`; None is this package for its shipped weights, and
            `local` for others.
        benchmark: Name of the benchmark on the Hugging Face Hub, such as `owner/dataset`; None is the name
            of the run's data set.
    """

    results: Results
    summary: Summary
    owner: str | None = None
    benchmark: str | None = None

    __repr__ = one_line

    def __post_init__(self) -> None:
        if self.owner is not None and not _NAME.fullmatch(self.owner):
            raise ValueError(f"Expected `owner` to be a name such as 'mylab', but got {self.owner!r}")
        if self.benchmark is not None and not all(map(_NAME.fullmatch, self.benchmark.split("/"))):
            raise ValueError(
                f"Expected `benchmark` to be a name such as 'mylab/digits', but got {self.benchmark!r}"
            )

    @property
    def dataset(self) -> str:
        """The name of the attacked data set."""
        return self.results.suite.dataset

    @property
    def split(self) -> str:
        """The part of the data set that was attacked."""
        return str(self.results.manifest["dataset"].get("split"))

    def origin(self, model: str) -> str:
        """Returns where a model's weights come from; empty if the run does not say."""
        return str((self.results.manifest.get("weights") or {}).get(model, ""))

    def owner_of(self, model: str) -> str:
        """Returns who has a model."""
        return self.owner or ("genrobust" if self.origin(model) == "shipped" else "local")

    def repository(self, model: str) -> str:
        """Returns the name of a model among those of its owner; a recipe's model is named with its data."""
        named = self.origin(model) not in ("", GIVEN) and _NAME.fullmatch(self.dataset)
        return f"{model}-{self.dataset}" if named else model

    def attacks(self, row: Row, model: str) -> tuple[Attack, ...]:
        """Returns the attacks that a row of the table stands for, in the order of the suite."""
        return tuple(a for a in self.results.suite.attacks_of(model) if a.key in row.attacks[model])

    def accuracies(self, model: str, *, headline: bool = False) -> Iterator[Drawn]:
        """Yields a model's verified accuracies by the first draw, the majority, and the worst draw.

        Args:
            model: Name of the model.
            headline: Yield only clean images and the last row of every norm: all attacks, or the only one.
        """
        last = {row.norm: row for row in self.summary.rows}
        known = {(drawn.model, drawn.row.key): drawn for drawn in self.summary.drawn}
        for row in last.values() if headline else self.summary.rows:
            if model in row.robust:
                share = row.accuracy(model)
                alike = Drawn(model=model, row=row, first=share, majority=share, worst=share)
                yield known.get((model, row.key), alike)

    def described(self, drawn: Drawn) -> str:
        """Returns in sentences how an accuracy was measured."""
        row, share = drawn.row, drawn.majority
        under = "on clean images"
        if row.norm is not None:
            titles = ", ".join(f"{a.title} ({a.toolkit})" for a in self.attacks(row, drawn.model))
            under = f"under {row.norm} perturbations up to {row.epsilon:g}: the worst of {titles}"
        return (
            f"Right about {share.count} of {share.total} {self.split} images of {self.dataset} {under}. "
            f"Verified by the majority of {self.results.suite.draws} draws; first draw "
            f"{_percent(drawn.first.value)}, worst draw {_percent(drawn.worst.value)}. {self.provenance}."
        )

    @property
    def provenance(self) -> str:
        """The software and the run."""
        version = self.results.manifest["versions"].get("genrobust", "of an unknown version")
        return f"genrobust {version}, suite {self.results.suite.name}, run {self.results.run[:16]}"


def deciding_rows(results: Results, model: str, row: Row) -> Int[np.ndarray, " samples"]:
    """Returns, for every image of a run, which per-sample row decides about it in a row of the table.

    An image that is wrong without any attack is decided by its clean row. Then comes the shortest
    perturbation within epsilon that fools the model by the majority of its draws, then the shortest that it
    rejects. An image that stays right is decided by its clean row.

    Args:
        results: The run.
        model: Name of the model, which was attacked in this way.
        row: The row of the table.

    Returns:
        Positions in `results.rows`, in the order of the run's images.
    """
    names = pa.array([CLEAN, *row.attacks[model]])
    mine = pc.and_(pc.equal(results.rows["model"], model), pc.is_in(results.rows["attack"], names))
    at = np.flatnonzero(mine.to_numpy(zero_copy_only=False))
    rows = results.rows.take(pa.array(at))
    clean = pc.equal(rows["attack"], CLEAN).to_numpy(zero_copy_only=False)
    length = np.zeros(len(at)) if row.norm is None else rows[f"distance_{row.norm}"].to_numpy()
    right, success, rejected = (rows[name].to_numpy() for name in ("right", "success", "rejected"))
    within = length <= reach(row.epsilon or 0.0)
    rank = np.select(
        [clean & ~right & ~rejected, ~clean & success & within, rejected & within, clean & right],
        [_WRONG, _FOOLED, _REJECTED, _RIGHT],
        _OTHER,
    )
    samples = rows["sample"].to_numpy()
    order = np.lexsort((length, rank, samples))
    found, first = np.unique(samples[order], return_index=True)
    decided: Int[np.ndarray, " samples"] = at[order[first[np.searchsorted(found, results.samples)]]]
    return decided


def kept_images(results: Results, cell: Cell) -> Array:
    """Returns the images that a cell judged, in the order of the run.

    Raises:
        ValueError: If the run did not keep them, or their file is missing or damaged.
    """
    if not results.manifest.get("keep_examples"):
        raise ValueError(
            f"Expected every adversarial image in {results.folder}, but the run kept none of them: run it "
            "again with --keep-examples (`keep_examples=True`) and another --out"
        )
    kept = read_examples(results.folder, cell, run=results.run)
    size = results.suite.batch_size
    expected = results.samples[cell.batch * size : (cell.batch + 1) * size]
    if kept is None or not np.array_equal(kept["sample"], expected):
        raise ValueError(
            f"Expected the images of {cell.key} in {results.folder / EXAMPLES}, but they are missing or "
            f"damaged: delete {cell.path(results.folder)}, and the command of the run makes both again"
        )
    return kept["adversarial"].astype(np.float32)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
