"""Kills at every kind of moment: what is left is a valid run, and the same call finishes it."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genrobust import register_attack
from genrobust.benchmarks.report import write_report
from genrobust.benchmarks.run import runner
from genrobust.benchmarks.run.cells import SCHEMA
from genrobust.benchmarks.run.results import Results, load_results
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.suites.model import Attack, Suite
from genrobust.cli.stopping import terminable
from genrobust.contract import Classifier
from genrobust.data import ImageDataset
from genrobust.training.building import train_recipe
from genrobust.zoo import read_model

KILLS = int(os.environ.get("GENROBUST_KILLS", "60"))  # of all kinds of work together
SAMPLES = 10
STOPPED = 7  # exit status of a child that SIGTERM has stopped
KEY = ("model", "attack", "epsilon", "sample")


class Linear(Classifier):
    """Decides in microseconds."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 28, 28), num_classes=10)
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn((784, 10), generator=generator))

    def logits(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


def push(_model: Any, x: Tensor, _y: Tensor, *, epsilon: float | None, generator: torch.Generator) -> Tensor:
    """Adds noise: an attack that takes no time."""
    del epsilon
    return (x + 0.3 * torch.rand(x.shape, generator=generator)).clamp(0, 1)


@pytest.fixture
def simulate(
    small_suite: Suite,
    digits: ImageDataset,
    monkeypatch: pytest.MonkeyPatch,
    registrations_taken_back: None,
) -> Callable[[Path], Results]:
    """Runs a suite of two instant attacks in a folder."""
    register_attack(norm="l2", needs_epsilon=False)(push)
    monkeypatch.setattr(runner, "environment", dict)
    names = ("push-1", "push-2")
    attacks = tuple(
        Attack(key=key, title=key, norm="l2", kind="minimal norm", toolkit="genrobust", name="push")
        for key in names
    )
    suite = replace(small_suite, attacks=attacks, batch_size=2, overshoots=(1.0,))

    def run(out: Path) -> Results:
        models = {"cnn": Linear()}
        return run_suite(
            suite,
            models=models,
            dataset=digits,
            samples=SAMPLES,
            out=out,
            keep_examples=True,
            show_progress=False,
        )

    return run


@contextmanager
def killed_at(operation: int) -> Iterator[None]:
    """Kills this process at its n-th step on files: in the middle of a write, before or after a rename."""
    left = operation

    def count(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **settings: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if function is write_table:
                    Path(arguments[1]).write_bytes(b"PAR1 and half of a cell")
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **settings)

        return counted

    write_table = pq.write_table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq, "write_table", count(write_table))
        patch.setattr(os, "fsync", count(os.fsync))
        patch.setattr(Path, "replace", count(Path.replace))
        patch.setattr(Path, "mkdir", count(Path.mkdir))
        patch.setattr(Path, "unlink", count(Path.unlink))
        yield


