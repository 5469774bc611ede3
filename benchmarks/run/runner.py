"""The runner: it works through the cells of a suite, keeps what is finished, and resumes where it stopped."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa

from ..._fields import check_integer, check_seed
from ..._files import sweep
from ...contract import Classifier
from ...data import ImageDataset
from ...verification import check_epsilon
from ..suites.model import CLEAN, PARTS, Suite
from .cells import Cell, plan, read_cell, write_cell
from .engines import Engine, compute
from .environment import compared_versions, environment
from .forecast import Forecast
from .gallery import EXAMPLES, GALLERY, write_arrays
from .identity import identity, kinds
from .progress import RunProgress, run_progress
from .references import GIVEN, ModelReference, PickledModel
from .results import MANIFEST, Failure, Results, begin_run, load_results, record_failure, record_success
from .tasks import Experiment, Outcome, Task, choose_samples
from .toolkits import check_attack, registered_attacks

__all__ = ["run_suite"]


def run_suite(
    suite: Suite,
    *,
    models: Mapping[str, Classifier | ModelReference],
    dataset: ImageDataset,
    out: Path,
    samples: int | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    keep_examples: bool = False,
    command: str | None = None,
    show_progress: bool = True,
) -> Results:
    """Runs a suite, or go on with it: what is finished in `out` is neither computed again nor lost.

    The same seed gives the same results, whatever was killed in between, and however many processes shared
    the work. A cell that fails is written down, and tried again by the next call; the others go on.

    Args:
        suite: What to run.
        models: The models by name, each with the budget that its verdicts are made with, or references.
        dataset: The test split of the suite's dataset.
        out: Folder of the run.
        samples: Number of test images; the suite's own number if None.
        seed: Seed of the choice of test images and of every cell.
        engine: Where to compute; this process alone if None.
        keep_examples: Keep every image, clean or adversarial, in `examples/`.
        command: That reproduces the run, for its manifest.
        show_progress: Show progress on the standard error stream.

    Returns:
        The run; `failures` and `missing` say what it lacks.

    Raises:
        ValueError: If `out` holds a run with other settings, an attack is unknown to its toolkit, a model
            does not fit the dataset, or there are fewer test images than `samples`.
    """
    seed = check_seed(seed)
    samples = suite.samples if samples is None else check_integer(samples, "samples")
    here = {
        name: model.load() if isinstance(model, ModelReference) else model for name, model in models.items()
    }
    _check_inputs(suite, here, dataset)
    engine = engine or Engine()
    chosen = choose_samples(dataset, samples, seed=seed)
    experiment = Experiment(
        suite=suite, dataset=dataset, samples=chosen, seed=seed, keep_examples=keep_examples
    )
    manifest = _manifest(experiment, here)
    sweep(out)
    begun = (out / MANIFEST).exists()
    origins = {
        name: model.origin if isinstance(model, ModelReference) else GIVEN for name, model in models.items()
    }
    circumstances = {} if begun else _circumstances(here, origins, command)
    run = begin_run(out, manifest, circumstances)
    cells = list(plan(suite, tuple(models), len(chosen)))
    found = {cell: table for cell in cells if (table := read_cell(out, cell, run=run)) is not None}
    waiting = [cell for cell in cells if cell not in found]
    jobs = engine.jobs or 1
    forecast = Forecast.probe(experiment, here, waiting, jobs=jobs) if show_progress else None
    with run_progress(len(cells), finished=len(found), forecast=forecast) as progress:
        keeper = _Keeper(out, run, manifest["versions"], found, progress)
        sources = {} if engine.in_process else {name: PickledModel.of(model) for name, model in here.items()}
        # The others repeat the decisions of the clean cells.
        for part in (
            [cell for cell in cells if cell.attack == CLEAN],
            [cell for cell in cells if cell.attack != CLEAN],
        ):
            for cell, result in compute(
                lambda part=part: keeper.tasks(part, experiment),  # type: ignore[misc]
                here,
                sources,
                engine,
            ):
                keeper.keep(cell, result)
    return load_results(out, partial=True)


@final
class _Keeper:
    """Knows what is finished, and makes files of what comes in."""

    def __init__(
        self,
        out: Path,
        run: str,
        versions: Mapping[str, str],
        finished: dict[Cell, pa.Table],
        progress: RunProgress,
    ) -> None:
        self._out, self._run, self._versions, self._progress = out, run, versions, progress
        self._finished = finished
        self._failed: set[Cell] = set()

    def tasks(self, cells: Sequence[Cell], experiment: Experiment) -> Iterator[Task]:
        """Returns what is still to be computed; an attack whose clean cell failed has to wait for that."""
        for cell in cells:
            if cell in self._finished or cell in self._failed:
                continue
            clean = Cell(model=cell.model, attack=CLEAN, epsilon=None, batch=cell.batch)
            if cell != clean and clean not in self._finished:
                continue
            known = {} if cell == clean else _known_of(self._finished[clean])
            self._progress.begin(cell)
            yield experiment.task(cell, **known)

    def keep(self, cell: Cell, result: Outcome | Failure) -> None:
        """Writes a result down; the cell's own file is the last, so that where it is the others are too."""
        if isinstance(result, Failure):
            self._failed.add(cell)
            record_failure(self._out, result)
            self._progress.fail(cell, result.error)
            return
        if result.gallery is not None:
            write_arrays(self._out, GALLERY, cell, result.gallery, run=self._run)
        if result.examples is not None:
            kept = {"sample": np.asarray(result.columns["sample"]), "adversarial": result.examples}
            write_arrays(self._out, EXAMPLES, cell, kept, run=self._run)
        self._finished[cell] = write_cell(
            self._out, cell, run=self._run, columns=result.columns, versions=self._versions
        )
        record_success(self._out, cell)
        self._progress.end(cell, self._finished[cell])


