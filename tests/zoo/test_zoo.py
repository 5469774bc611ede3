"""The shipped models are what their cards say."""

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genrobust import Classifier, GenerativeClassifier, list_models, load_dataset, load_model, strongest
from genrobust.data import DatasetInfo, ImageDataset, dataset_info
from genrobust.models import CNN, Adversary, VaDEClassifier
from genrobust.models._amortized import SamplingBudget
from genrobust.models._latent import LatentClassifier
from genrobust.purifiers.base import Purified
from genrobust.selective import calibrate_detector, read_detectors
from genrobust.training import building, calibration
from genrobust.training.building import half_of, train_recipe
from genrobust.training.calibration import detector_images
from genrobust.training.criterion import accuracy, validation_score
from genrobust.training.loop import TrainingConfig
from genrobust.training.pairs import PairsConfig
from genrobust.zoo import load_detectors, model_card, read_model
from genrobust.zoo.registered import (
    MODELS,
    Composition,
    Half,
    Recipe,
    RegisteredModel,
    model_with_recipe,
    register_composition,
)

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
    "diffusion",
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
WITH_RECIPE = [name for name, model in MODELS.items().items() if isinstance(model, RegisteredModel)]


def recipe(name: str, dataset: str) -> Recipe:
    return model_with_recipe(name).recipe(dataset_info(dataset))


def build_model(name: str, dataset: str) -> Classifier:
    return model_with_recipe(name).build(dataset_info(dataset))


def test_every_promised_model_is_shipped() -> None:
    assert list(list_models()) == sorted(SHIPPED)


def test_the_weights_fit_a_wheel_of_60_megabytes() -> None:
    sizes = [len(path.read_bytes()) for path in (files("genrobust.zoo") / "weights").iterdir()]
    assert sum(sizes) <= 60_000_000


@pytest.mark.parametrize(("name", "dataset"), SHIPPED)
def test_card_tells_how_the_weights_were_made(name: str, dataset: str) -> None:
    card = model_card(name, dataset=dataset)
    weights = files("genrobust.zoo") / "weights" / f"{name}-{dataset}.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == card["weights_sha256"]
    assert (card["model"], card["dataset"]) == (name, dataset)
    planned = vars(TrainingConfig(**{**recipe(name, dataset).training, "seed": card["seed"]}))
    decided = {"decide_images", "decide_every"}  # settings that came after the oldest cards
    shared = {name: value for name, value in planned.items() if name in card["training"]}
    assert {name: card["training"][name] for name in shared} == shared
    assert planned.keys() - shared.keys() <= decided
    assert card["training"].keys() - shared.keys() <= {"validation_fraction"}
    assert 1 <= card["best_epoch"] <= card["epochs"]
    assert card["selected_by"] in ("accuracy", "robust accuracy")
    assert 0 < card["validation_score"] <= 1
    model = load_model(name, dataset=dataset)
    assert model.config == build_model(name, dataset).config
    trained = build_model(name, dataset)
    assert card["parameters"] == sum(parameter.numel() for parameter in trained.parameters())


@pytest.mark.parametrize(("name", "dataset"), SHIPPED)
def test_card_tells_in_which_precision_the_weights_decide_as_they_were_trained(
    name: str, dataset: str
) -> None:
    card = model_card(name, dataset=dataset)
    path = files("genrobust.zoo") / "weights" / f"{name}-{dataset}.safetensors"
    weights = load_file(str(path))
    (dtype,) = {value.dtype for value in weights.values() if value.ndim >= 2}
    if dtype == torch.float32:
        assert "stored" not in card
        return
    stored = card["stored"]
    assert dtype == {"float16": torch.float16, "bfloat16": torch.bfloat16}[stored["precision"]]
    assert stored["agreement_with_float32"]["value"] >= 0.999
    assert stored["agreement_with_float32"]["images"] >= min(1000, card["clean_accuracy"]["images"])
    assert all(
        value.dtype not in (torch.float16, torch.bfloat16) for value in weights.values() if value.ndim < 2
    )
    assert card["clean_accuracy"]["precision"] in (stored["precision"], "float32")
    loaded = load_model(name, dataset=dataset).state_dict().values()
    assert {value.dtype for value in loaded if value.is_floating_point()} == {torch.float32}


