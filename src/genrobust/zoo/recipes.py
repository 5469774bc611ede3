"""How each model is trained: the recipes of the shipped weights, and the papers' for every other data set."""

from dataclasses import dataclass, replace
from typing import Any

from ..classifier import Classifier
from ..data import dataset_info
from ..models.abs import ABS, ABSConfig
from ..models.baselines import CNN, Adversary, CNNConfig
from ..models.eabs import EABS, EABSConfig
from ..nets import Architecture, architecture

__all__ = ["MODEL_NAMES", "Recipe", "build_model", "recipe"]

_VARIANTS: dict[str, dict[str, Any]] = {
    f"{prefix}abs": {
        "adversarial": "a" in prefix,
        "discriminative": "d" in prefix,
        "variational": "v" in prefix,
    }
    for prefix in ("a-", "d-", "v-", "ad-", "av-", "dv-")
}
# E-ABS's layers without its extensions: the baseline that the E-ABS paper calls ABS.
_VARIANTS["base-abs"] = {"adversarial": False, "discriminative": False, "variational": False}

MODEL_NAMES = tuple(sorted(["abs", "adv-l2", "adv-linf", "cnn", "eabs", *_VARIANTS]))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training's outcome beside model and data set.

    Attributes:
        training: Fields of `training.TrainingConfig`.
        initial: Name of the model whose weights the training starts from, if any.
    """

    training: dict[str, Any]
    initial: str | None = None


def recipe(model: str, dataset: str) -> Recipe:
    """Give the recipe of a model on a data set: ours where weights are shipped, otherwise the paper's.

    Raises:
        ValueError: If there is no such model or data set.
    """
    _check_name(model)
    if (model, dataset) in _SHIPPED:
        return Recipe(training=dict(_SHIPPED[model, dataset]))
    grey = dataset_info(dataset).input_shape[0] == 1
    noise_std = 0.2 if grey else 0.01
    if model in (
        "adv-linf",
        "adv-l2",
    ):  # E-ABS section 4.3: retrained from the CNN, on adversarial images only
        training = {"epochs": 200, "learning_rate": 1e-4, "halve_every": 200, "noise_std": 0.0}
        return Recipe(training=training, initial="cnn")
    epochs = 800 if dataset == "svhn" and model != "cnn" else 500
    return Recipe(training={"epochs": epochs, "noise_std": noise_std})


def build_model(model: str, dataset: str) -> Classifier:
    """Build an untrained model, sized for a data set.

    Raises:
        ValueError: If there is no such model or data set.
    """
    _check_name(model)
    info = dataset_info(dataset)
    arch = _architecture(dataset)
    if model == "abs":
        if info.input_shape == architecture("abs-mnist").input_shape:
            arch = architecture("abs-mnist")
        return ABS(ABSConfig(num_classes=info.num_classes, architecture=arch))
    if model == "cnn":
        return CNN(CNNConfig(num_classes=info.num_classes, architecture=arch))
    if model in ("adv-linf", "adv-l2"):
        adversary = _adversary(model, grey=info.input_shape[0] == 1)
        return CNN(CNNConfig(num_classes=info.num_classes, architecture=arch, adversary=adversary))
    config = EABSConfig(num_classes=info.num_classes, architecture=arch)
    return EABS(replace(config, **_VARIANTS.get(model, {})))


def _architecture(dataset: str) -> Architecture:
    shape = dataset_info(dataset).input_shape
    if shape == (1, 28, 28):
        return architecture("eabs-mnist")
    arch = architecture("eabs-supertraffic" if dataset == "gtsrb" else "eabs-svhn")
    last = replace(arch.decoder[-1], channels=shape[0])
    return replace(arch, input_shape=shape, decoder=(*arch.decoder[:-1], last))


def _adversary(model: str, *, grey: bool) -> Adversary:
    """Give the threat model of E-ABS Tables 1 to 4: 0.3 (MNIST) or 8/255 in the maximum norm, 1.5 in L2."""
    if model == "adv-l2":
        return Adversary(norm="l2", epsilon=1.5)
    return Adversary(norm="linf", epsilon=0.3 if grey else 8 / 255)


def _check_name(model: str) -> None:
    if model not in MODEL_NAMES:
        raise ValueError(f"Expected a model out of {list(MODEL_NAMES)}, but got {model!r}")


_SHIPPED: dict[tuple[str, str], dict[str, Any]] = {
    ("abs", "digits"): {"epochs": 200, "batch_size": 320, "halve_every": 60},
    ("abs", "mnist"): {"epochs": 20, "batch_size": 640, "halve_every": 12},
    ("cnn", "digits"): {"epochs": 100, "batch_size": 64, "halve_every": 30},
    ("cnn", "mnist"): {"epochs": 20, "batch_size": 256, "halve_every": 6},
    ("eabs", "digits"): {"epochs": 150, "batch_size": 64, "halve_every": 60, "precision": "bf16-mixed"},
    ("eabs", "mnist"): {"epochs": 16, "batch_size": 128, "halve_every": 7, "precision": "bf16-mixed"},
}
