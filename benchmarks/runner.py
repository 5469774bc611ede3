"""The runner: it works through the cells of a suite, keeps what is finished, and resumes where it stopped."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int

from ..classifier import Classifier
from ..data import ImageDataset
from .cells import Cell, plan, read_cell, write_cell
from .execution import Experiment, choose_samples, execute
from .progress import run_progress
from .results import Results, begin_run, load_results
from .suites import CLEAN, Suite
from .toolkits import build_attack

__all__ = ["run_suite"]


def run_suite(
    suite: Suite,
    *,
    models: Mapping[str, Classifier],
    dataset: ImageDataset,
    out: Path,
    samples: int | None = None,
    seed: int = 0,
    show_progress: bool = True,
) -> Results:
    """Run a suite, or go on with it: what is finished in `out` is neither computed again nor lost.

    The same seed gives the same results, whatever was killed in between.

    Args:
        suite: What to run.
        models: The models by name, each with the budget that its verdicts are made with.
        dataset: The test split of the suite's dataset.
        out: Folder of the run.
        samples: Number of test images; the suite's own number if None.
        seed: Of the choice of test images and of every cell.
        show_progress: Show progress on the standard error stream.

    Raises:
        ValueError: If `out` holds a run with other settings, an attack is unknown to its toolkit, a model
            does not fit the dataset, or there are fewer test images than `samples`.
    """
    _check_inputs(suite, models, dataset)
    chosen = choose_samples(dataset, suite.samples if samples is None else samples, seed=seed)
    experiment = Experiment(suite=suite, dataset=dataset, samples=chosen, seed=seed)
    manifest = _manifest(experiment, models)
    run = begin_run(out, manifest)
    cells = list(plan(suite, tuple(models), len(chosen)))
    finished = {cell: table for cell in cells if (table := read_cell(out, cell, run=run)) is not None}
    with run_progress(len(cells), finished=len(finished), show=show_progress) as progress:
        for cell in cells:
            if cell in finished:
                continue
            progress.begin(cell)
            try:
                columns = execute(
                    cell, experiment, models[cell.model], clean_predictions=_clean_predictions(cell, finished)
                )
            except Exception as error:
                error.add_note(f"in cell {cell.key}; the finished cells are kept in {out}")
                raise
            finished[cell] = write_cell(out, cell, run=run, columns=columns, versions=manifest["versions"])
            progress.end(cell, finished[cell])
    return load_results(out)


def _clean_predictions(cell: Cell, finished: Mapping[Cell, pa.Table]) -> Int[np.ndarray, " batch"] | None:
    if cell.attack == CLEAN:
        return None
    clean = Cell(model=cell.model, attack=CLEAN, epsilon=None, batch=cell.batch)
    predictions: Int[np.ndarray, " batch"] = finished[clean]["prediction"].to_numpy()
    return predictions


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
    for attack in suite.attacks:
        build_attack(attack)


def _manifest(experiment: Experiment, models: Mapping[str, Classifier]) -> dict[str, Any]:
    images, labels = experiment.dataset.images, experiment.dataset.labels
    return {
        "suite": asdict(experiment.suite),
        "dataset": {
            "name": experiment.dataset.name,
            "split": experiment.dataset.split,
            "sha256": _digest({"images": images, "labels": labels}),
        },
        "samples": experiment.samples.tolist(),
        "seed": experiment.seed,
        "models": {name: _described_model(model) for name, model in models.items()},
        "versions": {name: version(name) for name in ("genrobust", "torch", "foolbox")},
    }


def _described_model(model: Classifier) -> dict[str, Any]:
    """Say what decides a model's results: its class, weights, settings and device."""
    settings = {
        name: _described(getattr(model, name))
        for name in ("config", "budget", "gradient")
        if hasattr(model, name)
    }
    return {
        "class": type(model).__name__,
        "weights": _digest(model.state_dict()),
        "device": str(next(model.parameters()).device),
        **settings,
    }


def _described(value: Any) -> Any:
    if is_dataclass(value):
        content = {field.name: _described(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__, **content}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_described(item) for item in value]
    return type(value).__name__


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
