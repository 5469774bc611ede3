import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from selenium import webdriver

from genrobust.benchmarks.run.results import Results
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import Attack, Suite, ThreatModel
from genrobust.data import ImageDataset, load_dataset
from genrobust.models import ABS, CNN, EABS
from genrobust.randomness import isolated_rng

DIGITS = load_suite("digits")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

with warnings.catch_warnings():  # Foolbox 3.3.4 imports a deprecated SciPy namespace
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox  # noqa: F401


@pytest.fixture(scope="session")
def digits() -> ImageDataset:
    return load_dataset("digits", "test")


@pytest.fixture(scope="session")
def cnn() -> CNN:
    """A CNN that knows the digits after a few epochs."""
    dataset = load_dataset("digits", "train")
    with isolated_rng(0):
        model = CNN()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        model.set_parts_training(True)
        for _ in range(4):
            for rows in torch.split(torch.randperm(len(dataset)), 64):
                loss = model.training_loss("classifier", *dataset.batch(rows))
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
        model.set_parts_training(False)
    model.zero_grad(set_to_none=True)
    return model


@pytest.fixture(scope="session")
def abs_model() -> ABS:
    with isolated_rng(0):
        return ABS().with_inference(candidates=60, steps=1)


@pytest.fixture(scope="session")
def eabs_model() -> EABS:
    with isolated_rng(0):
        return EABS().with_inference(candidates=30, steps=1)


FAST: dict[str, dict[str, int | float]] = {
    "noise-linf": {"repeats": 2},
    "pgd-linf": {"steps": 5, "rel_stepsize": 0.3},
    "pgd-linf-joint": {"steps": 5, "rel_stepsize": 0.3},
    "noise-l2": {"repeats": 2},
    "pgd-l2": {"steps": 5, "rel_stepsize": 0.3},
    "pgd-l2-joint": {"steps": 5, "rel_stepsize": 0.3},
    "deepfool-l2": {"steps": 5, "candidates": 3},
    "ddn": {"steps": 10},
    "cw-l2": {"binary_search_steps": 2, "steps": 10, "stepsize": 0.1, "initial_const": 10.0},
    "boundary": {"steps": 20},
    "search-linf": {"queries": 10},
    "search-l2": {"queries": 10},
}


@pytest.fixture(scope="session")
def fast_attacks() -> dict[str, Attack]:
    """The attacks of `digits` with few steps."""
    attacks = (replace(attack, parameters=FAST.get(attack.key, {})) for attack in DIGITS.attacks)
    return {attack.key: attack for attack in attacks}


@pytest.fixture(scope="session")
def small_suite(fast_attacks: dict[str, Attack]) -> Suite:
    keys = ("fgsm", "pgd-linf", "pgd-l2", "deepfool-l2", "boundary")
    return replace(
        DIGITS,
        attacks=tuple(replace(fast_attacks[key], every_epsilon=key == "fgsm") for key in keys),
        threat_models=(
            ThreatModel(norm="linf", epsilon=0.2, curve_epsilons=(0.05, 0.1)),
            ThreatModel(norm="l2", epsilon=1.5),
        ),
        overshoots=(1.0, 1.2),
        batch_size=3,
        attack_inference={"candidates": 30, "steps": 1},
        starting_images=20,
    )


@pytest.fixture(scope="session")
def make_results() -> Callable[..., Results]:
    """Makes a run out of rows (model, attack, sample, clean right, success, distance), without running it."""

    def make(suite: Suite, rows: list[tuple[str, str, int, bool, bool, float]]) -> Results:
        models = tuple(dict.fromkeys(row[0] for row in rows))
        samples = list(dict.fromkeys(row[2] for row in rows))
        table = pa.table(
            {
                "model": [row[0] for row in rows],
                "attack": [row[1] for row in rows],
                "sample": [row[2] for row in rows],
                "epsilon": pa.array([None] * len(rows), pa.float64()),
                "label": [0] * len(rows),
                "prediction": [int(row[4] or not row[3]) for row in rows],
                "entropy": [0.5] * len(rows),
                "goal": pa.array([None] * len(rows), pa.int64()),
                "reclassified": pa.array([None] * len(rows), pa.int64()),
                "clean_prediction": [0 if row[3] else 1 for row in rows],
                "rejected": [False] * len(rows),
                "claimed": [True] * len(rows),
                "valid": [bool(np.isfinite(row[5])) for row in rows],
                **{key: [row[3] for row in rows] for key in ("right_first", "right", "right_worst")},
                **{key: [row[4] for row in rows] for key in ("success_first", "success", "success_worst")},
                "fell_first": [False] * len(rows),
                "unstable": [False] * len(rows),
                "zero_gradient": [False] * len(rows),
                "distance_linf": [row[5] for row in rows],
                "distance_l2": [row[5] for row in rows],
                "queries": [1] * len(rows),
                "gradients": [0] * len(rows),
                "seconds": [0.5] * len(rows),
            }
        )
        dataset = {"name": suite.dataset, "split": "test"}
        manifest = {"samples": samples, "seed": 0, "versions": {}, "dataset": dataset}
        return Results(folder=Path(), suite=suite, models=models, manifest=manifest, rows=table)

    return make


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no chromium, or no chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()
