"""Measure what the runner adds to an attack: planning, bookkeeping of verdicts, files, and shared work.

Run `python -m genrobust.benchmarks.speed.runner`. It computes the same cells in turn with the runner, and
with a loop over the bare function that writes nothing. The overhead is the difference. The cost of a cell
apart from its attack does not depend on the attack, so that the share in a long run follows from it.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..._files import write_json
from ..._malloc import keep_freed_memory
from ...contract import Classifier
from ...data import ImageDataset, load_dataset
from ...zoo import load_model
from ..run.cells import plan
from ..run.engines import Engine
from ..run.environment import environment
from ..run.execution import execute
from ..run.runner import run_suite
from ..run.tasks import Experiment, choose_samples
from ..suites.files import load_suite
from ..suites.model import CLEAN, Suite

__all__ = ["Overhead", "measure_overhead"]

QUICK = load_suite("quick")

RUN_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Median times over the repetitions.

    Attributes:
        cells: Number of cells.
        bare: Seconds of the loop.
        runner: Seconds of the runner.
        fixed: Seconds of the runner before the first cell and after the last.
    """

    cells: int
    bare: float
    runner: float
    fixed: float

    @property
    def per_cell(self) -> float:
        """Seconds that the runner adds to a cell."""
        return (self.runner - self.bare - self.fixed) / self.cells

    @property
    def ratio(self) -> float:
        """Times that the runner adds to these cells, as a share of the bare loop's."""
        return self.runner / self.bare - 1

    def share_of(self, seconds: float, *, cells: int) -> float:
        """Returns the time that the runner adds to a longer run, as a share of `seconds`."""
        return (self.fixed + cells * self.per_cell) / seconds


def measure_overhead(
    suite: Suite, model: Classifier, dataset: ImageDataset, *, samples: int, repetitions: int
) -> Overhead:
    """Measures the cells of a suite in both ways, in turn."""
    bare, runner, fixed = [], [], []
    chosen = choose_samples(dataset, samples, seed=0)
    experiment = Experiment(suite=suite, dataset=dataset, samples=chosen, seed=0)
    cells = list(plan(suite, ("cnn",), samples))
    models = {"cnn": model}
    for _ in range(repetitions):
        started = time.perf_counter()
        clean: dict[int, Any] = {}
        for cell in cells:
            columns = execute(experiment.task(cell, clean_predictions=clean.get(cell.batch)), models).columns
            if cell.attack == CLEAN:
                clean[cell.batch] = columns["prediction"]
        bare.append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run_suite(
                suite,
                models=models,
                dataset=dataset,
                samples=samples,
                out=Path(folder),
                engine=Engine(),
                show_progress=False,
            )
            runner.append(time.perf_counter() - started)
            started = time.perf_counter()  # all cells are finished, so that only begin and end remain
            environment()  # which is written once
            run_suite(
                suite, models=models, dataset=dataset, samples=samples, out=Path(folder), show_progress=False
            )
            fixed.append(time.perf_counter() - started)
    return Overhead(
        cells=len(cells),
        bare=statistics.median(bare),
        runner=statistics.median(runner),
        fixed=statistics.median(fixed),
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurement, prints it, and writes it as JSON on request."""
    parser = argparse.ArgumentParser(prog="python -m genrobust.benchmarks.speed.runner", description=__doc__)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="of PGD, what the cells are made of")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    pgd = replace(QUICK.attack("pgd-l2"), parameters={"steps": options.steps, "rel_stepsize": 0.05})
    attacks = tuple(replace(pgd, key=f"pgd-{number}") for number in range(4))
    suite = replace(QUICK, attacks=attacks, batch_size=options.batch_size)
    found = measure_overhead(
        suite,
        load_model("cnn", dataset="digits"),
        load_dataset("digits", "test"),
        samples=options.samples,
        repetitions=options.repetitions,
    )
    count = QUICK.samples // QUICK.batch_size * 3 * (1 + sum(len(QUICK.epsilons(a)) for a in QUICK.attacks))
    share = found.share_of(RUN_SECONDS, cells=count)
    sys.stdout.write(
        f"{found.cells} cells: bare loop {found.bare:.2f} s, runner {found.runner:.2f} s "
        f"(ratio {1 + found.ratio:.3f}; begin and end take {found.fixed:.2f} s); "
        f"{1000 * found.per_cell:.1f} ms a cell\n"
        f"of a run of {RUN_SECONDS:.0f} s with the {count} cells of `quick`: {share:.2%}\n"
    )
    if options.json:
        content = {**asdict(found), "per_cell": found.per_cell, "ratio": found.ratio, "share": share}
        write_json(options.json, content)


if __name__ == "__main__":
    main()
