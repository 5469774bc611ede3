"""Kills at every kind of moment: what is left is a valid run, and the same call finishes it."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import foolbox
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from eagerpy.astensor import astensor
from torch import Tensor, nn

from genrobust.benchmarks import runner
from genrobust.benchmarks.cells import SCHEMA
from genrobust.benchmarks.results import Results, load_results
from genrobust.benchmarks.runner import run_suite
from genrobust.benchmarks.suites import Attack, Suite
from genrobust.classifier import Classifier
from genrobust.data import ImageDataset

KILLS = 200
SAMPLES = 10
KEY = ("model", "attack", "epsilon", "sample")


class Linear(Classifier):
    """Decides in microseconds."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 28, 28), num_classes=10)
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn((784, 10), generator=generator))

    def logits(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


class Push(foolbox.attacks.base.MinimizationAttack):  # type: ignore[misc]
    """Adds noise: an attack that takes no time."""

    distance = foolbox.distances.l2

    def run(self, _model: Any, inputs: Any, _criterion: Any, **_: Any) -> Any:
        return astensor((inputs.raw + 0.3 * torch.rand_like(inputs.raw)).clamp(0, 1))


@pytest.fixture
def simulate(
    small_suite: Suite, digits: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], Results]:
    """Runs a suite of two instant attacks in a folder."""
    monkeypatch.setattr(foolbox.attacks, "Push", Push, raising=False)
    monkeypatch.setattr(runner, "environment", dict)
    names = ("push-1", "push-2")
    attacks = tuple(Attack(key=key, title=key, norm="l2", kind="minimal norm", name="Push") for key in names)
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


def run_killed(run: Callable[[Path], Results], out: Path, *, operation: int | None, seconds: float) -> bool:
    """Run in a child that is killed; say whether the kill came in time."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            if operation is None:
                run(out)
            else:
                with killed_at(operation):
                    run(out)
        finally:
            os._exit(0)
    if operation is None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def check(out: Path) -> None:
    """Check that every file is whole, and no sample is there twice."""
    for path in out.rglob("*.parquet"):
        assert pq.read_table(path).schema.equals(SCHEMA), path
    if not (out / "manifest.json").is_file():
        return
    rows = load_results(out, partial=True).rows
    keys = list(zip(*(rows[name].to_pylist() for name in KEY), strict=True))
    assert len(keys) == len(set(keys))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_no_kill_tears_a_file_or_loses_or_repeats_a_sample(
    simulate: Callable[[Path], Results], tmp_path: Path
) -> None:
    started = time.monotonic()
    reference = comparable(simulate(tmp_path / "reference"))
    duration = time.monotonic() - started
    chance = random.Random(0)
    kills, folder = 0, 0
    while kills < KILLS:
        out = tmp_path / f"run-{folder}"
        for _ in range(20):
            operation = None if chance.random() < 0.4 else chance.randrange(1, 60)
            if not run_killed(simulate, out, operation=operation, seconds=chance.uniform(0, duration)):
                break
            kills += 1
            check(out)
        assert comparable(simulate(out)).equals(reference)
        check(out)
        kept = {str(path.relative_to(out)) for path in out.rglob("*.npz")}
        assert len([name for name in kept if name.startswith("gallery")]) == 2
        assert len([name for name in kept if name.startswith("examples")]) == 2 * SAMPLES // 2
        folder += 1


def comparable(results: Results) -> pa.Table:
    return results.rows.drop_columns(["seconds"])
