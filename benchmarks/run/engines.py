"""Where cells are computed: in this process, in others, or on a cluster, always through joblib."""

import logging
import math
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TypeAlias, final, get_args

import torch

from ..._fields import AtLeastOne, check_choice, check_fields
from ...attacks import ATTACKS
from ...contract import Classifier
from ...registry import PluginSource, load_only, plugin_sources
from .attempts import TransferMemory
from .cells import Cell
from .execution import execute
from .references import PickledModel, loaded
from .results import Failure
from .tasks import Outcome, Task

__all__ = ["Engine", "EngineName", "Finished", "compute"]

EngineName = Literal["local", "dask", "ray"]
Finished: TypeAlias = tuple[Cell, Outcome | Failure]

ATTEMPTS = 3  # deaths of a worker with one cell alone, after which the cell has failed
HOPELESS = 3  # cells in a row that failed so, after which all others have failed too
PULSE = 1.0  # seconds after which a worker looks whether its parent lives
CELLS_PER_ROUND = 4  # of each of Ray's workers

# A worker of Dask may run several tasks as threads, but generators and counters belong to the process.
_one_cell_at_a_time = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where cells are computed.

    Attributes:
        name: `"local"` (this machine), `"dask"` or `"ray"` (an existing cluster).
        address: Address of the cluster's scheduler; None lets Dask and Ray start one on this machine.
        jobs: Cells at once; None is one here, and as many as a cluster has workers for.
        threads: Threads of torch in every process. None divides this process's threads among local
            processes, and takes one on a cluster.
    """

    name: EngineName = "local"
    address: str | None = None
    jobs: AtLeastOne | None = None
    threads: AtLeastOne | None = None

    def __post_init__(self) -> None:
        check_choice("engine", self.name, get_args(EngineName))
        check_fields(self)
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
        """Has joblib use this engine.

        Raises:
            ImportError: If Dask or Ray is not installed.
        """
        from joblib import parallel_config

        with ExitStack() as stack:
            if self.name == "dask":
                stack.enter_context(_dask_client(self.address))
            elif self.name == "ray":
                stack.enter_context(_ray_session(self.address))
            if self.name == "local":
                settings = {"initializer": _begin_worker, "initargs": (os.getpid(),)}
                stack.enter_context(parallel_config(backend="loky", **settings))
            else:
                stack.enter_context(parallel_config(backend=self.name))
            yield


def compute(
    tasks: Callable[[], Iterable[Task]],
    models: Mapping[str, Classifier],
    sources: Mapping[str, PickledModel],
    engine: Engine,
) -> Iterator[Finished]:
    """Computes cells, and gives each as soon as it is finished, in any order.

    A cell that raises is given as a `Failure`. Where workers die, what they held is computed again, one cell
    at a time, so that a cell that kills its worker again and again is known, and given as a `Failure` too.

    Args:
        tasks: Gives the cells that are still to be computed.
        models: For this process.
        sources: For other processes.
        engine: Where.
    """
    if engine.in_process:
        memory = TransferMemory()
        with _threads(engine.threads):
            for task in tasks():
                yield task.cell, _attempt(task, models, memory)
        return
    yield from _Rounds(sources, engine).compute(tasks)


@final
class _Rounds:
    """Computes cells by other processes, in as many rounds as deaths of workers ask for."""

    def __init__(self, sources: Mapping[str, PickledModel], engine: Engine) -> None:
        self._sources, self._engine = sources, engine
        self._held: dict[Cell, None] = {}  # given to workers, in order, and not finished
        self._suspects: set[Cell] = set()  # held when a worker died
        self._deaths = Counter[Cell]()
        self._lost = 0  # cells in a row that no worker survived

    def compute(self, tasks: Callable[[], Iterable[Task]]) -> Iterator[Finished]:
        """Computes what `tasks` gives, again and again, until it gives nothing."""
        while remaining := list(tasks()):
            alone = [task for task in remaining if task.cell in self._suspects]
            self._held.clear()
            try:
                for finished in self._parallel(alone or remaining, alone=bool(alone)):
                    self._held.pop(finished[0], None)
                    self._suspects.discard(finished[0])
                    self._lost = 0
                    yield finished
            except Exception as error:
                if not self._held:  # no worker had anything to die of
                    raise
                if not alone:
                    self._suspects.update(self._held)
                elif self._is_lost(cell := next(iter(self._held))):
                    lost = [cell] if self._lost < HOPELESS else [task.cell for task in tasks()]
                    yield from ((each, _failure(each, _died(error))) for each in lost)

    def _is_lost(self, cell: Cell) -> bool:
        """Counts a death of the worker that had this cell alone."""
        self._deaths[cell] += 1
        if self._deaths[cell] < ATTEMPTS:
            return False
        self._suspects.discard(cell)
        self._lost += 1
        return True

    def _parallel(self, tasks: list[Task], *, alone: bool) -> Iterator[Finished]:
        from joblib import Parallel, delayed, effective_n_jobs

        def calls(part: list[Task]) -> Iterator[Any]:
            for task in part:
                self._held[task.cell] = None
                needed = {name: self._sources[name] for name in task.models}
                yield delayed(_in_worker)(task, needed, threads, plugins)

        engine, plugins = self._engine, plugin_sources()
        jobs, threads, size = engine.jobs or -1, engine.threads_per_job, len(tasks)
        settings: dict[str, Any] = {"n_jobs": jobs, "batch_size": 1, "max_nbytes": None}
        with engine.connected():
            if engine.name != "ray":
                settings["return_as"] = "generator_unordered"
            else:  # its backend gives nothing before it gives all: a round is what a kill can cost
                size = CELLS_PER_ROUND * effective_n_jobs(jobs)
            with Parallel(**settings) as parallel:
                step = 1 if alone else size
                for first in range(0, len(tasks), step):
                    yield from parallel(calls(tasks[first : first + step]))


def _died(error: Exception) -> RuntimeError:
    return RuntimeError(
        f"Expected a worker to finish the cell, but {ATTEMPTS} died of it ({type(error).__name__}: {error}). "
        "The memory may have been too small: less `jobs`, `batch_size` or `max_bytes` of inference need less"
    )


def _begin_worker(parent: int) -> None:
    """Prepares a process of loky, which would end each that grows by 300 MB: one codebook has more."""
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = math.inf
    _follow(parent)


def _follow(parent: int) -> None:
    """Has this worker end soon after its parent, which a kill gives no time to end its workers."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PULSE)
        os._exit(1)

    if os.name == "posix":  # elsewhere the number of a parent stays when it ends
        threading.Thread(target=watch, name="genrobust-parent", daemon=True).start()


def _in_worker(
    task: Task, sources: Mapping[str, PickledModel], threads: int, plugins: tuple[PluginSource, ...]
) -> Finished:
    with _one_cell_at_a_time, _threads(threads):
        try:
            load_only(plugins)
            models = {name: loaded(source) for name, source in sources.items()}
        except Exception as error:
            return task.cell, _failure(task.cell, error)
        with ATTACKS.lent({attack.name: attack for attack in task.own}):
            return task.cell, _attempt(task, models, _memory())


@lru_cache(maxsize=1)
def _memory() -> TransferMemory:
    """Returns the memory of this worker."""
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
    """Limits torch to `count` threads inside the block."""
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