def test_adversarial_training_ran_past_its_best_clean_epoch() -> None:
    for name in ("adv-l2", "adv-linf"):
        card = model_card(name, dataset="fashion_mnist")
        assert (card["selected_by"], card["best_epoch"] > 1) == ("robust accuracy", True)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("cnn", 0.97),
        pytest.param("abs", 0.93, marks=pytest.mark.slow),
        pytest.param("eabs", 0.96, marks=pytest.mark.slow),
        ("deep-bayes", 0.97),
        ("diffusion", 0.95),
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
    model, test = load_model(name, dataset="digits"), load_dataset("digits", "test")
    if isinstance(model, LatentClassifier):
        model, test = model.with_inference(steps=15), test.subset(slice(100))
    if name == "diffusion":
        model, test = model.with_inference(levels=8), test.subset(slice(100))
    assert accuracy(model, test) >= least


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
        pytest.param("abs", 0.95, marks=pytest.mark.slow),
        ("deep-bayes-mlp", 0.96),
        pytest.param("diffusion", 0.92, marks=pytest.mark.slow),
        pytest.param("eabs", 0.97, marks=pytest.mark.slow),
        ("gmvae-semi", 0.97),
        ("vade", 0.97),
        *((name, 0.94) for name in ("comdefend", *PURIFIERS)),
    ]
    + [("adv-l2", 0.98), ("adv-linf", 0.96)]
    + [(name, 0.97) for name in ("bnn", "cnn", "deep-bayes", "gmvae", "magnet-cnn", "mlp", "pool-cnn")]
    + [("gmvae-variable", 0.97)],
)
def test_clean_accuracy_on_mnist(name: str, least: float) -> None:
    model, test = load_model(name, dataset="mnist"), load_dataset("mnist", "test").subset(slice(200))
    if isinstance(model, LatentClassifier):
        model = model.with_inference(candidates=min(1000, model.budget.candidates), steps=10)
        test = test.subset(slice(60))
    if name == "deep-bayes":
        test = test.subset(slice(100))
    if name == "diffusion":
        model, test = model.with_inference(levels=16), test.subset(slice(100))
    assert accuracy(model, test) >= least


@pytest.mark.realdata("fashion_mnist")
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("adv-l2", 0.8),
        ("adv-linf", 0.8),
        pytest.param("base-abs", 0.82, marks=pytest.mark.slow),
        ("cnn", 0.88),
        pytest.param("eabs", 0.84, marks=pytest.mark.slow),
        ("vade", 0.89),
    ],
)
def test_clean_accuracy_on_fashion_mnist(name: str, least: float) -> None:
    model = load_model(name, dataset="fashion_mnist")
    test = load_dataset("fashion_mnist", "test").subset(slice(400))
    if isinstance(model, LatentClassifier):
        model = model.with_inference(candidates=min(1000, model.budget.candidates), steps=10)
        test = test.subset(slice(200))
    assert accuracy(model, test) >= least