def run_killed(
    run: Callable[[Path], object],
    out: Path,
    *,
    operation: int | None,
    seconds: float,
    number: signal.Signals = signal.SIGKILL,
) -> bool:
    """Run in a child that is killed; say whether the kill came in time."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with terminable():
                if operation is None:
                    run(out)
                else:
                    with killed_at(operation):
                        run(out)
            status = 0
        except KeyboardInterrupt:
            status = STOPPED
        finally:
            os._exit(status)
    if operation is None:
        time.sleep(seconds)
        os.kill(child, number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, STOPPED, -signal.SIGKILL, -signal.SIGTERM), "the work failed by itself"
    return status != 0


def check(out: Path) -> None:
    """Check that every file is whole, and no sample is there twice."""
    for path in out.rglob("*.parquet"):
        assert pq.read_table(path).schema.equals(SCHEMA), path
    for path in out.rglob("[!.]*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in out.rglob("[!.]*.npz"):
        with np.load(path) as arrays:
            assert all(arrays[name].size for name in arrays.files), path  # reads every member
    for path in out.rglob("[!.]*.safetensors"):
        read_model(path)
    for path in out.rglob("[!.]*.pt"):
        torch.load(path, weights_only=True)
    for path in out.rglob("[!.]*.html"):
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), path
    if not (out / "manifest.json").is_file():
        return
    rows = load_results(out, partial=True).rows
    keys = list(zip(*(rows[name].to_pylist() for name in KEY), strict=True))
    assert len(keys) == len(set(keys))


def comparable(results: Results) -> pa.Table:
    return results.rows.drop_columns(["seconds"])


def train(out: Path) -> dict[str, Any]:
    """Trains a small network for two epochs; returns its card without times, and its weights."""
    card = train_recipe(
        "mlp",
        "digits",
        folder=out,
        overrides={"epochs": 2, "batch_size": 512},
        accelerator="cpu",
        test_images=20,
        show_progress=False,
    )
    assert card is not None
    assert card["weights_sha256"] == hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    # The header's entries come in any order.
    weights = {name: value.tolist() for name, value in load_file(out / "model.safetensors").items()}
    return {"weights": weights, **{name: card[name] for name in ("best_epoch", "clean_accuracy")}}


@dataclass(frozen=True)
class Work:
    """What is killed, and what it leaves when it is finished."""

    run: Callable[[Path], object]
    begin: Callable[[Path], object]
    found: Callable[[Path], object]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads add in another order, which shows in the last digits; and a fork has no pool of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def works(simulate: Callable[[Path], Results], tmp_path: Path) -> dict[str, Work]:
    """Gives the kinds of work that write files: a run with its examples, its report, and a training."""
    finished = simulate(tmp_path / "finished").folder

    def copied(out: Path) -> None:
        shutil.copytree(finished, out)

    def page(out: Path) -> tuple[str, list[str]]:
        report(out)
        return (out / "table.json").read_text(), sorted(path.name for path in out.iterdir())

    def report(out: Path) -> None:
        write_report(load_results(out))

    def kept(out: Path) -> tuple[object, list[str]]:
        results = simulate(out)
        arrays = sorted(str(path.relative_to(out)) for path in out.rglob("*.npz"))
        assert len([name for name in arrays if name.startswith("gallery")]) == 2
        examples = [name for name in arrays if name.startswith("examples")]
        assert len(examples) == 3 * SAMPLES // 2  # of two attacks, and of the clean images
        return comparable(results).to_pylist(), arrays

    return {
        "bench": Work(simulate, lambda _: None, kept),
        "report": Work(report, copied, page),
        "train": Work(train, lambda _: None, train),
    }


def kill_often(works: dict[str, Work], folder: Path, *, kills: int, seed: int) -> None:
    """Kills each kind of work again and again, in new folders, and finishes it every time."""
    chance = random.Random(seed)
    for name, work in works.items():
        work.begin(folder / f"{name}-reference")
        started = time.monotonic()
        reference = work.found(folder / f"{name}-reference")
        duration = time.monotonic() - started
        done = attempt = 0
        while done < kills // len(works):
            out = folder / f"{name}-{attempt}"
            work.begin(out)
            for _ in range(chance.randint(1, 5)):
                operation = (
                    None if chance.random() < 0.5 else chance.randrange(1, 60 if name == "bench" else 12)
                )
                done += run_killed(
                    work.run,
                    out,
                    operation=operation,
                    seconds=chance.uniform(0, duration),
                    number=chance.choice([signal.SIGKILL, signal.SIGTERM]),
                )
                check(out)
            assert work.found(out) == reference
            check(out)
            assert not list(out.rglob("*.part")), "a temporary file is left over"
            shutil.rmtree(out)
            attempt += 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore::DeprecationWarning:lightning.*")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_no_kill_tears_a_file_or_loses_or_repeats_anything(works: dict[str, Work], tmp_path: Path) -> None:
    kill_often(works, tmp_path, kills=KILLS, seed=0)
