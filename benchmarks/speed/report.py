"""Measure the time and memory that the report of a large run takes, from rows on disk to a page on disk."""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..._files import write_json
from ..report import describe, render, write_text
from ..run.cells import Cell, plan, write_cell
from ..run.results import begin_run, load_results
from ..statistics import summarise
from ..suites.files import load_suite
from ..suites.model import CLEAN, Suite, SuiteModel

__all__ = ["main", "measure_report", "simulate_run"]

DIGITS = load_suite("digits")

MIB = 1 << 20
ATTACKS = ("pgd-linf", "pgd-l2", "deepfool-l2", "ddn", "cw-l2")
T = TypeVar("T")


def simulate_run(folder: Path, *, rows: int, models: int = 10, batch_size: int = 1000, seed: int = 0) -> int:
    """Writes a run in the runner's format with random distances, and returns its number of rows.

    Args:
        folder: Folder of the run.
        rows: Least number of rows.
        models: Number of models.
        batch_size: Rows per cell.
        seed: Seed of the draws.
    """
    suite = replace(
        DIGITS,
        models=tuple(SuiteModel(name=f"model-{k}", title=f"Model {k}") for k in range(models)),
        attacks=tuple(DIGITS.attack(key) for key in ATTACKS),
        batch_size=batch_size,
        baseline=None,
    )
    names = tuple(model.name for model in suite.models)
    passes = 1 + sum(len(suite.epsilons(attack)) for attack in suite.attacks)
    samples = -(-rows // (passes * models))
    manifest = {
        "suite": asdict(suite),
        "dataset": {"name": suite.dataset, "split": "simulated", "sha256": "0" * 64},
        "samples": list(range(samples)),
        "seed": seed,
        "models": {name: {"class": "Simulated", "weights": "0" * 64, "device": "cpu"} for name in names},
        "versions": {},
    }
    run, generator = begin_run(folder, manifest), np.random.default_rng(seed)
    for cell in plan(suite, names, samples):
        write_cell(folder, cell, run=run, columns=_columns(suite, cell, samples, generator), versions={})
    return passes * models * samples


def measure_report(folder: Path, page: Path) -> dict[str, Any]:
    """Loads a run, writes its page, and returns the seconds and the peak memory of this process."""
    before = _peak()
    results, loading = _timed(lambda: load_results(folder))
    summary, statistics = _timed(lambda: summarise(results))
    _, writing = _timed(lambda: write_text(page, render([describe(results, summary)])))
    return {
        "rows": len(results.rows),
        "loading_seconds": loading,
        "statistics_seconds": statistics,
        "page_seconds": writing,
        "seconds": loading + statistics + writing,
        "page_mib": page.stat().st_size / MIB,
        "peak_mib": _peak(),
        "peak_before_mib": before,
    }


def _columns(suite: Suite, cell: Cell, samples: int, generator: np.random.Generator) -> dict[str, Any]:
    first = cell.batch * suite.batch_size
    chosen = np.arange(first, min(first + suite.batch_size, samples))
    count, clean = len(chosen), cell.attack == CLEAN
    attack = None if clean else suite.attack(cell.attack)
    strength = 1 + int(cell.model.rpartition("-")[2]) / 4
    unit = suite.threat_model(attack.norm).epsilon if attack else 0.0
    shortest = unit * strength * generator.gamma(3.0, 0.4, count)
    lengths = shortest if cell.epsilon is None else np.full(count, cell.epsilon)
    labels = chosen % 10
    success = np.zeros(count, dtype=bool) if clean else shortest <= lengths
    flags = ("fell_first", "rejected", "unstable", "zero_gradient")
    return {
        "suite": [suite.name] * count,
        "model": [cell.model] * count,
        "attack": [cell.attack] * count,
        "toolkit": [attack.toolkit if attack else None] * count,
        "target": [None] * count,
        "norm": [attack.norm if attack else None] * count,
        "epsilon": [cell.epsilon] * count,
        "sample": chosen,
        "label": labels,
        "clean_prediction": labels,
        "prediction": np.where(success, (labels + 1) % 10, labels),
        "entropy": np.full(count, 0.1),
        **dict.fromkeys(("goal", "margin", "reclassified", "fooling"), [None] * count),
        "claimed": success,
        "valid": np.ones(count, dtype=bool),
        **dict.fromkeys(("success_first", "success", "success_worst"), success),
        **dict.fromkeys(("right_first", "right", "right_worst"), np.ones(count, dtype=bool)),
        "attempts": np.full(count, 0 if clean else 1),
        **{flag: np.zeros(count, dtype=bool) for flag in flags},
        **{f"distance_{norm}": lengths for norm in ("l0", "l1", "l2", "linf")},
        "overshoot": np.ones(count),
        "queries": np.full(count, 40),
        "gradients": np.full(count, 40),
        "seconds": np.full(count, 0.1),
        "seed": np.zeros(count, dtype=np.int64),
    }


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB  # Linux counts in KiB


def main(arguments: list[str] | None = None) -> None:
    """Simulates a run, measures its report in a separate process, and prints the result."""
    parser = argparse.ArgumentParser(prog="python -m genrobust.benchmarks.speed.report", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=1000, help="rows per cell, which is a file")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--page", type=Path, help="keep the page here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate_run(folder, rows=options.rows, models=options.models, batch_size=options.batch_size)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply(measure_report, (folder, options.page or folder / "report.html"))
    sys.stdout.write(
        f"{result['rows']:,} rows: {result['loading_seconds']:.1f} s to load, "
        f"{result['statistics_seconds']:.1f} s for statistics, {result['page_seconds']:.1f} s for a page of "
        f"{result['page_mib']:.1f} MiB; {result['seconds']:.1f} s in all, peak {result['peak_mib']:.0f} MiB\n"
    )
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
