"""From a recipe to weights and card: what `genrobust train` runs."""

import hashlib
import math
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

from ..classifier import Classifier, GenerativeClassifier
from ..data import ImageDataset, load_dataset
from ..models.deep_bayes import DeepBayes
from ..models.gmvae import GMVAE
from ..models.vade import VaDEClassifier
from ..purification import Purified
from ..randomness import isolated_rng
from ..selective import Detector, calibrate_detector, class_scores_of, save_detectors, three_sigma_detectors
from ..storage import write_json
from ..training import Trainable, TrainingConfig, TrainingResult, accuracy, fit
from . import list_models, load_model
from .pairs import adversarial_pairs
from .recipes import build_model, recipe
from .serialization import read_model, save_model

__all__ = ["calibrate_detectors", "calibrate_thresholds", "train_recipe"]

WEIGHTS, CARD, DETECTORS = "model.safetensors", "card.json", "detectors.json"
CALIBRATION_IMAGES = 5000
IMAGES_PER_LATENT = 10  # that make the covariance of a class worth measuring


def train_recipe(
    name: str,
    dataset: str,
    *,
    folder: Path,
    root: Path | None = None,
    initial: Path | None = None,
    overrides: dict[str, Any] | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    test_images: int = 0,
    show_progress: bool = True,
) -> dict[str, Any] | None:
    """Train a model by its recipe, and write its weights and card into `folder`.

    Args:
        name: The model, such as "eabs".
        dataset: The data set, such as "mnist".
        folder: Of checkpoint, weights, card and, of the likelihood models, detectors; the same call resumes.
        root: Folder of `<dataset>.npz`.
        initial: Weights to start from, in place of the recipe's; those of the classifier, where a purifier
            is trained for one.
        overrides: Fields of `TrainingConfig` in place of the recipe's.
        accelerator: Of Lightning Fabric.
        devices: Processes; above 1 the batch is shared out (distributed data parallel).
        test_images: Test images that measure the card's accuracy; 0 takes all.
        show_progress: Show a progress bar.

    Returns:
        The card, or None in all processes but the first.

    Raises:
        ValueError: If the model, data set or an override is unknown, or the initial weights do not fit.
    """
    plan = recipe(name, dataset)
    config = TrainingConfig(**{**plan.training, **(overrides or {})})
    with isolated_rng(config.seed):
        model = build_model(name, dataset)
    _load_initial(model, plan.initial, dataset, initial)
    # Each phase of Algorithm 1 leaves the other's parameters unused.
    several_phases = isinstance(model, Trainable) and len(model.phases) > 1
    strategy = DDPStrategy(find_unused_parameters=several_phases) if devices > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=config.precision)
    training = load_dataset(dataset, "train", root=root)
    if plan.labels_per_class is not None:
        generator = torch.Generator().manual_seed(config.seed)
        training = training.hide_labels(plan.labels_per_class, generator=generator)
    if isinstance(model, Purified) and plan.pairs is not None:
        training = adversarial_pairs(
            model.classifier, training, plan.pairs, folder=folder.parent, show_progress=show_progress
        )
    result = fit(model, training, config=config, folder=folder, fabric=fabric, show_progress=show_progress)
    if not fabric.is_global_zero:
        return None
    save_model(model, folder / WEIGHTS)
    if isinstance(model, DeepBayes | VaDEClassifier):
        save_detectors(calibrate_detectors(model, training), folder / DETECTORS)
    if isinstance(model, GMVAE):
        save_detectors(calibrate_thresholds(model, training), folder / DETECTORS)
    test = load_dataset(dataset, "test", root=root)
    card = _card(name, model, config, result, test.subset(slice(test_images or None)))
    card["weights_sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    card["initial"] = plan.initial
    if plan.labels_per_class is not None:
        card["labels_per_class"] = plan.labels_per_class
    if isinstance(model, Purified):
        bare = accuracy(model.classifier, test.subset(slice(test_images or None)))
        card["unpurified_clean_accuracy"] = {"value": bare, "images": card["clean_accuracy"]["images"]}
        card["pairs"] = None if plan.pairs is None else asdict(plan.pairs)
    write_json(folder / CARD, card)
    return {**card, "folder": str(folder)}


def calibrate_detectors(model: GenerativeClassifier, training: ImageDataset) -> dict[str, Detector]:
    """Calibrate every kind of detector on training images: at 5 % false positives, and at the mean distance.

    Returns:
        `"distance"`, `"marginal"`, and per class `"logit"` and `"kl"` (Li et al. 2019), at 5 %;
        `"mean-distance"` (Li 2018, section 3).
    """
    device = next(model.parameters()).device
    images, labels = (
        part.to(device) for part in training.subset(slice(CALIBRATION_IMAGES)).batch(slice(None))
    )
    scores = class_scores_of(model, images)
    detectors = {
        "distance": calibrate_detector("distance", model, images, labels),
        "marginal": calibrate_detector("marginal", model, images, labels, class_scores=scores),
        "logit": calibrate_detector("logit", model, images, labels, per_class=True, class_scores=scores),
        "kl": calibrate_detector("kl", model, images, labels, per_class=True, class_scores=scores),
    }
    mean = calibrate_detector("distance", model, images, labels, false_positive_rate=None)
    return {**detectors, "mean-distance": mean}


def calibrate_thresholds(model: GMVAE, training: ImageDataset) -> dict[str, Detector]:
    """Give both thresholds of Ghosh et al. 2019 from training images; see `three_sigma_detectors`.

    An image counts for the class that the model gives it, as it will when it is judged, labelled or not.
    Where classes are too small for a covariance each, they share one.
    """
    device = next(model.parameters()).device
    images = training.subset(slice(CALIBRATION_IMAGES)).batch(slice(None))[0].to(device)
    with torch.no_grad():
        labels = torch.cat([model(part).argmax(1) for part in images.split(256)])
    smallest = int(labels.bincount(minlength=model.num_classes).min())
    per_class = smallest >= IMAGES_PER_LATENT * model.means.shape[1]
    return three_sigma_detectors(model, images, labels, per_class=per_class)


def _load_initial(model: Classifier, name: str | None, dataset: str, path: Path | None) -> None:
    if path is not None:
        source = read_model(path)
    elif name is None:
        return
    elif (name, dataset) in list_models():
        source = load_model(name, dataset=dataset)
    else:
        raise ValueError(
            f"Expected `initial`: this recipe starts from a {name} for {dataset}, and none is shipped; "
            f"train one with `genrobust train {name} --dataset {dataset}`"
        )
    target = model.classifier if isinstance(model, Purified) else model
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise ValueError(f"Expected initial weights of the same architecture: {error}") from error


def _card(
    name: str, model: Classifier, config: TrainingConfig, result: TrainingResult, test: ImageDataset
) -> dict[str, Any]:
    budget, temperature = getattr(model, "budget", None), getattr(model, "temperature", None)
    return {
        "model": name,
        "dataset": test.name,
        "recipe": f"genrobust train {name} --dataset {test.name} --seed {config.seed}",
        "training": dict(vars(config)),
        "seed": config.seed,
        "epochs": config.epochs,
        "best_epoch": result.best_epoch,
        "hours": round(result.seconds / 3600, 4),
        "parameters": sum(math.prod(parameter.shape) for parameter in model.parameters()),
        "validation_accuracy": result.validation_accuracy,
        "clean_accuracy": {"value": accuracy(model, test), "images": len(test)},
        "inference": None if budget is None else dict(vars(budget)),
        "temperature": None if temperature is None else float(temperature),
        "versions": {"genrobust": version("genrobust"), "torch": torch.__version__},
        "license": "Apache-2.0",
    }
