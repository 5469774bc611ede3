"""Training by a recipe, up to weights and card, for `genrobust train`."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

from .._files import sha256_of, sweep, write_json
from .._settings import digest
from ..capabilities import Defended, Tempered, Trainable
from ..contract import Classifier
from ..data import ImageDataset, dataset_info, load_dataset
from ..randomness import isolated_rng
from ..selective import save_detectors
from ..zoo import list_models, load_model
from ..zoo.registered import Half, Recipe, model_with_recipe
from ..zoo.weight_files import CARD, WEIGHTS, read_model, save_model
from .criterion import accuracy
from .loop import TrainingConfig, TrainingResult, fit
from .pairs import adversarial_pairs

__all__ = ["half_of", "train_recipe"]

DETECTORS = "detectors.json"
TEST_SEED = 0  # seed of the test images that a card's accuracy is measured on, if not on all


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
    """Trains a model by its recipe, and writes its weights and card into `folder`.

    Args:
        name: The model, such as "eabs".
        dataset: The data set, such as "mnist".
        folder: Folder of checkpoint, weights, card and, for likelihood models, detectors; the same call
            resumes.
        root: Folder of `<dataset>.npz`.
        initial: Weights to start from, in place of the recipe's; for a purifier, the classifier's weights.
        overrides: Fields of `TrainingConfig` that replace the recipe's.
        accelerator: The accelerator of Lightning Fabric.
        devices: Number of processes; above 1 they share the batch (distributed data parallel).
        test_images: Number of test images, of every class, that measure the card's accuracy; 0 takes all.
        show_progress: Whether to show a progress bar.

    Returns:
        The card, or None in all processes but the first.

    Raises:
        ValueError: If the model, data set or an override is unknown, the model has no recipe, the initial
            weights do not fit, or there are fewer images than the recipe's detectors or `test_images` ask
            for.
    """
    entry, info = model_with_recipe(name), dataset_info(dataset, root=root)
    plan = entry.recipe(info)
    sweep(folder)
    config = TrainingConfig(**{**plan.training, **(overrides or {})})
    with isolated_rng(config.seed):
        model = entry.build(info)
    started_from = _load_initial(model, plan.initial, dataset, initial)
    # Each phase of Algorithm 1 leaves the other's parameters unused.
    several_phases = isinstance(model, Trainable) and len(model.phases) > 1
    strategy = DDPStrategy(find_unused_parameters=several_phases) if devices > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=config.precision)
    test = load_dataset(dataset, "test", root=root)
    test = test.stratified(test_images, seed=TEST_SEED) if test_images else test
    training = _training_images(plan, load_dataset(dataset, "train", root=root), config)
    if isinstance(model, Defended) and plan.pairs is not None:
        training = adversarial_pairs(
            model.bare(), training, plan.pairs, folder=folder.parent, show_progress=show_progress
        )
    source = {"recipe": name, "initial": started_from}
    result = fit(
        model,
        training,
        config=config,
        folder=folder,
        fabric=fabric,
        source=source,
        show_progress=show_progress,
    )
    if not fabric.is_global_zero:
        return None
    (folder / CARD).unlink(missing_ok=True)  # a kill must not leave it beside weights that it is not of
    save_model(model, folder / WEIGHTS)
    if plan.detectors is not None:
        save_detectors(plan.detectors(model, training.split_validation()[0]), folder / DETECTORS)
    card = _card(name, model, config, result, test)
    card["weights_sha256"] = sha256_of(folder / WEIGHTS)
    card["recipe"] = shlex.join([*shlex.split(card["recipe"]), *_options(overrides or {}, initial)])
    card["initial"] = plan.initial if initial is None else str(initial)
    card["initial_sha256"] = started_from
    if plan.detectors is not None:
        card["detectors_sha256"] = sha256_of(folder / DETECTORS)
    if plan.labels_per_class is not None:
        card["labels_per_class"] = plan.labels_per_class
    if plan.half is not None:
        card["half"] = plan.half
    if isinstance(model, Defended):
        bare = accuracy(model.bare(), test)
        card["unpurified_clean_accuracy"] = {"value": bare, "images": card["clean_accuracy"]["images"]}
        card["pairs"] = None if plan.pairs is None else asdict(plan.pairs)
    write_json(folder / CARD, card)
    return {**card, "folder": str(folder)}


def _training_images(plan: Recipe, training: ImageDataset, config: TrainingConfig) -> ImageDataset:
    """Returns the images and labels that a recipe lets training see, if they suffice for its detectors."""
    if plan.half is not None:
        training = half_of(training, plan.half)
    if plan.labels_per_class is not None:
        generator = torch.Generator().manual_seed(config.seed)
        training = training.hide_labels(plan.labels_per_class, generator=generator)
    learned = training.split_validation()[0].labelled()
    counts = learned.labels.bincount(minlength=training.num_classes)
    rarest = int(counts.argmin())
    if counts[rarest] < plan.images_per_class:
        raise ValueError(
            f"Expected at least {plan.images_per_class} images of every class in {training.name!r} for its "
            f"detectors, without those held out for validation, but class {training.class_names[rarest]!r} "
            f"has {counts[rarest]}"
        )
    return training


def half_of(dataset: ImageDataset, half: Half) -> ImageDataset:
    """Returns one of two halves of a data set; the division is random and always the same."""
    # Not in the order of `held_out_images`, which would put everything that is held out into the first half.
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(1))
    middle = len(dataset) // 2
    return dataset.subset(order[:middle] if half == "first" else order[middle:])


def _options(overrides: Mapping[str, Any], initial: Path | None) -> list[str]:
    """Returns the options of `genrobust train` that stand for overrides, without the seed's."""
    named = {**overrides, **({} if initial is None else {"initial": initial})}
    return [
        word
        for option in ("epochs", "batch_size", "learning_rate", "precision", "initial")
        if option in named
        for word in (f"--{option.replace('_', '-')}", str(named[option]))
    ]


