"""Where cells are computed: in this process, in others, or on a cluster, always through joblib."""

import logging
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

import torch

from ..classifier import Classifier
from .cells import Cell
from .execution import Outcome, Task, TransferMemory, execute
from .references import ModelReference, PickledModel, loaded
from .results import Failure
from .suites import check_choice

__all__ = ["Engine", "EngineName", "Finished", "Source", "compute"]

EngineName = Literal["local", "dask", "ray"]
Source: TypeAlias = ModelReference | PickledModel
Finished: TypeAlias = tuple[Cell, Outcome | Failure]

ATTEMPTS = 3  # after which workers that die without finishing a single cell end the run
CELLS_PER_ROUND = 4  # of each of Ray's workers

# A worker of Dask may run several tasks as threads, but generators and counters belong to the process.
_one_cell_at_a_time = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where cells are computed.

    Attributes:
        name: `"local"` (this machine), `"dask"` or `"ray"` (an existing cluster).
        address: Of the cluster's scheduler; None lets Dask and Ray start one on this machine.
        jobs: Cells at once; None is one here, and as many as a cluster has workers for.
        threads: Of torch, in every process; None shares this process's among the local ones, and is one on a
            cluster.
    """

    name: EngineName = "local"
    address: str | None = None
    jobs: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_choice("engine", self.name, get_args(EngineName))
        for what, value in (("jobs", self.jobs), ("threads", self.threads)):
            if value is not None and value < 1:
                raise ValueError(f"Expected `{what}` of at least 1, but got {value}")
        if self.address is not None and self.name == "local":
            raise ValueError("Expected no `address` for the engine 'local', but got one")

    @property
    def in_process(self) -> bool:
        """Whether no other process takes part."""
        return self.name == "local" and self.jobs in (None, 1)

    @property
    def threads_per_job(self) -> int:
        """Threads of torch in every process."""
        if self.threads is not None:
            return self.threads
        return max(1, torch.get_num_threads() // (self.jobs or 1)) if self.name == "local" else 1

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Have joblib use this engine.

        Raises:
            ImportError: If Dask or Ray is not installed.
        """
        from joblib import parallel_config

        with ExitStack() as stack:
            if self.name == "dask":
                stack.enter_context(_dask_client(self.address))
            elif self.name == "ray":
                stack.enter_context(_ray_session(self.address))
            backend = "loky" if self.name == "local" else self.name
            stack.enter_context(parallel_config(backend=backend))
            yield


def compute(
    tasks: Callable[[], Iterable[Task]],
    models: Mapping[str, Classifier],
    sources: Mapping[str, Source],
    engine: Engine,
) -> Iterator[Finished]:
    """Compute cells, and give each as soon as it is finished, in any order.

    A cell that raises is given as a `Failure`. Where workers die, what they held is computed again.

    Args:
        tasks: Gives the cells that are still to be computed.
        models: For this process.
        sources: For other processes.
        engine: Where.

    Raises:
        RuntimeError: If workers keep dying.
    """
    if engine.in_process:
        memory = TransferMemory()
        with _threads(engine.threads):
            for task in tasks():
                yield task.cell, _attempt(task, models, memory)
        return
    fruitless = 0
    while remaining := list(tasks()):
        fruitless += 1
        try:
            for finished in _parallel(remaining, sources, engine):
                fruitless = 0
                yield finished
            return
        except Exception as error:
            if fruitless > ATTEMPTS:
                raise RuntimeError(
                    f"Expected workers that live, but {ATTEMPTS + 1} times they died before one cell was "
                    f"finished ({type(error).__name__}: {error}); the finished cells are kept"
                ) from error


def _parallel(tasks: list[Task], sources: Mapping[str, Source], engine: Engine) -> Iterator[Finished]:
    from joblib import Parallel, delayed, effective_n_jobs

    def calls(part: list[Task]) -> Iterator[Any]:
        for task in part:
            yield delayed(_in_worker)(task, {name: sources[name] for name in task.models}, threads)

    jobs, threads = engine.jobs or -1, engine.threads_per_job
    settings: dict[str, Any] = {"n_jobs": jobs, "batch_size": 1, "max_nbytes": None}
    with engine.connected():
        if engine.name != "ray":
            yield from Parallel(return_as="generator_unordered", **settings)(calls(tasks))
            return
        # Ray's backend gives nothing before it gives all: a round is what a kill can cost.
        size = CELLS_PER_ROUND * effective_n_jobs(jobs)
        with Parallel(**settings) as parallel:
            for first in range(0, len(tasks), size):
                yield from parallel(calls(tasks[first : first + size]))


def _in_worker(task: Task, sources: Mapping[str, Source], threads: int) -> Finished:
    with _one_cell_at_a_time, _threads(threads):
        try:
            models = {name: loaded(source) for name, source in sources.items()}
        except Exception as error:
            return task.cell, _failure(task.cell, error)
        return task.cell, _attempt(task, models, _memory())


@lru_cache(maxsize=1)
def _memory() -> TransferMemory:
    """Give the memory of this worker."""
    return TransferMemory()


def _attempt(task: Task, models: Mapping[str, Classifier], memory: TransferMemory) -> Outcome | Failure:
    try:
        return execute(task, models, memory=memory)
    except Exception as error:
        return _failure(task.cell, error)


def _failure(cell: Cell, error: Exception) -> Failure:
    return Failure(
        cell=cell.key,
        error=f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Have torch use so many threads inside the block."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _dask_client(address: str | None) -> Iterator[None]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            "Expected Dask to be installed: pip install 'genrobust[cluster]'", name="distributed"
        ) from error
    arguments: dict[str, Any] = {"address": address} if address else {"threads_per_worker": 1}
    with Client(**arguments, set_as_default=True):
        yield


@contextmanager
def _ray_session(address: str | None) -> Iterator[None]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise ImportError(
            "Expected Ray to be installed: pip install 'genrobust[cluster]'", name="ray"
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    register_ray()
    try:
        yield
    finally:
        if started:
            ray.shutdown()
