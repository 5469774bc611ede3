"""Models by reference: where their weights are, and what makes them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genrobust import load_dataset, load_model
from genrobust.benchmarks.evaluate import for_dataset
from genrobust.benchmarks.run.cells import Cell
from genrobust.benchmarks.run.execution import execute
from genrobust.benchmarks.run.references import missing_weights, reference
from genrobust.benchmarks.run.tasks import Experiment
from genrobust.benchmarks.suites.files import load_suite
from genrobust.data import ImageDataset
from genrobust.zoo import save_model


def test_a_composition_is_there_with_all_its_parts(tmp_path: Path) -> None:
    table = load_suite("zhang-table6")
    composed = reference(table, "comdefend-vade", folder=tmp_path)
    assert [part.entry.name for part in composed.parts] == ["comdefend", "vade"]
    assert not composed.there
    folder = tmp_path / "comdefend-fashion_mnist"
    train = f"genrobust train comdefend --dataset fashion_mnist --out {folder}"
    assert missing_weights([composed]) == {"comdefend-vade": train}
    here = replace(composed, dataset="digits")
    assert here.there
    x = torch.rand((3, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    shipped = here.load()(x)
    trained = load_model("comdefend", dataset="digits")
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.zero_()
    save_model(trained, tmp_path / "comdefend-digits" / "model.safetensors")
    assert not torch.equal(here.load()(x), shipped)


def test_what_adversarial_training_makes_is_named_by_the_tables(tmp_path: Path) -> None:
    table = load_suite("zhang-table7")
    sources = [reference(table, model.name, folder=tmp_path) for model in table.models]
    commands = missing_weights(sources)
    assert {"adv-fgsm", "adv-vade", "comdefend-vade"} <= commands.keys()
    assert (
        commands["adv-vade"] == f"genrobust train adv-vade --dataset cifar2 --out {tmp_path}/adv-vade-cifar2"
    )


@pytest.mark.slow
def test_examples_are_transferred_to_a_composition(digits: ImageDataset) -> None:
    suite = for_dataset(load_suite("zhang-table5"), digits)
    attack = replace(suite.attack("fgsm"), against="cnn")
    suite = replace(suite, attacks=(attack,), batch_size=6)
    models = {name: reference(suite, name).load() for name in ("cnn", "vade", "comdefend-vade")}
    experiment = Experiment(suite=suite, dataset=digits, samples=np.arange(6), seed=0)
    x, _ = digits.batch(slice(6))
    predictions = {}
    for name in ("vade", "comdefend-vade"):
        cell = Cell(model=name, attack="fgsm", epsilon=0.2, batch=0)
        clean = models[name](x).argmax(1).numpy()
        columns = execute(experiment.task(cell, clean_predictions=clean), models).columns
        assert columns["target"] == ["cnn"] * 6
        predictions[name] = (columns["prediction"], columns["distance_linf"].tolist())
    assert predictions["vade"][1] == predictions["comdefend-vade"][1]


def test_a_leftover_folder_replaces_no_shipped_weights_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blank = load_model("mlp", dataset="digits")
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    for name in ("mlp", "mine"):
        save_model(blank, Path("checkpoints") / f"{name}-digits" / "model.safetensors")
    suite = for_dataset(load_suite("quick"), load_dataset("digits", "test"))
    x = torch.rand((3, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    unasked = reference(suite, "mlp")
    assert unasked.origin == "shipped"
    assert torch.equal(unasked.load()(x), load_model("mlp", dataset="digits")(x))
    asked = reference(suite, "mlp", folder=Path("checkpoints"))
    assert asked.origin == "from checkpoints/mlp-digits/model.safetensors"
    assert torch.equal(asked.load()(x), blank(x))
    elsewhere = replace(unasked, dataset="svhn")
    assert (elsewhere.shipped, elsewhere.there) == (False, False)
