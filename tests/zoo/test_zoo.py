"""The shipped models are what their cards say."""

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from genrobust import GenerativeClassifier, list_models, load_dataset, load_model
from genrobust.models.amortized import SamplingBudget
from genrobust.models.baselines import CNN, Adversary
from genrobust.models.latent import LatentClassifier
from genrobust.purification import Purified
from genrobust.selective import calibrate_detector, read_detectors
from genrobust.training import TrainingConfig, accuracy
from genrobust.zoo import building, load_detectors, model_card, read_model
from genrobust.zoo.building import train_recipe
from genrobust.zoo.pairs import PairsConfig
from genrobust.zoo.recipes import MODEL_NAMES, build_model, recipe

# Lightning's own: it asks numpy for reprs and warns about the few loader workers that this loop does not use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*")

PURIFIERS = ["mad-vae-classification", "mad-vae-combined", "mad-vae-proximity", "mad-vae-vanilla"]
BASELINES = ["bnn", "mlp", "pool-cnn"]
BOTH = [
    "abs",
    "cnn",
    "comdefend",
    "deep-bayes",
    "deep-bayes-mlp",
    "eabs",
    "gmvae",
    "gmvae-semi",
    "magnet-cnn",
    "vade",
    *BASELINES,
    *PURIFIERS,
]
SHIPPED = [(name, dataset) for name in BOTH for dataset in ("digits", "mnist")]
SHIPPED += [("adv-l2", "mnist"), ("adv-linf", "mnist"), ("gmvae", "coil20"), ("gmvae-variable", "mnist")]
SHIPPED += [(name, dataset) for name in ("cnn", "vade") for dataset in ("cifar2", "fashion_mnist")]
SHIPPED += [(name, "fashion_mnist") for name in ("adv-l2", "adv-linf", "base-abs", "eabs")]
SHIPPED += [(f"substitute-{letter}", "mnist") for letter in "abcde"]


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


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("cnn", 0.97),
        ("abs", 0.93),
        ("eabs", 0.96),
        ("deep-bayes", 0.97),
        ("mlp", 0.93),
        ("vade", 0.95),
        ("bnn", 0.95),
        ("pool-cnn", 0.96),
        ("deep-bayes-mlp", 0.96),
        ("gmvae", 0.97),
        ("gmvae-semi", 0.93),
    ],
)
def test_clean_accuracy_on_digits(name: str, least: float) -> None:
    model = load_model(name, dataset="digits")
    if isinstance(model, LatentClassifier):
        model = model.with_inference(steps=15)
    assert accuracy(model, load_dataset("digits", "test")) >= least


@pytest.mark.parametrize("name", [*PURIFIERS, "comdefend"])
def test_clean_images_survive_the_purifier(name: str) -> None:
    model = load_model(name, dataset="digits")
    assert isinstance(model, Purified)
    bare = load_model("magnet-cnn", dataset="digits")
    weights, own = bare.state_dict(), model.classifier.state_dict()
    assert all(torch.equal(weights[key], own[key]) for key in weights)
    test = load_dataset("digits", "test")
    card = model_card(name, dataset="digits")
    purified, unpurified = accuracy(model, test), accuracy(bare, test)
    assert purified == pytest.approx(card["clean_accuracy"]["value"], abs=0.01)
    assert unpurified == pytest.approx(card["unpurified_clean_accuracy"]["value"], abs=0.01)
    assert purified >= unpurified - 0.02
    assert (card["pairs"] is None) == (name == "comdefend")


@pytest.mark.realdata("mnist")
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("abs", 0.95),
        ("deep-bayes-mlp", 0.96),
        ("eabs", 0.97),
        ("gmvae-semi", 0.97),
        ("vade", 0.97),
        *((name, 0.94) for name in ("comdefend", *PURIFIERS)),
    ]
    + [("adv-l2", 0.98), ("adv-linf", 0.96)]
    + [(name, 0.97) for name in ("bnn", "cnn", "deep-bayes", "gmvae", "magnet-cnn", "mlp", "pool-cnn")]
    + [("gmvae-variable", 0.97)],
)
def test_clean_accuracy_on_mnist(name: str, least: float) -> None:
    model = load_model(name, dataset="mnist")
    if isinstance(model, LatentClassifier):
        model = model.with_inference(candidates=min(2000, model.budget.candidates), steps=10)
    assert accuracy(model, load_dataset("mnist", "test").subset(slice(400))) >= least


@pytest.mark.realdata("fashion_mnist")
@pytest.mark.parametrize(
    ("name", "least"),
    [("adv-l2", 0.8), ("adv-linf", 0.8), ("base-abs", 0.82), ("cnn", 0.88), ("eabs", 0.84), ("vade", 0.89)],
)
def test_clean_accuracy_on_fashion_mnist(name: str, least: float) -> None:
    model = load_model(name, dataset="fashion_mnist")
    if isinstance(model, LatentClassifier):
        model = model.with_inference(candidates=min(2000, model.budget.candidates), steps=10)
    assert accuracy(model, load_dataset("fashion_mnist", "test").subset(slice(400))) >= least


