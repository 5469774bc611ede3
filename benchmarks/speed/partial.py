"""Studies that write their rows after every batch, so that they can continue after a stop."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ..._files import write_json

__all__ = ["Columns", "Measure", "run_in_batches"]

Columns = dict[str, list[Any]]  # one value per image

Measure = Callable[[Tensor, Tensor, int], Columns]
"""Measures a batch: images (B, C, H, W), their classes (B,), and the number of the first."""


def run_in_batches(
    measure: Measure,
    x: Float[Tensor, "images channels height width"],
    y: Int[Tensor, " images"],
    *,
    batch_size: int,
    settings: Mapping[str, Any],
    path: Path | None = None,
) -> Columns:
    """Measures the images that `path` lacks, batch by batch; prints progress and writes every batch.

    Args:
        measure: The measurement of a batch.
        x: Images.
        y: Their classes.
        batch_size: Images per batch.
        settings: The settings that rows depend on.
        path: JSON file of `settings` and `columns`; None writes nothing.

    Raises:
        ValueError: If `batch_size` is below 1, or `path` holds rows of other settings.
    """
    if batch_size < 1:
        raise ValueError(f"Expected `batch_size` of at least 1, but got {batch_size}")
    columns = _read(path, settings)
    done = len(next(iter(columns.values()), []))
    while done < len(x):
        started, rows = time.perf_counter(), slice(done, min(done + batch_size, len(x)))
        for name, values in measure(x[rows], y[rows], done).items():
            columns.setdefault(name, []).extend(values)
        seconds = (time.perf_counter() - started) / (rows.stop - rows.start)
        done = rows.stop
        if path is not None:
            write_json(path, {"settings": dict(settings), "columns": columns})
        sys.stdout.write(f"{done} of {len(x)} images, {seconds:.3f} s an image\n")
        sys.stdout.flush()
    return columns


def _read(path: Path | None, settings: Mapping[str, Any]) -> Columns:
    if path is None or not path.is_file():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept.get("settings") != dict(settings):
        raise ValueError(f"Expected rows of {dict(settings)} in {path}, but got {kept.get('settings')}")
    columns: Columns = kept["columns"]
    return columns
