"""The same rows from this process, from others, and from clusters."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from genrobust import register_attack
from genrobust.benchmarks.run.engines import Engine
from genrobust.benchmarks.run.references import ModelReference, PickledModel, missing_weights, reference
from genrobust.benchmarks.run.results import Results
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.run.tasks import choose_samples
from genrobust.benchmarks.run.toolkits import craft
from genrobust.benchmarks.suites.model import Attack, Suite, SuiteModel
from genrobust.data import ImageDataset
from genrobust.models import CNN

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def suite(small_suite: Suite) -> Suite:
    attacks = (
        replace(small_suite.attack("fgsm"), every_epsilon=False),
        small_suite.attack("pgd-linf"),
        small_suite.attack("boundary"),
        replace(small_suite.attack("pgd-linf"), key="transfer", against="cnn", for_models=("mine",)),
    )
    mine = SuiteModel(name="mine", title="mine")
    return replace(small_suite, attacks=attacks, models=(*small_suite.models, mine), batch_size=3)


@pytest.fixture(scope="module")
def models(suite: Suite, cnn: CNN) -> dict[str, Any]:
    """One that workers load by name, and one that they are sent."""
    return {"cnn": reference(suite, "cnn"), "mine": cnn}


def run(suite: Suite, models: dict[str, Any], digits: ImageDataset, out: Path, engine: Engine) -> Results:
    return run_suite(
        suite, models=models, dataset=digits, samples=6, seed=5, out=out, engine=engine, show_progress=False
    )


@pytest.fixture(scope="module")
def local(
    suite: Suite, models: dict[str, Any], digits: ImageDataset, tmp_path_factory: pytest.TempPathFactory
) -> pa.Table:
    results = run(suite, models, digits, tmp_path_factory.mktemp("local"), Engine(threads=1))
    assert not results.missing
    return results.rows.drop_columns(["seconds"])


def same(results: Results, local: pa.Table) -> bool:
    assert not results.failures
    assert not results.missing
    return bool(results.rows.drop_columns(["seconds"]).equals(local))


def test_transferred_examples_are_the_source_models(local: pa.Table) -> None:
    rows = local.to_pylist()
    transferred = [row for row in rows if row["attack"] == "transfer"]
    assert {(row["model"], row["target"]) for row in transferred} == {("mine", "cnn")}
    assert {row["target"] for row in rows if row["attack"] != "transfer"} == {None}
    # As far away as what the same attack makes against the source, with the same number of steps.
    assert max(row["distance_linf"] for row in transferred) <= 0.2 * 1.0001


@pytest.mark.slow
def test_processes_give_the_rows_of_this_one(
    suite: Suite, models: dict[str, Any], digits: ImageDataset, tmp_path: Path, local: pa.Table
) -> None:
    assert same(run(suite, models, digits, tmp_path, Engine(jobs=2, threads=1)), local)


@pytest.mark.slow
def leak_limit() -> float:
    from joblib.externals.loky import process_executor

    return float(process_executor._MAX_MEMORY_LEAK_SIZE)


def test_a_worker_may_grow_by_its_codebooks() -> None:
    """Joblib ends a worker that has grown by 300 MB, and with it codebooks that take longer than a cell."""
    assert leak_limit() == 3e8, "joblib has renamed its limit, or changed it"
    engine = Engine(jobs=2)
    with engine.connected():
        limits = joblib.Parallel(n_jobs=2)(joblib.delayed(leak_limit)() for _ in range(4))
    assert limits == [math.inf] * 4


def test_a_worker_that_dies_loses_nothing(
    suite: Suite,
    models: dict[str, Any],
    digits: ImageDataset,
    tmp_path: Path,
    local: pa.Table,
) -> None:
    from joblib.externals.loky import reusable_executor

    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(tmp_path.rglob("*.parquet")):
            time.sleep(0.02)
        workers = list(reusable_executor._executor._processes)
        os.kill(workers[0], signal.SIGKILL)
        killed.append(workers[0])

    killer = threading.Thread(target=kill_one)
    killer.start()
    results = run(suite, models, digits, tmp_path, Engine(jobs=2, threads=1))
    killer.join()
    assert killed
    assert same(results, local)


@pytest.fixture
def dask_cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'genrobust[cluster]'")
    with ExitStack() as stack:
        cluster = stack.enter_context(
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
            )
        )
        yield cluster


@pytest.mark.slow
def test_a_dask_cluster_gives_the_rows_of_this_process(
    suite: Suite,
    models: dict[str, Any],
    digits: ImageDataset,
    tmp_path: Path,
    local: pa.Table,
    dask_cluster: Any,
) -> None:
    engine = Engine(name="dask", address=dask_cluster.scheduler_address)
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(tmp_path.rglob("*.parquet")):
            time.sleep(0.02)
        nanny = next(iter(dask_cluster.workers.values()))
        os.kill(nanny.pid, signal.SIGKILL)
        killed.append(nanny.pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    results = run(suite, models, digits, tmp_path, engine)
    killer.join()
    assert killed
    assert same(results, local)


@pytest.mark.slow
def test_ray_gives_the_rows_of_this_process(
    suite: Suite, models: dict[str, Any], digits: ImageDataset, tmp_path: Path, local: pa.Table
) -> None:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'genrobust[cluster]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        assert same(run(suite, models, digits, tmp_path, Engine(name="ray", jobs=2)), local)
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dusk"}, "did you mean 'dask'"),
        ({"jobs": 0}, "`jobs`"),
        ({"threads": 0}, "`threads`"),
        ({"address": "tcp://here:1"}, "`address`"),
    ],
    ids=["name", "jobs", "threads", "address"],
)
def test_an_engine_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(**settings)


def test_a_pickled_model_comes_back(cnn: CNN, digits: ImageDataset) -> None:
    x, _ = digits.batch(slice(3))
    sent = PickledModel.of(cnn)
    assert sent.load()(x).equal(cnn(x))
    assert sent == PickledModel.of(cnn)


def test_missing_weights_come_with_the_command_that_makes_them(suite: Suite, tmp_path: Path) -> None:
    there = reference(suite, "cnn", folder=tmp_path)
    absent = ModelReference(
        entry=SuiteModel(name="adv", title="", zoo="adv-l2"), dataset="digits", folder=tmp_path
    )
    expected = f"genrobust train adv-l2 --dataset digits --out {tmp_path}/adv-l2-digits"
    assert missing_weights([there, absent]) == {"adv": expected}
    with pytest.raises(ValueError, match="did you mean 'eabs'"):
        reference(suite, "easb")


def test_examples_for_several_models_are_made_once(
    suite: Suite, cnn: CNN, digits: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(attack: Any, *arguments: Any, **settings: Any) -> Any:
        made.append(attack.key)
        return craft(attack, *arguments, **settings)

    monkeypatch.setattr("genrobust.benchmarks.run.attempts.craft", counted)
    transfer = replace(suite.attack("transfer"), for_models=())
    everybody = replace(suite, attacks=(transfer,))
    results = run(everybody, {"cnn": cnn, "mine": cnn, "abs": cnn}, digits, tmp_path, Engine())
    assert made == ["transfer"] * 2  # batches
    rows = [row for row in results.rows.to_pylist() if row["attack"] == "transfer"]
    distances: dict[str, list[float]] = {row["model"]: [] for row in rows}
    for row in rows:
        distances[row["model"]].append(row["distance_l2"])
    assert distances["cnn"] == distances["mine"] == distances["abs"]


@pytest.mark.slow
@pytest.mark.usefixtures("registrations_taken_back")
def test_a_cell_that_kills_its_workers_is_one_named_failure(
    suite: Suite, cnn: CNN, digits: ImageDataset, tmp_path: Path
) -> None:
    deadly_label = int(digits.labels[choose_samples(digits, 6, seed=5)[0]])  # of one image of the six

    @register_attack("Deadly", norm="linf")
    def deadly(model: Any, x: Tensor, y: Tensor, *, epsilon: float, generator: torch.Generator) -> Tensor:
        if deadly_label in y:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    entry = Attack(
        key="deadly", title="", norm="linf", kind="fixed epsilon", toolkit="genrobust", name="Deadly"
    )
    others = replace(suite, attacks=(suite.attack("pgd-linf"), entry))
    results = run(others, {"cnn": cnn}, digits, tmp_path, Engine(jobs=2, threads=1))
    (failure,) = results.failures
    assert failure.cell.startswith("cnn/deadly@0.2/")
    assert "3 died of it" in failure.error
    assert "`max_bytes`" in failure.error
    assert results.missing == 1
