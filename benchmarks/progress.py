"""Progress of a run: a bar on a terminal, and a plain line per finished cell anywhere else."""

import time
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
    TimeRemainingColumn,
)

from .cells import Cell

__all__ = ["RunProgress", "run_progress"]


class RunProgress(Protocol):
    """What the runner reports to."""

    def begin(self, cell: Cell) -> None:
        """Say that a cell is being computed."""
        ...

    def end(self, cell: Cell, rows: pa.Table) -> None:
        """Say that it is finished."""
        ...

    def fail(self, cell: Cell, error: str) -> None:
        """Say that it failed."""
        ...


@contextmanager
def run_progress(
    total: int, *, finished: int, show: bool, console: Console | None = None
) -> Iterator[RunProgress]:
    """Show the progress of a run.

    Args:
        total: Number of cells.
        finished: Of them, those that an earlier call has finished.
        show: Show anything at all.
        console: Where; the standard error stream if None.
    """
    console = console or Console(stderr=True)
    if not show:
        yield _Silent()
    elif not console.is_terminal:
        yield _Lines(console, total, finished)
    else:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=3600,  # cells differ in length: the mean over all of them tells most
        ) as progress:
            yield _Bar(progress, progress.add_task("starting", total=total, completed=finished))


@final
class _Silent:
    def begin(self, cell: Cell) -> None:
        del cell

    def end(self, cell: Cell, rows: pa.Table) -> None:
        del cell, rows

    def fail(self, cell: Cell, error: str) -> None:
        del cell, error


class _Accuracy:
    """Robust accuracy of each model under each attack, over the cells that are finished so far."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, float | None], tuple[int, int]] = {}

    def after(self, cell: Cell, rows: pa.Table) -> str:
        """Add a cell, and give the accuracy that it belongs to."""
        key = (cell.model, cell.attack, cell.epsilon)
        right, total = self._counts.get(key, (0, 0))
        wrong = pc.or_(rows["success"], pc.not_equal(rows["clean_prediction"], rows["label"]))
        lost = pc.or_(wrong, rows["rejected"])
        right, total = right + len(rows) - pc.sum(lost).as_py(), total + len(rows)
        self._counts[key] = right, total
        return f"{right / total:.0%} of {total} right"


@final
class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task, self._accuracy = progress, task, _Accuracy()

    def begin(self, cell: Cell) -> None:
        self._progress.update(self._task, description=cell.key)

    def end(self, cell: Cell, rows: pa.Table) -> None:
        description = f"{cell.key}: {self._accuracy.after(cell, rows)}"
        self._progress.update(self._task, description=description, advance=1)

    def fail(self, cell: Cell, error: str) -> None:
        self._progress.console.print(f"{cell.key} failed: {error}", markup=False, highlight=False)
        self._progress.advance(self._task)


@final
class _Lines:
    def __init__(self, console: Console, total: int, finished: int) -> None:
        self._console, self._total, self._done, self._computed = console, total, finished, 0
        self._started, self._accuracy = time.monotonic(), _Accuracy()
        if finished:
            self._print(f"{finished} of {total} cells were finished before")

    def begin(self, cell: Cell) -> None:
        del cell

    def end(self, cell: Cell, rows: pa.Table) -> None:
        accuracy = self._accuracy.after(cell, rows)
        self._report(cell, f"{accuracy}, {pc.sum(rows['seconds']).as_py():.1f} s")

    def fail(self, cell: Cell, error: str) -> None:
        self._report(cell, f"failed: {error}")

    def _report(self, cell: Cell, text: str) -> None:
        self._done += 1
        self._computed += 1
        mean = (time.monotonic() - self._started) / self._computed
        left = mean * (self._total - self._done)
        self._print(f"[{self._done}/{self._total}] {cell.key}: {text}, {left:.0f} s left")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
