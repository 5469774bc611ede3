"""What happens in one cell: attack a batch, re-score what came back, and make rows of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..adapters.registry import Crafted
from ..adapters.verification import NO_PREDICTION, fresh_variant, without_gradient
from ..classifier import Classifier, GenerativeClassifier
from ..data import ImageDataset
from ..purification import Purified
from ..selective import SelectiveClassifier
from .cells import Cell, derived_seed
from .counting import Calls, counted_calls
from .gallery import make_gallery
from .references import with_gradient
from .scoring import Verdicts, rescore
from .suites import BARE, CLEAN, ENCODER, Attack, Parameter, Suite
from .toolkits import craft, uncounted_calls, uses_gradients

__all__ = ["Experiment", "Outcome", "Task", "TransferMemory", "cheaper", "choose_samples", "execute"]

Array = np.ndarray[Any, Any]
EFFORT = ("candidates", "steps", "expectation_draws", "samples")  # fields of budgets: more is nearer to exact


@dataclass(frozen=True, kw_only=True)
class Task:
    """One cell with all that it takes beside the models, so that any process can compute it.

    Attributes:
        cell: Which one.
        suite: What it is part of.
        seed: Of the run; the cells' own seeds are derived from it.
        samples: Indices of the images in the test split.
        images: The images.
        pool: Images that starting points are chosen from, if the attack asks for them.
        clean_predictions: What the clean cell of the same model and batch found; None for that cell itself.
        keep_examples: Give back every adversarial image.
    """

    cell: Cell
    suite: Suite
    seed: int
    samples: Int[np.ndarray, " batch"]
    images: ImageDataset
    pool: ImageDataset | None = None
    clean_predictions: Int[np.ndarray, " batch"] | None = None
    keep_examples: bool = False

    @property
    def attack(self) -> Attack | None:
        """The attack; None for unperturbed images."""
        return None if self.cell.attack == CLEAN else self.suite.attack(self.cell.attack)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it takes: the judged one, and the one whose examples are transferred."""
        against = self.attack.against if self.attack else None
        others = () if against in (None, BARE, ENCODER, self.cell.model) else (str(against),)
        return (self.cell.model, *others)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished cell gives.

    Attributes:
        columns: Of `cells.SCHEMA`.
        gallery: A few examples as arrays; see `gallery.make_gallery`. None for all but the first batch.
        examples: Every adversarial image, if they are kept.
    """

    columns: Mapping[str, Any]
    gallery: Mapping[str, Array] | None = None
    examples: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What all cells of a run have in common.

    Attributes:
        suite: What is run.
        dataset: The test split.
        samples: Indices of the attacked images.
        seed: Of the run; the cells' own seeds are derived from it.
        keep_examples: Keep every adversarial image.
    """

    suite: Suite
    dataset: ImageDataset = field(repr=False)
    samples: Int[np.ndarray, " samples"]
    seed: int
    keep_examples: bool = False

    def task(self, cell: Cell, *, clean_predictions: Int[np.ndarray, " batch"] | None = None) -> Task:
        """Give one cell with its images.

        Args:
            cell: Which one.
            clean_predictions: What the clean cell of the same model and batch found.
        """
        size = self.suite.batch_size
        samples = self.samples[cell.batch * size : (cell.batch + 1) * size]
        pool = None
        if cell.attack != CLEAN and self.suite.attack(cell.attack).start_from_images:
            count = min(self.suite.starting_images, len(self.dataset))
            seed = derived_seed(self.seed, "starting images")
            pool = self.dataset.subset(torch.from_numpy(choose_samples(self.dataset, count, seed=seed)))
        return Task(
            cell=cell,
            suite=self.suite,
            seed=self.seed,
            samples=samples,
            images=self.dataset.subset(torch.from_numpy(samples)),
            pool=pool,
            clean_predictions=clean_predictions,
            keep_examples=self.keep_examples,
        )


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


