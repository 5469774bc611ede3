"""What happens in one cell: attack a batch, re-score what came back, and make rows of it."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..adapters.registry import Crafted
from ..adapters.verification import NO_PREDICTION, fresh_variant
from ..classifier import Classifier, GenerativeClassifier
from ..data import ImageDataset
from .cells import Cell, derived_seed
from .scoring import rescore
from .suites import CLEAN, Suite
from .toolkits import craft

__all__ = ["Experiment", "choose_samples", "execute"]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What all cells of a run have in common.

    Attributes:
        suite: What is run.
        dataset: The test split.
        samples: Indices of the attacked images.
        seed: Of the run; the cells' own seeds are derived from it.
    """

    suite: Suite
    dataset: ImageDataset
    samples: Int[np.ndarray, " samples"]
    seed: int

    def batch(self, number: int) -> Int[np.ndarray, " batch"]:
        """Give the samples of one batch."""
        size = self.suite.batch_size
        return self.samples[number * size : (number + 1) * size]

    def images(
        self, indices: Int[np.ndarray, " batch"], model: Classifier
    ) -> tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]:
        """Give images and labels where the model is."""
        device = next(model.parameters()).device
        images, labels = self.dataset.batch(torch.from_numpy(indices))
        return images.to(device), labels.to(device)


def choose_samples(dataset: ImageDataset, count: int, *, seed: int) -> Int[np.ndarray, " count"]:
    """Choose test images at random, the same number of every class as far as possible.

    Images that are chosen for one `count` are also chosen for a larger one.

    Raises:
        ValueError: If `count` is below 1 or above the number of images.
    """
    if not 1 <= count <= len(dataset):
        raise ValueError(f"Expected `samples` in 1..{len(dataset)}, but got {count}")
    order = np.random.default_rng(seed).permutation(len(dataset))
    labels = dataset.labels.numpy()[order]
    rank = np.zeros_like(labels)
    for label in np.unique(labels):
        members = labels == label
        rank[members] = np.arange(members.sum())
    return order[np.argsort(rank, kind="stable")[:count]]


def execute(
    cell: Cell,
    experiment: Experiment,
    model: Classifier,
    *,
    clean_predictions: Int[np.ndarray, " batch"] | None = None,
) -> dict[str, Any]:
    """Compute one cell.

    Args:
        cell: Which one.
        experiment: What it is part of.
        model: The model, with the budget that verdicts are made with.
        clean_predictions: What the clean cell of the same model and batch found; None for that cell itself.

    Returns:
        The columns of `cells.SCHEMA`.
    """
    started = time.monotonic()
    suite, seed = experiment.suite, derived_seed(experiment.seed, cell.key)
    attack = None if cell.attack == CLEAN else suite.attack(cell.attack)
    samples = experiment.batch(cell.batch)
    images, labels = experiment.images(samples, model)
    crafted = _attack(cell, experiment, model, images, labels, seed=seed)
    verdicts = rescore(
        _judge(experiment, model, seed=seed),
        images,
        labels,
        crafted,
        norm=attack.norm if attack else "l2",
        epsilon=cell.epsilon if attack else 0.0,
        overshoots=suite.overshoots,
    )
    count, predictions = len(samples), verdicts.prediction
    return {
        "suite": [suite.name] * count,
        "model": [cell.model] * count,
        "attack": [cell.attack] * count,
        "norm": [attack.norm if attack else None] * count,
        "epsilon": [cell.epsilon] * count,
        "sample": samples,
        "label": labels.cpu().numpy(),
        "clean_prediction": predictions if clean_predictions is None else clean_predictions,
        "prediction": [None if p == NO_PREDICTION else int(p) for p in predictions],
        "rejected": verdicts.rejected,
        "claimed": verdicts.claimed,
        "valid": verdicts.valid,
        "success": verdicts.success,
        "distance_l2": verdicts.distance_l2,
        "distance_linf": verdicts.distance_linf,
        "overshoot": verdicts.overshoot,
        "seconds": [(time.monotonic() - started) / count] * count,
        "seed": [seed] * count,
    }


def _attack(
    cell: Cell,
    experiment: Experiment,
    model: Classifier,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    seed: int,
) -> Crafted:
    if cell.attack == CLEAN:
        return Crafted(images, torch.zeros_like(labels, dtype=torch.bool))
    suite = experiment.suite
    attack, pool = suite.attack(cell.attack), None
    if isinstance(model, GenerativeClassifier):
        model = model.with_inference(**suite.attack_inference)
    if attack.start_from_images:
        count = min(suite.starting_images, len(experiment.dataset))
        indices = choose_samples(
            experiment.dataset, count, seed=derived_seed(experiment.seed, "starting images")
        )
        pool = experiment.images(indices, model)
    eot = attack.eot if suite.model(cell.model).randomized else 1
    return craft(attack, model, images, labels, epsilon=cell.epsilon, seed=seed, eot=eot, pool=pool)


def _judge(experiment: Experiment, model: Classifier, *, seed: int) -> Classifier:
    # One codebook for all verdicts of a run, so that it is decoded once. 2 + keeps it from being the attacks'
    # own, whose seed is 0 unless somebody chose it.
    codebook_seed = 2 + derived_seed(experiment.seed, "verdict codebook")
    return fresh_variant(model, seed=derived_seed(seed, "verdict"), codebook_seed=codebook_seed)
