"""A run that nobody has run: every column made up, written as the runner writes it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from genrobust.benchmarks.run.cells import SCHEMA, Cell, plan, write_cell
from genrobust.benchmarks.run.results import begin_run, load_results
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import CLEAN, Suite, SuiteModel, ThreatModel

DIGITS = load_suite("digits")

Change = Callable[[Cell, dict[str, Any]], None]

SMALL = replace(
    DIGITS,
    models=(SuiteModel(name="cnn", title="CNN"), SuiteModel(name="eabs", title="E-ABS")),
    attacks=tuple(DIGITS.attack(key) for key in ("fgsm", "pgd-linf", "ddn", "deepfool-l2")),
    threat_models=(
        ThreatModel(norm="linf", epsilon=0.1, curve_epsilons=(0.05, 0.2)),
        ThreatModel(norm="l2", epsilon=1.5, curve_epsilons=(0.5, 1.0, 2.0)),
    ),
    batch_size=10,
)


def columns(suite: Suite, cell: Cell, samples: Sequence[int], *, seed: int = 0) -> dict[str, Any]:
    """Gives rows of a cell: the CNN falls sooner than others, later attacks of the suite find more."""
    generator = np.random.default_rng([seed, *cell.key.encode()])
    count, attack = len(samples), None if cell.attack == CLEAN else suite.attack(cell.attack)
    resistance = 0.6 if cell.model == "cnn" else 1.4
    unit = suite.threat_model(attack.norm).epsilon if attack else 1.0
    shortest = unit * resistance * generator.gamma(3.0, 0.45, count)
    lengths = shortest if cell.epsilon is None else np.full(count, cell.epsilon)
    success = np.zeros(count, bool) if attack is None else shortest <= lengths
    if attack and cell.epsilon is None:
        success &= generator.random(count) < 0.95
    labels = np.asarray(samples) % 10
    made: dict[str, Any] = {
        "suite": [suite.name] * count,
        "model": [cell.model] * count,
        "attack": [cell.attack] * count,
        "toolkit": [attack.toolkit if attack else None] * count,
        "target": [None] * count,
        "norm": [attack.norm if attack else None] * count,
        "epsilon": [cell.epsilon] * count,
        "sample": np.asarray(samples),
        "label": labels,
        "goal": (labels + 1) % 10 if attack and attack.targeted else [None] * count,
        "clean_prediction": labels,
        "prediction": np.where(success, (labels + 1) % 10, labels),
        "claimed": success | (generator.random(count) < 0.1) if attack else success,
        "entropy": np.where(success, 0.5, 0.25),
        "margin": [None] * count,
        "reclassified": [None] * count,
        "fooling": [None] * count,
        "valid": np.ones(count, bool),
        "success": success,
        "attempts": np.full(count, 1 if attack else 0),
        "seconds": np.full(count, 0.25),
        "queries": np.full(count, 20),
        "gradients": np.full(count, 20),
        "seed": np.full(count, seed),
    }
    for name in SCHEMA.names:
        if name not in made and not name.startswith(("right", "success")):
            flags = name in ("rejected", "unstable", "zero_gradient", "fell_first")
            made[name] = np.zeros(count, bool) if flags else lengths if attack else np.zeros(count)
    return made


def make_run(
    folder: Path,
    suite: Suite = SMALL,
    *,
    models: Sequence[str] | None = None,
    samples: int = 20,
    seed: int = 0,
    change: Change | None = None,
    left_out: Callable[[Cell], bool] | None = None,
) -> Path:
    """Writes a run; `change` may edit the columns of a cell, `left_out` leaves cells missing."""
    names = tuple(models or (model.name for model in suite.models))
    manifest = {
        "suite": asdict(suite),
        "dataset": {"name": suite.dataset, "split": "test", "sha256": "0" * 64},
        "samples": list(range(samples)),
        "seed": seed,
        "models": {name: {"class": "CNN", "weights": "f" * 64, "device": "cpu"} for name in names},
        "versions": {"genrobust": "0.1.0", "torch": "2.9"},
    }
    run = begin_run(folder, manifest)
    for cell in plan(suite, names, samples):
        if left_out and left_out(cell):
            continue
        first = cell.batch * suite.batch_size
        chosen = range(first, min(first + suite.batch_size, samples))
        made = columns(suite, cell, chosen, seed=seed)
        if change:
            change(cell, made)
        right, won = np.equal(made["clean_prediction"], made["label"]), made["success"]
        drawn = {"right_first": right, "right": right, "right_worst": right}
        made = drawn | {"success_first": won, "success_worst": won} | made
        write_cell(folder, cell, run=run, columns=made, versions=manifest["versions"])
    return folder


def add_galleries(folder: Path, suite: Suite = SMALL, *, channels: int = 1) -> None:
    """Keeps a gallery for every attack at every epsilon; E-ABS has reconstructions."""
    generator = np.random.default_rng(0)
    found = load_results(folder, partial=True)
    run = found.run
    for cell in plan(suite, found.models, 1):
        if cell.attack == CLEAN:
            continue
        clean = generator.random((2, channels, 8, 8)).astype(np.float32)
        arrays: dict[str, Any] = {
            "sample": np.array([3, 5]),
            "label": np.array([3, 5]),
            "prediction": np.array([8, 5]),
            "clean": clean,
            "adversarial": (clean + 0.1 * generator.standard_normal(clean.shape)).clip(0, 1).astype("f4"),
            "class_names": np.array([str(k) for k in range(10)]),
        }
        if cell.model == "eabs":
            arrays["reconstructions"] = generator.random((2, 10, channels, 8, 8)).astype(np.float32)
        path = folder / "gallery" / f"{cell.key}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays, run=np.array(run))
