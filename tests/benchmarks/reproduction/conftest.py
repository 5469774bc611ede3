"""A small run on digits, and a paper that it measures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genrobust import load_dataset, load_model
from genrobust.benchmarks.reproduction import PaperRecord, read_papers
from genrobust.benchmarks.run.references import reference
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.suites.files import load_suite, register_suite
from genrobust.benchmarks.suites.model import Expected, Suite, SuiteModel, ThreatModel
from genrobust.zoo import save_model

DIGITS = load_suite("digits")
SAMPLES = 30

SUITE = replace(
    DIGITS,
    name="tiny-table",
    title="A tiny table",
    paper="Nobody 2026, Table 1",
    models=(SuiteModel(name="cnn", title="CNN"), SuiteModel(name="mlp", title="MLP")),
    attacks=(
        replace(DIGITS.attack("fgsm"), every_epsilon=False),
        replace(DIGITS.attack("pgd-linf"), parameters={"steps": 5, "rel_stepsize": 0.3}),
    ),
    threat_models=(ThreatModel(norm="linf", epsilon=0.2),),
    baseline=None,
    batch_size=15,
    reduced=("30 images | in place of <all>.",),
    expected=(
        Expected(model="cnn", attack="clean", value=0.97, images=1000),
        Expected(model="mlp", attack="clean", value=0.5, images=1000),
        Expected(model="cnn", attack="fgsm", value=0.99),
    ),
)

PAPERS = """
[[papers]]
name = "Tiny"
source = "Nobody 2026"
claims = [
  { text = "A CNN knows digits.", checks = [{ suite = "tiny-table", model = "cnn", attack = "clean" }] },
  { text = "A CNN resists FGSM.", checks = [{ suite = "tiny-table", model = "cnn", attack = "fgsm" }] },
  { text = "A net sees a face.", reason = "there are no faces" },
]
items = [
  { name = "Table 1", content = "digits", suites = ["tiny-table"], note = "a note" },
  { name = "Table 2", content = "another suite", suites = ["eabs-table5"] },
  { name = "Figure 1", content = "a picture", command = "genrobust show deep-bayes" },
  { name = "Figure 2", content = "faces", reason = "there are no faces" },
]
"""


@pytest.fixture
def tiny(registrations_taken_back: None) -> Suite:
    """Registers the suite."""
    register_suite(SUITE)
    return SUITE


@pytest.fixture(scope="session")
def papers(tmp_path_factory: pytest.TempPathFactory) -> tuple[PaperRecord, ...]:
    path = tmp_path_factory.mktemp("papers") / "papers.toml"
    path.write_text(PAPERS, encoding="utf-8")
    return read_papers(path)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run_suite(
        SUITE,
        models={model.name: reference(SUITE, model.name) for model in SUITE.models},
        dataset=load_dataset("digits", "test"),
        samples=SAMPLES,
        out=folder,
        command="genrobust bench tiny.toml --samples 30",
        show_progress=False,
    )
    return folder


@pytest.fixture
def blank_weights(tmp_path: Path) -> Path:
    """A folder of trained models, with a CNN that knows nothing."""
    model = load_model("cnn", dataset="digits")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    save_model(model, tmp_path / "models" / "cnn-digits" / "model.safetensors")
    return tmp_path / "models"