def test_shipped_detectors_flag_noise_and_few_clean_images() -> None:
    model = load_model("deep-bayes", dataset="digits")
    assert isinstance(model, GenerativeClassifier)
    detectors = load_detectors("deep-bayes", dataset="digits")
    assert sorted(detectors) == ["distance", "kl", "logit", "marginal", "mean-distance"]
    x, y = load_dataset("digits", "test").batch(slice(100))
    noise = torch.rand((20, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    for name, detector in detectors.items():
        clean = float(detector.flags(model, x, y).float().mean())
        assert clean < (0.7 if name == "mean-distance" else 0.12), name
        if name != "kl":  # which sees predictions alone
            assert detector.flags(model, noise, model.predict(noise).labels).all()


@pytest.mark.parametrize(
    ("name", "dataset"),
    [(name, "digits") for name in ("abs", "deep-bayes", "diffusion", "gmvae", "mad-vae-combined", "vade")]
    + [
        pytest.param(name, dataset, marks=pytest.mark.slow)
        for name, dataset in (("eabs", "digits"), ("abs", "mnist"), ("base-abs", "fashion_mnist"))
    ],
)
def test_every_gradient_that_a_shipped_model_names_can_be_taken(name: str, dataset: str) -> None:
    """An attack on every gradient met one through an encoder that the file leaves out."""
    model = load_model(name, dataset=dataset)
    if isinstance(model, LatentClassifier):
        model = model.with_inference(candidates=min(20, model.budget.candidates), steps=1)
    if name == "diffusion":
        model = model.with_inference(levels=2)
    x = torch.rand((1, *model.input_shape), generator=torch.Generator().manual_seed(0))
    for gradient in model.gradients:
        leaf = x.clone().requires_grad_()
        [slope] = torch.autograd.grad(model.with_gradient(gradient)(leaf)[0, 0], leaf)
        assert slope.isfinite().all(), gradient


@pytest.mark.slow
def test_the_strongest_ensemble_attacks_a_model_without_its_encoders() -> None:
    images, labels = load_dataset("digits", "test").batch(slice(2))
    model = load_model("abs", dataset="digits").with_inference(candidates=100, steps=3)
    found = strongest(model, images, labels, norm="linf", epsilon=0.3)
    assert found.success.all()


def test_models_without_detectors() -> None:
    with pytest.raises(ValueError, match="a model with detectors, but 'cnn' on 'digits' has none"):
        load_detectors("cnn", dataset="digits")
    with pytest.raises(ValueError, match="a shipped model"):
        load_detectors("resnet", dataset="digits")


def test_training_by_a_recipe_leaves_detectors_beside_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "DETECTOR_IMAGES", 400)
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
    learned, validation = load_dataset("digits", "train").split_validation()
    x, y = detector_images(learned).batch(slice(None))
    assert len(x) == 400
    assert card["deciding_score"]["images"] == len(validation) == 142
    again = calibrate_detector("distance", model, x, y)  # type: ignore[arg-type]
    assert read_detectors(tmp_path / "detectors.json")["distance"] == again


@pytest.mark.parametrize("name", ["mlp", "pool-cnn", "gmvae"])
def test_the_validation_split_is_what_shipped_weights_held_out(name: str) -> None:
    validation = load_dataset("digits", "validation")
    score = model_card(name, dataset="digits")["validation_score"]
    assert validation_score(load_model(name, dataset="digits"), validation) == pytest.approx(score, abs=1e-9)


def test_halves_share_no_image_and_lose_none() -> None:
    whole = load_dataset("digits", "train")
    first, second = half_of(whole, "first"), half_of(whole, "second")
    assert abs(len(first) - len(second)) <= 1
    assert torch.equal(first.images, half_of(whole, "first").images)
    joined = torch.cat([first.images, second.images]).flatten(1)
    assert torch.equal(joined.sum(1).sort().values, whole.images.flatten(1).sum(1).sort().values)
    for half in (first, second):
        learned, held = half.split_validation()
        assert 0.07 < len(held) / len(learned) < 0.16


def test_the_transfer_protocol_trains_a_surrogate_on_the_half_that_its_targets_never_see() -> None:
    plans = {name: recipe(f"zhang-{name}", "mnist") for name in ("surrogate", "cnn", "vade")}
    assert [plan.half for plan in plans.values()] == ["first", "second", "second"]
    assert len({plan.training["seed"] for plan in plans.values()}) == 3
    assert plans["vade"].training == {**recipe("vade", "mnist").training, "seed": 2}
    both = [build_model(name, "mnist") for name in ("zhang-surrogate", "zhang-cnn")]
    assert all(isinstance(model, CNN) for model in both)


def test_a_recipe_of_a_half_trains_on_it_with_its_own_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def spy(dataset: ImageDataset, half: Half) -> ImageDataset:
        part = half_of(dataset, half).subset(slice(0, 100))
        seen.append(len(half_of(dataset, half)))
        return part

    monkeypatch.setattr(building, "half_of", spy)
    card = train_recipe(
        "zhang-cnn",
        "digits",
        folder=tmp_path,
        overrides={"epochs": 1, "batch_size": 50},
        accelerator="cpu",
        test_images=20,
        show_progress=False,
    )
    assert card is not None
    assert (card["half"], card["seed"]) == ("second", 1)
    assert seen == [len(load_dataset("digits", "train")) - len(load_dataset("digits", "train")) // 2]


def test_unknown_model_names_the_shipped_ones() -> None:
    with pytest.raises(ValueError, match=r"eabs on digits.*but got 'resnet' on 'digits'"):
        load_model("resnet", dataset="digits")


@pytest.mark.parametrize("name", WITH_RECIPE)
@pytest.mark.parametrize(
    "dataset",
    ["mnist", *(pytest.param(name, marks=pytest.mark.slow) for name in ("svhn", "gtsrb", "coil20"))],
)
def test_every_recipe_builds(name: str, dataset: str) -> None:
    if dataset != "mnist" and name in ("adv-vade", "zhang-vade"):
        pytest.skip("a VaDE of other training has the network of vade")
    model = build_model(name, dataset)
    TrainingConfig(**recipe(name, dataset).training)
    if isinstance(model, LatentClassifier):
        # BFGS measures the curvature first.
        model = model.with_inference(candidates=5, steps=1, method="adam", expectation_draws=1)
    assert model(torch.rand(1, *model.input_shape)).shape == (1, model.num_classes)


@pytest.mark.parametrize("name", sorted({*WITH_RECIPE} - {"adv-vade", "substitute-b", "zhang-vade"}))
def test_every_recipe_builds_for_images_of_another_shape(name: str) -> None:
    info = DatasetInfo(name="mine", input_shape=(3, 20, 20), class_names=tuple("abcdefg"))
    model = model_with_recipe(name).build(info)
    TrainingConfig(**model_with_recipe(name).recipe(info).training)
    if isinstance(model, LatentClassifier):
        model = model.with_inference(candidates=5, steps=1, method="adam")
    assert model(torch.rand(1, 3, 20, 20)).shape == (1, 7)


def test_layers_that_images_are_too_small_for_are_named() -> None:
    info = DatasetInfo(name="mine", input_shape=(3, 20, 20), class_names=tuple("abcdefg"))
    with pytest.raises(ValueError, match="`input_shape` that the convolutions fit"):
        model_with_recipe("substitute-b").build(info)


def test_a_builder_of_other_sizes_is_found_out() -> None:
    entry = RegisteredModel(
        name="fixed",
        builder=lambda _: build_model("mlp", "digits"),
        recipe=model_with_recipe("mlp").recipe,
    )
    with pytest.raises(ValueError, match=r"'fixed' to be built for images of shape \(3, 32, 32\)"):
        entry.build(dataset_info("svhn"))


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
        assert isinstance(model, CNN | VaDEClassifier)
        return model.adversary

    radii = {"mnist": 0.3, "fashion_mnist": 0.1, "gtsrb10": 8 / 255, "svhn": 8 / 255}
    for dataset, epsilon in radii.items():
        steps = 7 if dataset == "fashion_mnist" else 10
        assert adversary("adv-linf", dataset) == Adversary(norm="linf", epsilon=epsilon, steps=steps)
        assert adversary("adv-l2", dataset) == Adversary(norm="l2", epsilon=1.5, steps=steps)
        assert adversary("adv-fgsm", dataset) == Adversary.fgsm(epsilon=epsilon)
        assert adversary("adv-vade", dataset) == Adversary.fgsm(epsilon=epsilon, loss="margin")
    assert adversary("cnn", "fashion_mnist") is adversary("vade", "mnist") is None
    assert recipe("adv-fgsm", "mnist").initial == "cnn"
    assert recipe("adv-vade", "mnist").training == recipe("vade", "mnist").training


def test_the_papers_schedules_of_purifiers() -> None:
    proximity = recipe("mad-vae-proximity", "fashion_mnist")
    config = TrainingConfig(**proximity.training)
    assert (config.epochs, config.batch_size, config.learning_rate, config.noise_std) == (5, 512, 1e-3, 0)
    assert recipe("mad-vae-combined", "fashion_mnist").training["epochs"] == 10
    assert (proximity.initial, proximity.pairs) == ("magnet-cnn", PairsConfig())
    assert recipe("defense-vae", "fashion_mnist") == recipe("mad-vae-vanilla", "fashion_mnist")
    assert recipe("comdefend", "mnist").pairs is None
    assert recipe("magnet-cnn", "mnist").initial is None


def test_unknown_names_in_recipes() -> None:
    with pytest.raises(ValueError, match="'eabs2'"):
        recipe("eabs2", "mnist")
    with pytest.raises(ValueError, match="mnist"):
        build_model("eabs", "mnits")


# Models that are made of others.


def test_comdefend_before_vade_is_both_shipped_models() -> None:
    composed = load_model("comdefend-vade", dataset="digits")
    assert isinstance(composed, Purified)
    comdefend, vade = (load_model(name, dataset="digits") for name in ("comdefend", "vade"))
    assert isinstance(comdefend, Purified)
    x, y = load_dataset("digits", "test").batch(slice(40))
    assert torch.equal(composed(x), vade(comdefend.purifier(x)))
    assert composed.settings()["classifier"] == vade.settings()
    assert composed.settings()["purifier"] == comdefend.purifier.settings()
    assert float((composed(x).argmax(1) == y).float().mean()) > 0.85
    assert ("comdefend-vade", "digits") not in list_models()


def test_defences_around_the_diffusion_classifier_have_its_weights() -> None:
    x, y = load_dataset("digits", "test").batch(slice(12))
    diffusion = load_model("diffusion", dataset="digits")
    for name in ("rdc", "ndc", "diffpure"):
        composed = load_model(name, dataset="digits")
        own = {key: value for key, value in composed.state_dict().items() if "denoiser" in key}
        assert own
        for key, value in own.items():
            assert torch.equal(value, diffusion.state_dict()["denoiser." + key.rpartition("denoiser.")[2]])
        small = composed.with_inference(levels=2) if name == "rdc" else composed
        assert float((small.predict(x[:6]).labels == y[:6]).float().mean()) > 0.6, name


def test_binary_abs_has_the_weights_of_abs() -> None:
    model = load_model("binary-abs", dataset="digits").with_inference(candidates=200, steps=2)
    assert model.config.binary
    x, y = load_dataset("digits", "test").batch(slice(30))
    plain = load_model("abs", dataset="digits").with_inference(candidates=200, steps=2)
    assert torch.equal(model(x), plain((x >= 0.5).float()))
    assert float((model(x).argmax(1) == y).float().mean()) > 0.85


def test_a_composition_without_a_part_names_the_part() -> None:
    with pytest.raises(ValueError, match=r"a shipped model .* but got 'comdefend' on 'fashion_mnist'"):
        load_model("comdefend-vade", dataset="fashion_mnist")


def test_a_composition_has_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'comdefend-vade' is put together from comdefend and vade: train"):
        train_recipe("comdefend-vade", "digits", folder=tmp_path, show_progress=False)


@pytest.mark.usefixtures("registrations_taken_back")
def test_what_is_no_composition() -> None:
    with pytest.raises(ValueError, match="`parts` of 'mine' to be names of other models, but got"):
        register_composition("mine", parts=())
    with pytest.raises(ValueError, match=r"`parts` of 'mine' .* but got \('mine', 'cnn'\)"):
        register_composition("mine", parts=("mine", "cnn"))
    with pytest.raises(ValueError, match="'cnn' is taken"):
        register_composition("cnn", parts=("mlp",))(lambda mlp: mlp)
    register_composition("nothing", parts=("mlp",))(lambda _: None)  # type: ignore[arg-type,return-value]
    assert isinstance(MODELS.get("nothing"), Composition)
    with pytest.raises(ValueError, match="'nothing' to be put together as a Classifier, but got NoneType"):
        load_model("nothing", dataset="digits")
