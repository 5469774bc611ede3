"""Cells: the pieces of work that a run is made of, and their files of per-sample rows."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..._files import write_atomically
from ..suites.model import CLEAN, Suite

__all__ = ["SCHEMA", "Cell", "derived_seed", "plan", "read_cell", "write_cell"]

FOLDER = "cells"

SCHEMA = pa.schema(
    [
        pa.field("suite", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("attack", pa.string(), nullable=False),  # "clean" for the unperturbed images
        pa.field("toolkit", pa.string()),  # null for the unperturbed images
        pa.field("target", pa.string()),  # whose examples these are; null is the model itself
        pa.field("norm", pa.string()),  # null for the unperturbed images
        pa.field("epsilon", pa.float64()),  # null for them and for minimal-norm attacks
        pa.field("sample", pa.int64(), nullable=False),  # index in the test split
        pa.field("label", pa.int64(), nullable=False),
        pa.field("goal", pa.int64()),  # the class that a targeted attack goes for; null of any other
        pa.field("clean_prediction", pa.int64(), nullable=False),
        pa.field("prediction", pa.int64()),  # null where the attack returned no image
        pa.field("entropy", pa.float64()),  # of p(y | x), in nats; null where the attack returned no image
        pa.field("rejected", pa.bool_(), nullable=False),
        pa.field("margin", pa.float64()),  # units beyond the thresholds; null unless the model may reject
        pa.field("reclassified", pa.int64()),  # label of a rejected image, where the suite reclassifies
        pa.field("fooling", pa.bool_()),  # whether that is too far from every class; null likewise
        pa.field("claimed", pa.bool_(), nullable=False),  # by the toolkit
        pa.field("fell_first", pa.bool_(), nullable=False),  # the claim of the first attempt did
        pa.field("attempts", pa.int64(), nullable=False),  # more than 1 where a claim fell; 0 if clean
        pa.field("valid", pa.bool_(), nullable=False),  # finite and in [0, 1]
        # By the first draw of the judge's noise, by the majority of its draws, and by the worst of them:
        pa.field("right_first", pa.bool_(), nullable=False),  # about the clean image
        pa.field("right", pa.bool_(), nullable=False),
        pa.field("right_worst", pa.bool_(), nullable=False),
        pa.field("success_first", pa.bool_(), nullable=False),  # after re-scoring
        pa.field("success", pa.bool_(), nullable=False),
        pa.field("success_worst", pa.bool_(), nullable=False),
        pa.field("unstable", pa.bool_(), nullable=False),  # a draw gave another verdict than the first
        pa.field("zero_gradient", pa.bool_(), nullable=False),  # the one that an attack is shown
        pa.field("distance_l0", pa.float64(), nullable=False),  # pixels
        pa.field("distance_l1", pa.float64(), nullable=False),
        pa.field("distance_l2", pa.float64(), nullable=False),
        pa.field("distance_linf", pa.float64(), nullable=False),
        pa.field("overshoot", pa.float64(), nullable=False),
        pa.field(
            "queries", pa.int64(), nullable=False
        ),  # forward calls of the attack, the mean over the cell
        pa.field("gradients", pa.int64(), nullable=False),  # its backward calls, the mean over the cell
        pa.field("seconds", pa.float64(), nullable=False),  # the cell's time, shared among its samples
        pa.field("seed", pa.int64(), nullable=False),  # of the cell
    ]
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The smallest piece of work that is kept: one attack at one epsilon on one batch, against one model.

    Attributes:
        model: Name of the model.
        attack: Key of the attack, or `"clean"`.
        epsilon: The bound, or None where there is none.
        batch: Number of the batch of samples.
    """

    model: str
    attack: str
    epsilon: float | None
    batch: int

    @property
    def key(self) -> str:
        """The cell's name: its path without the suffix, and what its seed is derived from."""
        bound = "" if self.epsilon is None else f"@{self.epsilon!r}"
        return f"{self.model}/{self.attack}{bound}/{self.batch:04d}"

    def path(self, folder: Path) -> Path:
        """Returns the cell's file in a run's folder."""
        return folder / FOLDER / f"{self.key}.parquet"


def plan(suite: Suite, models: Sequence[str], samples: int) -> Iterator[Cell]:
    """Returns every cell of a run, in the order of execution.

    The clean cells come first, because the others repeat their decisions. Models alternate, so that the time
    left can be told from the time taken, although a query may cost one of them a thousand times more.
    """
    batches = range(-(-samples // suite.batch_size))
    for batch in batches:
        for model in models:
            yield Cell(model=model, attack=CLEAN, epsilon=None, batch=batch)
    for attack in suite.attacks:
        attacked = [model for model in models if attack in suite.attacks_of(model)]
        for epsilon in suite.epsilons(attack):
            for batch in batches:
                for model in attacked:
                    yield Cell(model=model, attack=attack.key, epsilon=epsilon, batch=batch)


def derived_seed(*parts: object) -> int:
    """Returns a 32-bit seed that depends only on the parts, on any platform and in any order."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def write_cell(
    folder: Path, cell: Cell, *, run: str, columns: Mapping[str, Any], versions: Mapping[str, str]
) -> pa.Table:
    """Writes one finished cell: afterwards its file is whole, or not there.

    Args:
        folder: Folder of the run.
        cell: The cell.
        run: Fingerprint of the run.
        columns: The columns of `SCHEMA`.
        versions: Versions of the software, for the file's metadata.
    """
    metadata = {**versions, "cell": cell.key, "run": run}
    table = pa.table(dict(columns), schema=SCHEMA.with_metadata(metadata))
    with write_atomically(cell.path(folder)) as part:
        pq.write_table(table, part, write_page_checksum=True)
    return table


def read_cell(folder: Path, cell: Cell, *, run: str) -> pa.Table | None:
    """Reads a finished cell; None where there is none, or its file is damaged or of another run."""
    try:
        table = pq.ParquetFile(cell.path(folder), page_checksum_verification=True).read()
    except (pa.ArrowException, OSError):
        return None
    metadata = table.schema.metadata or {}
    if (metadata.get(b"cell"), metadata.get(b"run")) != (cell.key.encode(), run.encode()):
        return None
    return table if table.schema.equals(SCHEMA) else None
