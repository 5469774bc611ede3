"""Workers outlive the run that started them: what they keep must never decide a later run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import genrobust
from genrobust import Classifier, register_attack
from genrobust.benchmarks.run.attempts import TransferMemory
from genrobust.benchmarks.run.cells import Cell
from genrobust.benchmarks.run.engines import Engine
from genrobust.benchmarks.run.execution import execute
from genrobust.benchmarks.run.references import reference
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.run.tasks import Experiment, Task
from genrobust.benchmarks.suites.model import Attack, Suite, SuiteModel
from genrobust.data import ImageDataset
from genrobust.models import CNN, MLP, MLPConfig
from genrobust.registry import load_plugin
from genrobust.zoo import save_model

pytestmark = [
    pytest.mark.usefixtures("registrations_taken_back"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

PLUGIN = """
import torch
from torch import nn
from genrobust import register_attack


@register_attack("Mover", norm="linf", knowledge="decision")
def {function}(model, x, y, *, epsilon, generator):
    return (x + {share} * epsilon).clamp(0, 1)


class Net(nn.Module):
    def forward(self, x):
        return torch.eye(10)[{answer}] + 0 * x.flatten(1)[:, :10]
"""


@pytest.fixture
def suite(small_suite: Suite) -> Suite:
    mine = SuiteModel(name="mine", title="mine")
    fgsm = replace(small_suite.attack("fgsm"), every_epsilon=False)
    return replace(small_suite, attacks=(fgsm,), models=(*small_suite.models, mine), batch_size=4)


def moved(path: Path, suite: Suite, **filled: Any) -> Mapping[str, Any]:
    """Evaluates the network of a plug-in under the plug-in's attack, in two other processes."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(PLUGIN.format(**filled))
    net = load_plugin(path).Net()
    found = genrobust.evaluate(net, suite, attacks=["Mover"], jobs=2, samples=4, show_progress=False)
    assert not found.results.failures
    (row,) = found.query(
        "select max(distance_linf) as far, min(prediction) as answer from rows where attack = 'Mover'"
    ).to_pylist()
    return dict(row)


@pytest.mark.slow
def test_an_edited_plugin_is_what_runs(tmp_path: Path, suite: Suite) -> None:
    path = tmp_path / "mine.py"
    expected = {"far": pytest.approx(0.2), "answer": 3}
    assert moved(path, suite, function="f", share=1, answer=3) == expected
    # An edit, a renamed function under the old name, and a renamed file.
    expected = {"far": pytest.approx(0.1), "answer": 4}
    assert moved(path, suite, function="f", share=0.5, answer=4) == expected
    expected = {"far": pytest.approx(0.05), "answer": 5}
    assert moved(path, suite, function="g", share=0.25, answer=5) == expected
    path.write_text("")
    load_plugin(path)
    expected = {"far": pytest.approx(0.025), "answer": 6}
    assert moved(tmp_path / "other" / "mine.py", suite, function="g", share=0.125, answer=6) == expected


@pytest.mark.slow
def test_weights_that_were_trained_again_are_what_runs(
    tmp_path: Path, small_suite: Suite, digits: ImageDataset
) -> None:
    fgsm = replace(small_suite.attack("fgsm"), every_epsilon=False)
    suite = replace(
        small_suite, models=(SuiteModel(name="mlp", title="MLP"),), attacks=(fgsm,), baseline="mlp"
    )
    again = reference(suite, "mlp", folder=tmp_path)
    net = MLP(MLPConfig(hidden=(4,)))
    for answer in (2, 5):
        with torch.no_grad():
            for value in net.parameters():
                value.zero_()
            list(net.parameters())[-1][answer] = 1.0
        save_model(net, tmp_path / "mlp-digits" / "model.safetensors")
        for jobs in (1, 2):
            found = run_suite(
                replace(suite, batch_size=2),
                models={"mlp": again},
                dataset=digits,
                out=tmp_path / f"{answer}-{jobs}",
                samples=4,
                engine=Engine(jobs=jobs),
                show_progress=False,
            )
            assert set(found.rows["prediction"].to_pylist()) == {answer}


def task_of(images: ImageDataset, suite: Suite, attack: Attack) -> Task:
    experiment = Experiment(
        suite=replace(suite, attacks=(attack,)), dataset=images, samples=np.arange(4), seed=0
    )
    cell = Cell(model="mine", attack=attack.key, epsilon=0.2, batch=0)
    return experiment.task(cell, clean_predictions=np.zeros(4, dtype=np.int64))


def test_examples_of_other_images_are_not_transferred(suite: Suite, cnn: CNN, digits: ImageDataset) -> None:
    attack = replace(suite.attack("fgsm"), against="cnn", for_models=("mine",))
    others = digits.subset(torch.arange(4, 12))
    memory, models = TransferMemory(), {"cnn": cnn, "mine": cnn}
    execute(task_of(digits, suite, attack), models, memory=memory)
    remembered = execute(task_of(others, suite, attack), models, memory=memory).columns
    alone = execute(task_of(others, suite, attack), models).columns
    assert list(remembered["distance_l2"]) == list(alone["distance_l2"])
    assert max(remembered["distance_linf"]) <= 0.2 * 1.0001


class Fragile(Classifier):
    """Decides as a CNN does, but for another class where no pixel is dark."""

    def __init__(self, cnn: CNN) -> None:
        super().__init__(input_shape=cnn.input_shape, num_classes=cnn.num_classes)
        self.cnn = cnn

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.cnn(x)
        bright = x.flatten(1).amin(1) > 0.1
        return torch.where(bright[:, None], logits.roll(1, 1), logits)


def test_a_claim_that_falls_is_pursued_where_the_source_is_the_model_itself(
    suite: Suite, cnn: CNN, digits: ImageDataset
) -> None:
    @register_attack("Overreach", norm="linf", knowledge="decision")
    def overreach(
        _model: Any, x: torch.Tensor, _y: torch.Tensor, *, epsilon: float, generator: torch.Generator
    ) -> torch.Tensor:
        del generator
        steps = torch.ones(len(x), 1, 1, 1)
        steps[0] = 3 if len(x) > 1 else 1  # out of the ball in the first attempt: the claim falls
        return (x + steps * epsilon).clamp(0, 1)

    attack = Attack(
        key="overreach",
        title="Overreach",
        norm="linf",
        kind="fixed epsilon",
        toolkit="genrobust",
        name="Overreach",
    )
    task = task_of(digits, suite, replace(attack, against="mine"))
    columns = execute(task, {"mine": Fragile(cnn)}, memory=TransferMemory()).columns
    assert list(columns["attempts"]) == [2, 1, 1, 1]
    assert list(columns["fell_first"]) == [True, False, False, False]
    assert max(columns["distance_linf"]) <= 0.2 * 1.0001
