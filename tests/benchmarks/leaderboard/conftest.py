"""A tiny run on digits, and submissions against it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genrobust import load_dataset, load_model
from genrobust.attacks import pgd
from genrobust.benchmarks.run.references import reference
from genrobust.benchmarks.run.results import load_results
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import SuiteModel, ThreatModel

EPSILON = 0.2

Submit = Callable[..., Path]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deep Bayes, which draws noise, and a CNN, which RobustBench takes, under noise."""
    digits = load_suite("digits")
    models = (SuiteModel(name="deep-bayes", title="Deep Bayes"), SuiteModel(name="cnn", title="CNN"))
    suite = replace(
        digits,
        models=models,
        attacks=(replace(digits.attack("noise-linf"), parameters={"repeats": 2}),),
        threat_models=(ThreatModel(norm="linf", epsilon=EPSILON),),
        batch_size=6,
    )
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run_suite(
        suite,
        models={model.name: reference(suite, model.name) for model in models},
        dataset=load_dataset("digits", "test"),
        samples=6,
        out=folder,
        show_progress=False,
    )
    return folder


@pytest.fixture(scope="session")
def samples(run: Path) -> np.ndarray[Any, Any]:
    return load_results(run).samples


@pytest.fixture(scope="session")
def adversarial(samples: np.ndarray[Any, Any]) -> Tensor:
    """What PGD makes of the run's images."""
    images, labels = load_dataset("digits", "test").batch(torch.from_numpy(samples))
    return pgd(
        load_model("deep-bayes", dataset="digits"),
        images,
        labels,
        epsilon=EPSILON,
        norm="linf",
        steps=6,
        step_size=0.08,
        random_start=False,
        loss="margin",
    )


CARD = {
    "submitter": "A. Turing",
    "model": "deep-bayes",
    "dataset": "digits",
    "norm": "linf",
    "epsilon": EPSILON,
    "attack": "PGD, 6 steps",
    "date": "2026-11-30",
    "link": "https://example.org/attack",
}


@pytest.fixture
def submit(tmp_path: Path, samples: np.ndarray[Any, Any], adversarial: Tensor) -> Submit:
    """Writes a submission of the run's images into the folder `submissions`; None leaves something out."""

    def write(name: str, arrays: dict[str, Any] | None = None, /, **card: Any) -> Path:
        folder = tmp_path / "submissions" / name
        folder.mkdir(parents=True)
        (folder / "card.json").write_text(json.dumps(CARD | card))
        given: dict[str, Any] = {"images": adversarial.numpy(), "indices": samples} | (arrays or {})
        np.savez(folder / "images.npz", **{key: value for key, value in given.items() if value is not None})
        return folder

    return write
