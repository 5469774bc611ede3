"""What a stranger brings in one file outside the package gets the whole road; no file inside is touched."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import genrobust
from genrobust.adapters.contract import available
from genrobust.cli.main import app
from genrobust.data import dataset_info
from genrobust.registry import load_plugin
from genrobust.zoo import read_model
from genrobust.zoo.registered import MODELS

pytestmark = [
    pytest.mark.usefixtures("registrations_taken_back"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*"),
]

GAUSSIAN = '''
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from genrobust import GenerativeClassifier, register_model
from genrobust.capabilities import Trainable
from genrobust.zoo import Recipe


@dataclass(frozen=True, kw_only=True)
class GaussianConfig:
    num_classes: int
    input_shape: tuple[int, int, int]
    variance: float = 0.1


class Gaussian(GenerativeClassifier, Trainable):
    """p(x | y): a Gaussian around the mean of every class."""

    def __init__(self, config):
        super().__init__(input_shape=config.input_shape, num_classes=config.num_classes)
        self.config = config
        self.means = nn.Parameter(torch.full((config.num_classes, *config.input_shape), 0.5))

    def class_scores(self, x):
        x = self.check(x)
        return -(x[:, None] - self.means).flatten(2).square().sum(2) / (2 * self.config.variance)

    def scores_to_logits(self, scores):
        return scores

    def probabilities(self, scores):
        return scores.softmax(1)

    @property
    def phases(self):
        return {"likelihood": [self.means]}

    def training_loss(self, phase, x, y):
        return (x - self.means[y]).square().mean()


@register_model(
    "gaussian",
    classes={Gaussian: GaussianConfig},
    recipe=Recipe(training={"epochs": 2, "batch_size": 32, "learning_rate": 0.05, "noise_std": 0.0}),
)
def gaussian(info):
    return Gaussian(GaussianConfig(num_classes=info.num_classes, input_shape=info.input_shape))
'''

SUITE = """
title = "Mine"
dataset = "digits"
samples = 4
batch_size = 4
[[models]]
name = "gaussian"
title = "Gaussian"
[[threat_models]]
norm = "linf"
epsilon = 0.2
[[attacks]]
key = "fgsm"
title = "FGSM"
norm = "linf"
kind = "fixed epsilon"
name = "LinfFastGradientAttack"
"""

COLOURS = '''
import numpy as np

from genrobust import register_dataset


def colours(split):
    """Noise around a level of grey for every class."""
    generator = np.random.default_rng(split == "test")
    labels = np.arange(140 if split == "train" else 28) % 7
    images = generator.normal(30 * labels[:, None, None, None] + 30, 10, (len(labels), 20, 20, 3))
    return images.clip(0, 255).astype(np.uint8), labels


register_dataset("colours", input_shape=(3, 20, 20), class_names=tuple("abcdefg"), load=colours)
'''

PYTHON_SUITE = """
from genrobust import register_suite
from genrobust.benchmarks.suites.model import Attack, Suite, SuiteModel, ThreatModel

attack = Attack(
    key="fgsm", title="FGSM", norm="linf", kind="fixed epsilon", name="LinfFastGradientAttack"
)
register_suite(
    Suite(
        name="my-suite",
        dataset="digits",
        models=(SuiteModel(name="cnn", title="CNN"),),
        threat_models=(ThreatModel(norm="linf", epsilon=0.2),),
        attacks=(attack,),
        samples=4,
    )
)
"""

DETECTOR = """
from genrobust.selective import Evidence, register_evidence


class Brightness(Evidence):
    def scores(self, model, x, y, *, references, class_scores):
        return x.mean((1, 2, 3))


register_evidence("brightness", Brightness())
"""


COMPOSITION = """
from genrobust import Purified
from genrobust.zoo import register_composition


@register_composition("guarded-mlp", parts=("comdefend", "mlp"))
def guarded_mlp(comdefend, mlp):
    return Purified(comdefend.purifier, mlp)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the stranger works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


needs_bench = pytest.mark.skipif(find_spec("foolbox") is None, reason="foolbox is not installed")


@pytest.mark.slow
def test_a_model_is_trained_saved_loaded_wrapped_benched_and_reported(here: Path) -> None:
    plugin = str(write(here / "mine.py", GAUSSIAN))
    run("train", "gaussian", "--plugin", plugin, "--evaluate", "100", "--accelerator", "cpu")
    card = json.loads((here / "checkpoints/gaussian-digits/card.json").read_text())
    assert card["clean_accuracy"]["value"] > 0.5
    assert card["recipe"] == "genrobust train gaussian --dataset digits --plugin mine.py --seed 0"
    model = read_model(here / "checkpoints/gaussian-digits/model.safetensors")
    assert type(model).__name__ == "Gaussian"
    images, labels = genrobust.load_dataset("digits", "test").batch(slice(4))
    for adapter in available().values():
        adapter.load().wrap(model)
    assert genrobust.verify(model, images, labels, images, norm="linf", epsilon=0.1) is not None
    if find_spec("foolbox") is None:
        pytest.skip("foolbox is not installed")
    suite = str(write(here / "my-suite.toml", SUITE))
    run("bench", suite, "--plugin", plugin, "--out", "run")
    assert "Gaussian" in (here / "run/report.html").read_text()
    rows = genrobust.evaluate(model, "quick", samples=1, show_progress=False).rows
    assert rows.num_rows > 0


