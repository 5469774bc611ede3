"""The shipped models are what their cards say."""

import hashlib
from importlib.resources import files

import pytest
import torch

from genrobust import GenerativeClassifier, list_models, load_dataset, load_model
from genrobust.training import TrainingConfig, accuracy
from genrobust.zoo import model_card
from genrobust.zoo.recipes import MODEL_NAMES, build_model, recipe

SHIPPED = [(name, dataset) for name in ("abs", "cnn", "eabs") for dataset in ("digits", "mnist")]


def test_every_promised_model_is_shipped() -> None:
    assert list(list_models()) == sorted(SHIPPED)


@pytest.mark.parametrize(("name", "dataset"), SHIPPED)
def test_card_tells_how_the_weights_were_made(name: str, dataset: str) -> None:
    card = model_card(name, dataset=dataset)
    weights = files("genrobust.zoo") / "weights" / f"{name}-{dataset}.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == card["weights_sha256"]
    assert (card["model"], card["dataset"]) == (name, dataset)
    planned = vars(TrainingConfig(**{**recipe(name, dataset).training, "seed": card["seed"]}))
    assert card["training"] == planned
    assert 1 <= card["best_epoch"] <= card["epochs"]
    model = load_model(name, dataset=dataset)
    assert model.config == build_model(name, dataset).config
    assert card["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "least"), [("cnn", 0.97), ("abs", 0.93), ("eabs", 0.96)])
def test_clean_accuracy_on_digits(name: str, least: float) -> None:
    model = load_model(name, dataset="digits")
    if isinstance(model, GenerativeClassifier):
        model = model.with_inference(steps=15)
    assert accuracy(model, load_dataset("digits", "test")) >= least


@pytest.mark.realdata("mnist")
@pytest.mark.parametrize(("name", "least"), [("cnn", 0.98), ("abs", 0.95), ("eabs", 0.97)])
def test_clean_accuracy_on_mnist(name: str, least: float) -> None:
    model = load_model(name, dataset="mnist")
    if isinstance(model, GenerativeClassifier):
        model = model.with_inference(candidates=2000, steps=10)
    assert accuracy(model, load_dataset("mnist", "test").subset(slice(400))) >= least


def test_unknown_model_names_the_shipped_ones() -> None:
    with pytest.raises(ValueError, match=r"eabs on digits.*but got 'resnet' on 'digits'"):
        load_model("resnet", dataset="digits")


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("dataset", ["mnist", "svhn", "gtsrb", "coil20"])
def test_every_recipe_builds(name: str, dataset: str) -> None:
    model = build_model(name, dataset)
    TrainingConfig(**recipe(name, dataset).training)
    logits = model.with_inference(candidates=5, steps=1) if isinstance(model, GenerativeClassifier) else model
    assert logits(torch.rand(1, *model.input_shape)).shape == (1, model.num_classes)


def test_the_papers_schedules() -> None:
    assert recipe("eabs", "svhn").training["epochs"] == 800
    assert recipe("cnn", "svhn").training["epochs"] == 500
    assert recipe("eabs", "fashion_mnist").training["noise_std"] == 0.2
    assert recipe("eabs", "gtsrb").training["noise_std"] == 0.01
    adversarial = recipe("adv-linf", "mnist")
    assert (adversarial.initial, adversarial.training["learning_rate"]) == ("cnn", 1e-4)


def test_unknown_names_in_recipes() -> None:
    with pytest.raises(ValueError, match="'eabs2'"):
        recipe("eabs2", "mnist")
    with pytest.raises(ValueError, match="mnist"):
        build_model("eabs", "mnits")
