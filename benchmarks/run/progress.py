"""Progress of a run: a bar on a terminal, and a plain line per finished cell anywhere else."""

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, final

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from ..._console import make_console, plain
from ..suites.model import CLEAN
from .cells import Cell
from .forecast import Forecast

__all__ = ["RunProgress", "run_progress"]


class RunProgress(Protocol):
    """What the runner reports to."""

    def begin(self, cell: Cell) -> None:
        """Returns that a cell is being computed."""
        ...

    def end(self, cell: Cell, rows: pa.Table) -> None:
        """Returns that it is finished."""
        ...

    def fail(self, cell: Cell, error: str) -> None:
        """Returns that it failed."""
        ...


@contextmanager
def run_progress(
    total: int, *, finished: int, forecast: Forecast | None, console: Console | None = None
) -> Iterator[RunProgress]:
    """Shows the progress of a run, and how long it will take before the first cell.

    Args:
        total: Number of cells.
        finished: Number of cells that an earlier call has finished.
        forecast: The time that is left; None shows nothing at all.
        console: The console; the standard error stream if None.
    """
    console = console or make_console(stderr=True)
    if forecast is None:
        yield _Silent()
        return
    if forecast.seconds_left:
        console.print(f"about {_duration(forecast.seconds_left)} here, by a probe of one batch")
    if not console.is_terminal:
        yield _Lines(console, total, finished, forecast)
    else:
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left", markup=False),
            console=console,
        ) as progress:
            left = _duration(forecast.seconds_left)
            task = progress.add_task("starting", total=total, completed=finished, left=left)
            yield _Bar(progress, task, forecast)


@final
class _Silent:
    def begin(self, cell: Cell) -> None:
        del cell

    def end(self, cell: Cell, rows: pa.Table) -> None:
        del cell, rows

    def fail(self, cell: Cell, error: str) -> None:
        del cell, error


class _Found:
    """What each attack has found of each model, over the cells that are finished so far.

    That is the robust accuracy at an epsilon, and the median distance of an attack that has none: it looks
    for the nearest example, and nearly every image has one somewhere.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, float | None], tuple[int, int]] = {}
        self._distances: dict[tuple[str, str], list[float]] = {}

    def after(self, cell: Cell, rows: pa.Table) -> str:
        """Adds a cell, and returns what its attack has found so far."""
        wrong = pc.invert(rows["right"])
        lost = pc.or_(pc.or_(rows["success"], wrong), rows["rejected"])
        if cell.attack != CLEAN and cell.epsilon is None:
            return self._median(cell, rows, wrong, lost)
        key = (cell.model, cell.attack, cell.epsilon)
        right, total = self._counts.get(key, (0, 0))
        right, total = right + len(rows) - pc.sum(lost).as_py(), total + len(rows)
        self._counts[key] = right, total
        return f"{right / total:.0%} of {total} right"

    def _median(self, cell: Cell, rows: pa.Table, wrong: pa.ChunkedArray, lost: pa.ChunkedArray) -> str:
        distances = self._distances.setdefault((cell.model, cell.attack), [])
        lengths = rows[f"distance_{rows['norm'][0].as_py()}"]
        for already, gone, length in zip(*(part.to_pylist() for part in (wrong, lost, lengths)), strict=True):
            distances.append(0.0 if already else length if gone else math.inf)
        median = statistics.median(distances)
        if math.isfinite(median):
            return f"median distance {median:.2f} of {len(distances)}"
        return f"no example for half of {len(distances)}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


@final
class _Bar:
    def __init__(self, progress: Progress, task: TaskID, forecast: Forecast) -> None:
        self._progress, self._task, self._forecast, self._found = progress, task, forecast, _Found()

    def begin(self, cell: Cell) -> None:
        self._progress.update(self._task, description=cell.key)

    def end(self, cell: Cell, rows: pa.Table) -> None:
        self._forecast.end(cell, pc.sum(rows["seconds"]).as_py())
        description = f"{cell.key}: {self._found.after(cell, rows)}"
        left = _duration(self._forecast.seconds_left)
        self._progress.update(self._task, description=description, advance=1, left=left)

    def fail(self, cell: Cell, error: str) -> None:
        text = plain(f"{cell.key} failed: {error}")
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._progress.advance(self._task)


@final
class _Lines:
    def __init__(self, console: Console, total: int, finished: int, forecast: Forecast) -> None:
        self._console, self._total, self._done, self._forecast = console, total, finished, forecast
        self._found = _Found()
        if finished:
            self._print(f"{finished} of {total} cells were finished before")

    def begin(self, cell: Cell) -> None:
        del cell

    def end(self, cell: Cell, rows: pa.Table) -> None:
        found, seconds = self._found.after(cell, rows), pc.sum(rows["seconds"]).as_py()
        self._forecast.end(cell, seconds)
        self._report(cell, f"{found}, {seconds:.1f} s")

    def fail(self, cell: Cell, error: str) -> None:
        self._forecast.end(cell, 0.0)
        self._report(cell, f"failed: {error}")

    def _report(self, cell: Cell, text: str) -> None:
        self._done += 1
        left = _duration(self._forecast.seconds_left)
        self._print(f"[{self._done}/{self._total}] {cell.key}: {text}, {left} left")

    def _print(self, text: str) -> None:
        self._console.print(plain(text), markup=False, highlight=False, soft_wrap=True)