@dataclass(frozen=True)
class _Attempt:
    """What an attack gave on a batch, whoever it is judged by."""

    crafted: Crafted
    calls: Calls
    zero_gradient: Array


class TransferMemory:
    """Keeps the last examples that were made against another model.

    The cells that these are transferred to follow one another: each would make them again.
    """

    def __init__(self) -> None:
        self._source: Classifier | None = None
        self._key: tuple[object, ...] = ()
        self._attempt: _Attempt | None = None

    def recall(self, source: Classifier, key: tuple[object, ...]) -> _Attempt | None:
        """Give what the same attack made of the same images against the same model."""
        return self._attempt if source is self._source and key == self._key else None

    def keep(self, source: Classifier, key: tuple[object, ...], attempt: _Attempt) -> None:
        """Remember it until the next."""
        self._source, self._key, self._attempt = source, key, attempt


def execute(task: Task, models: Mapping[str, Classifier], *, memory: TransferMemory | None = None) -> Outcome:
    """Compute one cell.

    Args:
        task: The cell with its images.
        models: At least the task's models, each with the budget that verdicts are made with.
        memory: Of examples that are transferred to several models.
    """
    started = time.monotonic()
    cell, attack, model = task.cell, task.attack, models[task.cell.model]
    seed = derived_seed(task.seed, cell.key)
    images, labels = _on_device(task.images, model)
    made = _Attempt(
        Crafted(images, torch.zeros_like(labels, dtype=torch.bool)),
        Calls(),
        np.zeros(len(images), dtype=bool),
    )
    if attack is not None:
        source = models[task.models[-1]]
        transferred = attack.against not in (None, BARE, ENCODER)
        key = (task.seed, attack, cell.epsilon, task.samples.tolist(), task.suite.attack_inference)
        recalled = memory.recall(source, key) if memory and transferred else None
        made = recalled or _attempt(task, attack, models, images, labels)
        if memory and transferred and recalled is None:
            memory.keep(source, key, made)
    judge = _judge(task, model, seed=seed)
    verdicts = rescore(
        judge,
        images,
        labels,
        made.crafted,
        norm=attack.norm if attack else "l2",
        epsilon=cell.epsilon if attack else 0.0,
        overshoots=task.suite.overshoots,
    )
    return Outcome(
        columns=_columns(task, labels, verdicts, made, seed=seed, started=started),
        gallery=make_gallery(judge, task.samples, images, labels, verdicts, task.images.class_names)
        if attack is not None and cell.batch == 0
        else None,
        examples=verdicts.images.cpu().numpy() if attack is not None and task.keep_examples else None,
    )


def _columns(
    task: Task,
    labels: Int[Tensor, " batch"],
    verdicts: Verdicts,
    made: _Attempt,
    *,
    seed: int,
    started: float,
) -> dict[str, Any]:
    cell, attack, count, predictions = task.cell, task.attack, len(task.samples), verdicts.prediction
    constant = {
        "suite": task.suite.name,
        "model": cell.model,
        "attack": cell.attack,
        "toolkit": attack.toolkit if attack else None,
        "target": attack.against if attack else None,
        "norm": attack.norm if attack else None,
        "epsilon": cell.epsilon,
        "queries": made.calls.queries,
        "gradients": made.calls.gradients,
        "seconds": (time.monotonic() - started) / count,
        "seed": seed,
    }
    return {name: [value] * count for name, value in constant.items()} | {
        "sample": task.samples,
        "label": labels.cpu().numpy(),
        "clean_prediction": predictions if task.clean_predictions is None else task.clean_predictions,
        "prediction": [None if p == NO_PREDICTION else int(p) for p in predictions],
        "rejected": verdicts.rejected,
        "claimed": verdicts.claimed,
        "valid": verdicts.valid,
        "success": verdicts.success,
        "unstable": verdicts.unstable,
        "zero_gradient": made.zero_gradient,
        **{f"distance_{norm}": values for norm, values in verdicts.distances.items()},
        "overshoot": verdicts.overshoot,
    }