def _load_initial(model: Classifier, name: str | None, dataset: str, path: Path | None) -> str | None:
    """Loads the weights that a training starts from, if there are some, and returns their hash."""
    if path is not None:
        source = read_model(path)
    elif name is None:
        return None
    elif (name, dataset) in list_models():
        source = load_model(name, dataset=dataset)
    else:
        raise ValueError(
            f"Expected `initial`: this recipe starts from a {name} for {dataset}, and none is shipped; "
            f"train one with `genrobust train {name} --dataset {dataset}`"
        )
    target = model.bare() if isinstance(model, Defended) else model
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise ValueError(f"Expected initial weights of the same architecture: {error}") from error
    return digest(source.state_dict())


def _card(
    name: str, model: Classifier, config: TrainingConfig, result: TrainingResult, test: ImageDataset
) -> dict[str, Any]:
    return {
        "model": name,
        "dataset": test.name,
        "recipe": f"{model_with_recipe(name).train_command(test.name)} --seed {config.seed}",
        "training": dict(vars(config)),
        "seed": config.seed,
        "epochs": config.epochs,
        "best_epoch": result.best_epoch,
        "hours": round(result.seconds / 3600, 4),
        "parameters": sum(math.prod(parameter.shape) for parameter in model.parameters()),
        "selected_by": result.selected_by,
        "validation_score": result.validation_score,
        "deciding_score": {"value": result.deciding_score, "images": result.deciding_images},
        "clean_accuracy": {"value": accuracy(model, test), "images": len(test)},
        "inference": dict(model.inference) or None,
        "temperature": float(model.temperature) if isinstance(model, Tempered) else None,
        "versions": {"genrobust": version("genrobust"), "torch": torch.__version__},
        "license": "Apache-2.0",
    }