def _circumstances(
    models: Mapping[str, Classifier], origins: Mapping[str, str], command: str | None
) -> dict[str, Any]:
    return {
        "environment": environment(),
        "command": command,
        "weights": origins,
        "kinds": {name: kinds(model) for name, model in models.items()},
        "began": datetime.now(UTC).date().isoformat(),
    }


def _known_of(clean: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    """Returns what the others repeat of a clean cell; a prediction is -1 where it is undefined."""
    right = np.stack([clean["right"].to_numpy(), clean["right_worst"].to_numpy()])
    return {"clean_predictions": clean["clean_prediction"].to_numpy(), "clean_right": right}


def _check_inputs(suite: Suite, models: Mapping[str, Classifier], dataset: ImageDataset) -> None:
    if not models:
        raise ValueError("Expected at least one model, but got none")
    if dataset.name != suite.dataset:
        raise ValueError(
            f"Expected the dataset {suite.dataset!r} of suite {suite.name!r}, but got {dataset.name!r}"
        )
    for name, model in models.items():
        suite.model(name)
        if (model.input_shape, model.num_classes) != (dataset.input_shape, dataset.num_classes):
            raise ValueError(
                f"Expected {name!r} to take images of shape {dataset.input_shape} and {dataset.num_classes} "
                f"classes, but it takes {model.input_shape} and {model.num_classes}"
            )
    for threat in suite.threat_models:
        for epsilon in threat.epsilons:
            check_epsilon(epsilon, norm=threat.norm, input_shape=dataset.input_shape)
    for attack in suite.attacks:
        check_attack(attack, channels=dataset.input_shape[0])
        if attack.against not in (None, *PARTS, *models):
            raise ValueError(
                f"Expected the model {attack.against!r}, whose examples {attack.key!r} transfers, but got "
                f"{', '.join(map(repr, models))}"
            )


def _manifest(experiment: Experiment, models: Mapping[str, Classifier]) -> dict[str, Any]:
    return {
        "suite": asdict(experiment.suite),
        "dataset": {
            "name": experiment.dataset.name,
            "split": experiment.dataset.split,
            "sha256": experiment.dataset.sha256,
        },
        "attacks": {attack.name: attack.digest for attack in registered_attacks(experiment.suite.attacks)},
        "samples": experiment.samples.tolist(),
        "seed": experiment.seed,
        "keep_examples": experiment.keep_examples,
        "models": {name: identity(model) for name, model in models.items()},
        "versions": compared_versions(experiment.suite),
    }
