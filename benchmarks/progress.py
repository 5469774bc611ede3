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


@final
class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def begin(self, cell: Cell) -> None:
        self._progress.update(self._task, description=cell.key)

    def end(self, cell: Cell, rows: pa.Table) -> None:
        del cell, rows
        self._progress.advance(self._task)


@final
class _Lines:
    def __init__(self, console: Console, total: int, finished: int) -> None:
        self._console, self._total, self._done, self._computed = console, total, finished, 0
        self._started = time.monotonic()
        if finished:
            self._print(f"{finished} of {total} cells were finished before")

    def begin(self, cell: Cell) -> None:
        del cell

    def end(self, cell: Cell, rows: pa.Table) -> None:
        self._done += 1
        self._computed += 1
        mean = (time.monotonic() - self._started) / self._computed
        fooled = pc.sum(rows["success"]).as_py()
        self._print(
            f"[{self._done}/{self._total}] {cell.key}: {fooled} of {len(rows)} wrong, "
            f"{pc.sum(rows['seconds']).as_py():.1f} s, {mean * (self._total - self._done):.0f} s left"
        )

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