def _attempt(
    task: Task, attack: Attack, models: Mapping[str, Classifier], images: Tensor, labels: Tensor
) -> _Attempt:
    attacked = _attacked(task, attack, models)
    with counted_calls() as counted:
        crafted = _craft(task, attack, attacked, images, labels)
    uncounted = uncounted_calls(attack, num_classes=attacked.num_classes, images=len(images))
    vanished = np.zeros(len(images), dtype=bool)
    if uses_gradients(attack):
        vanished = _vanished(attacked, images, labels)
    return _Attempt(crafted, (counted + uncounted).per_image(len(images)), vanished)


def _on_device(
    dataset: ImageDataset, model: Classifier
) -> tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]:
    device = next(model.parameters()).device
    images, labels = dataset.batch(slice(None))
    return images.to(device), labels.to(device)


def _attacked(task: Task, attack: Attack, models: Mapping[str, Classifier]) -> Classifier:
    """Give what the attack is shown: the model with the attack's budget, or another whose examples serve."""
    model = models[task.models[-1]]
    if attack.against == BARE:
        if isinstance(model, Purified):
            model = model.classifier
        elif isinstance(model, SelectiveClassifier):
            model = model.model
        else:
            raise ValueError(
                f"Expected a purified or selective model, but {task.cell.model!r} has no bare one"
            )
    if attack.against == ENCODER:
        inner = model.model if isinstance(model, SelectiveClassifier) else model
        view = getattr(inner, "encoder_view", None)
        if view is None:
            raise ValueError(
                f"Expected a model that decides by its encoder, but {task.cell.model!r} does not"
            )
        encoder: Classifier = view()
        return encoder
    if isinstance(model, GenerativeClassifier):
        model = cheaper(model, task.suite.attack_inference)
    return model if attack.gradient is None else with_gradient(model, attack.gradient, name=task.models[-1])


def cheaper(model: GenerativeClassifier, budget: Mapping[str, Parameter]) -> GenerativeClassifier:
    """Give a variant for attacks: the fields that the model's budget has, and no more effort than its own.

    Where a verdict starts from the encoder alone, an attack that searched candidates too would be shown
    another model, and another gradient.
    """
    inner = model.model if isinstance(model, SelectiveClassifier) else model
    own = getattr(inner, "budget", None)
    if own is None:
        return model.with_inference(**budget)
    shared = {name: value for name, value in budget.items() if hasattr(own, name)}
    limits = {name: min(shared[name], getattr(own, name)) for name in EFFORT if name in shared}
    return model.with_inference(**(shared | limits))


def _craft(
    task: Task,
    attack: Attack,
    attacked: Classifier,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
) -> Crafted:
    # The examples of another model are the same for every model that they are transferred to.
    source = task.models[-1]
    seed = derived_seed(task.seed, Cell(**{**vars(task.cell), "model": source}).key)
    pool = None if task.pool is None else _on_device(task.pool, attacked)
    eot = attack.eot if attacked.randomized else 1
    return craft(attack, attacked, images, labels, epsilon=task.cell.epsilon, seed=seed, eot=eot, pool=pool)


def _vanished(model: Classifier, images: Tensor, labels: Tensor) -> Array:
    """Say at which images the attacked model's gradient vanishes."""
    gone: Array = (
        without_gradient(
            model, images, lambda logits: nn.functional.cross_entropy(logits, labels, reduction="sum")
        )
        .cpu()
        .numpy()
    )
    return gone


def _judge(task: Task, model: Classifier, *, seed: int) -> Classifier:
    # One codebook for all verdicts of a run, so that it is decoded once. 2 + keeps it from being the attacks'
    # own, whose seed is 0 unless somebody chose it.
    codebook_seed = 2 + derived_seed(task.seed, "verdict codebook")
    return fresh_variant(model, seed=derived_seed(seed, "verdict"), codebook_seed=codebook_seed)
