"""Cells: the pieces of work that a run is made of, and their files of per-sample rows."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage import write_atomically
from .suites import CLEAN, Suite

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
        pa.field("clean_prediction", pa.int64(), nullable=False),
        pa.field("prediction", pa.int64()),  # null where the attack returned no image
        pa.field("rejected", pa.bool_(), nullable=False),
        pa.field("claimed", pa.bool_(), nullable=False),  # by the toolkit
        pa.field("valid", pa.bool_(), nullable=False),  # finite and in [0, 1]
        pa.field("success", pa.bool_(), nullable=False),  # after re-scoring
        pa.field("unstable", pa.bool_(), nullable=False),  # a second draw gave another verdict on a claim
        pa.field("zero_gradient", pa.bool_(), nullable=False),  # of the attacked model, at the clean image
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
        """Give the cell's file in a run's folder."""
        return folder / FOLDER / f"{self.key}.parquet"


def plan(suite: Suite, models: Sequence[str], samples: int) -> Iterator[Cell]:
    """Give every cell of a run, in the order of execution.

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
    """Give a 32-bit seed that depends on the parts alone: not on the platform or the order of execution."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def write_cell(
    folder: Path, cell: Cell, *, run: str, columns: Mapping[str, Any], versions: Mapping[str, str]
) -> pa.Table:
    """Write one finished cell: afterwards its file is whole, or not there.

    Args:
        folder: Of the run.
        cell: The cell.
        run: Fingerprint of the run.
        columns: The columns of `SCHEMA`.
        versions: Of the software, for the file's metadata.
    """
    metadata = {**versions, "cell": cell.key, "run": run}
    table = pa.table(dict(columns), schema=SCHEMA.with_metadata(metadata))
    with write_atomically(cell.path(folder)) as part:
        pq.write_table(table, part, write_page_checksum=True)
    return table


def read_cell(folder: Path, cell: Cell, *, run: str) -> pa.Table | None:
    """Read a finished cell; None where there is none, or its file is damaged or of another run."""
    try:
        table = pq.ParquetFile(cell.path(folder), page_checksum_verification=True).read()
    except (pa.ArrowException, OSError):
        return None
    metadata = table.schema.metadata or {}
    if (metadata.get(b"cell"), metadata.get(b"run")) != (cell.key.encode(), run.encode()):
        return None
    return table if table.schema.equals(SCHEMA) else None