@needs_bench
@pytest.mark.slow
def test_a_registered_model_works_in_other_processes(here: Path) -> None:
    plugin = str(write(here / "mine.py", GAUSSIAN))
    run("train", "gaussian", "--plugin", plugin, "--evaluate", "20", "--accelerator", "cpu")
    suite = str(write(here / "my-suite.toml", SUITE))
    run("bench", suite, "--plugin", plugin, "--out", "run", "--jobs", "2", "--samples", "4")
    assert (here / "run/report.html").is_file()


@pytest.mark.slow
@needs_bench
def test_without_weights_the_command_names_the_plugin(here: Path) -> None:
    load_plugin(write(here / "mine.py", GAUSSIAN))
    suite = str(write(here / "my-suite.toml", SUITE))
    with pytest.raises(
        ValueError, match=r"`genrobust train gaussian --dataset digits --plugin mine\.py --out"
    ):
        run("bench", suite)


@pytest.mark.slow
def test_images_of_another_shape_train_and_evaluate_one_of_our_models(here: Path) -> None:
    plugin = str(write(here / "colours.py", COLOURS))
    run(
        *("train", "mlp", "--dataset", "colours", "--plugin", plugin, "--accelerator", "cpu"),
        *("--epochs", "3", "--batch-size", "32", "--learning-rate", "0.001"),
    )
    model = read_model(here / "checkpoints/mlp-colours/model.safetensors")
    assert (model.input_shape, model.num_classes) == ((3, 20, 20), 7)
    if find_spec("foolbox") is None:
        pytest.skip("foolbox is not installed")
    found = genrobust.evaluate(model, "quick", dataset="colours", samples=1, show_progress=False)
    assert found.results.suite.dataset == "colours"
    assert not found.results.failures


@pytest.mark.slow
def test_a_file_of_images_needs_no_code(here: Path) -> None:
    module = load_plugin(write(here / "colours.py", COLOURS))
    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}"], arrays[f"y_{split}"] = module.colours(split)
    np.savez(here / "mine.npz", class_names=np.array(list("abcdefg")), **arrays)
    run(
        *("train", "mlp", "--dataset", "mine", "--data-root", str(here), "--accelerator", "cpu"),
        *("--epochs", "1", "--batch-size", "32"),
    )
    assert (here / "checkpoints/mlp-mine/model.safetensors").is_file()


@needs_bench
def test_a_suite_is_a_file(here: Path) -> None:
    output = run("bench", str(write(here / "mine.py", PYTHON_SUITE)), "--out", "run", "--samples", "2")
    assert "CNN" in output
    with pytest.raises(ValueError, match="to register a suite by `register_suite`, but got none"):
        run("bench", str(write(here / "empty.py", "")))
    with pytest.raises(ValueError, match=r"`genrobust bench quick --models gaussian --plugin"):
        run("bench", str(write(here / "model.py", GAUSSIAN)))


@needs_bench
def test_a_model_that_is_made_of_ours_needs_no_weights(here: Path) -> None:
    plugin = str(write(here / "mine.py", COMPOSITION))
    suite = str(write(here / "my-suite.toml", SUITE.replace('"gaussian"', '"guarded-mlp"')))
    output = run("bench", suite, "--plugin", plugin, "--out", "run")
    assert "Gaussian" in output
    assert "weights of guarded-mlp, purifier" in (here / "run/report.html").read_text()
    listed = run("models", "--plugin", plugin)
    assert "guarded-mlp is registered by" in listed
    assert "put together from comdefend and mlp" in " ".join(listed.split())


def test_a_detector_of_ones_own(here: Path) -> None:
    load_plugin(write(here / "mine.py", DETECTOR))
    load_plugin(write(here / "model.py", GAUSSIAN))
    from genrobust.selective import SelectiveClassifier, calibrate_detector, read_detectors, save_detectors

    model = MODELS.get("gaussian").build(dataset_info("digits"))
    x, y = genrobust.load_dataset("digits", "train").batch(slice(200))
    detector = calibrate_detector("brightness", model, x, y, false_positive_rate=0.1)
    save_detectors({"brightness": detector}, here / "detectors.json")
    assert read_detectors(here / "detectors.json")["brightness"] == detector
    selective = SelectiveClassifier(model, [detector])
    assert selective.predict(x).rejected.float().mean() == pytest.approx(0.1, abs=0.02)
    assert selective.predict(torch.ones(1, 1, 28, 28)).rejected.all()


def test_everything_is_in_one_file_outside_the_package(here: Path) -> None:
    module = load_plugin(write(here / "mine.py", GAUSSIAN + COLOURS + DETECTOR))
    assert module.__name__ in sys.modules
    assert Path(str(module.__file__)).parent == here.resolve()
    assert MODELS.get("gaussian").build(dataset_info("colours")).input_shape == (3, 20, 20)