def test_shipped_detectors_flag_noise_and_few_clean_images() -> None:
    model = load_model("deep-bayes", dataset="digits")
    assert isinstance(model, GenerativeClassifier)
    detectors = load_detectors("deep-bayes", dataset="digits")
    assert sorted(detectors) == ["distance", "kl", "logit", "marginal", "mean-distance"]
    x, y = load_dataset("digits", "test").batch(slice(None))
    noise = torch.rand((20, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    for name, detector in detectors.items():
        clean = float(detector.flags(model, x, y).float().mean())
        assert clean < (0.7 if name == "mean-distance" else 0.12), name
        if name != "kl":  # which sees predictions alone
            assert detector.flags(model, noise, model.predict(noise).labels).all()


def test_models_without_detectors() -> None:
    with pytest.raises(ValueError, match="a model with detectors, but 'cnn' on 'digits' has none"):
        load_detectors("cnn", dataset="digits")
    with pytest.raises(ValueError, match="a shipped model"):
        load_detectors("resnet", dataset="digits")


def test_training_by_a_recipe_leaves_detectors_beside_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "CALIBRATION_IMAGES", 400)
    card = train_recipe(
        "deep-bayes-mlp",
        "digits",
        folder=tmp_path,
        overrides={"epochs": 1, "batch_size": 512},
        accelerator="cpu",
        test_images=20,
        show_progress=False,
    )
    assert card is not None
    assert card["inference"] == vars(SamplingBudget())
    assert card["temperature"] is None
    model = read_model(tmp_path / "model.safetensors")
    x, y = load_dataset("digits", "train").batch(slice(400))
    again = calibrate_detector("distance", model, x, y)  # type: ignore[arg-type]
    assert read_detectors(tmp_path / "detectors.json")["distance"] == again


def test_unknown_model_names_the_shipped_ones() -> None:
    with pytest.raises(ValueError, match=r"eabs on digits.*but got 'resnet' on 'digits'"):
        load_model("resnet", dataset="digits")


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("dataset", ["mnist", "svhn", "gtsrb", "coil20"])
def test_every_recipe_builds(name: str, dataset: str) -> None:
    model = build_model(name, dataset)
    TrainingConfig(**recipe(name, dataset).training)
    if isinstance(model, LatentClassifier):
        model = model.with_inference(
            candidates=5, steps=1, method="adam"
        )  # BFGS measures the curvature first
    assert model(torch.rand(1, *model.input_shape)).shape == (1, model.num_classes)


def test_the_papers_schedules() -> None:
    assert recipe("eabs", "svhn").training["epochs"] == 800
    assert recipe("cnn", "svhn").training["epochs"] == 500
    assert recipe("d-abs", "fashion_mnist").training["noise_std"] == 0.2
    assert recipe("eabs", "gtsrb").training["noise_std"] == 0.01
    adversarial = recipe("adv-linf", "mnist")
    assert (adversarial.initial, adversarial.training["learning_rate"]) == ("cnn", 1e-4)
    deep_bayes = TrainingConfig(**recipe("deep-bayes-gbz", "mnist").training)
    assert (deep_bayes.epochs, deep_bayes.batch_size, deep_bayes.learning_rate) == (100, 50, 1e-4)
    assert deep_bayes.noise_std == 0


def test_adversarial_training_is_for_the_threat_model_of_the_data_set() -> None:
    def adversary(name: str, dataset: str) -> Adversary | None:
        model = build_model(name, dataset)
        assert isinstance(model, CNN)
        return model.config.adversary

    radii = {"mnist": 0.3, "fashion_mnist": 0.1, "gtsrb10": 8 / 255, "svhn": 8 / 255}
    for dataset, epsilon in radii.items():
        assert adversary("adv-linf", dataset) == Adversary(norm="linf", epsilon=epsilon)
        assert adversary("adv-l2", dataset) == Adversary(norm="l2", epsilon=1.5)
    assert adversary("cnn", "fashion_mnist") is None


def test_the_papers_schedules_of_purifiers() -> None:
    proximity = recipe("mad-vae-proximity", "fashion_mnist")
    config = TrainingConfig(**proximity.training)
    assert (config.epochs, config.batch_size, config.learning_rate, config.noise_std) == (5, 512, 1e-3, 0)
    assert recipe("mad-vae-combined", "fashion_mnist").training["epochs"] == 10
    assert (proximity.initial, proximity.pairs) == ("magnet-cnn", PairsConfig())
    assert recipe("comdefend", "mnist").pairs is None
    assert recipe("magnet-cnn", "mnist").initial is None


def test_unknown_names_in_recipes() -> None:
    with pytest.raises(ValueError, match="'eabs2'"):
        recipe("eabs2", "mnist")
    with pytest.raises(ValueError, match="mnist"):
        build_model("eabs", "mnits")
