"""One training loop for every model; what differs per system is its `training_loss`."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.fabric import Fabric
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from .classifier import Classifier, GenerativeClassifier
from .data import UNLABELLED, ImageDataset
from .randomness import isolated_rng
from .storage import write_atomically

__all__ = ["Trainable", "TrainingConfig", "TrainingResult", "accuracy", "calibrate_temperature", "fit"]

CHECKPOINT = "checkpoint.pt"
EVALUATION_BATCH = 256
CALIBRATION_IMAGES = 1000
LABELLED_SHARE = 0.25  # of every batch, where most images have no label
# The loop only compares epochs: the encoder's proposal and few candidates do it at a fraction of the cost.
VALIDATION_BUDGET: dict[str, Any] = {"candidates": 500, "encoder_proposal": True, "steps": 0}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained; the defaults are E-ABS section 4.3.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Images per step, over all classes and devices.
        learning_rate: Of Adam.
        halve_every: Epochs after which the learning rate is halved.
        noise_std: Of the Gaussian noise that is added to the images: 0.2 for MNIST and Fashion-MNIST, 0.01
            for the colour sets.
        validation_fraction: Share of the training set that chooses the best epoch.
        seed: Of the split, the initial weights, the order, the noise and dropout.
        precision: Of Lightning Fabric, such as "32-true" or "bf16-mixed".
    """

    epochs: int = 500
    batch_size: int = 512
    learning_rate: float = 1e-3
    halve_every: int = 200
    noise_std: float = 0.2
    validation_fraction: float = 0.1
    seed: int = 0
    precision: Any = "32-true"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.halve_every < 1:
            raise ValueError(
                "Expected `epochs` and `halve_every` of at least 1 and `batch_size` of at least 2, "
                f"but got {self.epochs}, {self.halve_every} and {self.batch_size}"
            )
        if self.learning_rate <= 0 or self.noise_std < 0 or not 0 < self.validation_fraction < 1:
            raise ValueError(
                "Expected `learning_rate` above 0, `noise_std` of at least 0 and `validation_fraction` in "
                f"(0, 1), but got {self.learning_rate}, {self.noise_std} and {self.validation_fraction}"
            )


@runtime_checkable
class Trainable(Protocol):
    """What the loop needs of a model.

    Two things more are asked of a model that has them: `make_optimizer(phase, parameters, learning_rate)`,
    in place of Adam, and `max_gradient_norm`, to which the gradient of a step is clipped.
    """

    class_balanced: bool

    @property
    def phases(self) -> Mapping[str, list[nn.Parameter]]:
        """The parameters that each phase of a step updates, in order."""
        ...

    def training_loss(self, phase: str, x: Tensor, y: Tensor, *clean: Tensor) -> Tensor:
        """Give the loss of one phase; with the clean images, where the data set pairs them with others."""
        ...


@dataclass
class _State:
    """What a checkpoint holds beside weights and optimisers."""

    epoch: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave; the model that was passed in holds the best epoch's weights.

    Attributes:
        best_epoch: The epoch that was kept, counted from 1.
        validation_accuracy: Its accuracy on the validation split, at the loop's small budget.
        seconds: Training time, over all resumed runs.
        history: Loss per phase and validation accuracy of every epoch.
    """

    best_epoch: int
    validation_accuracy: float
    seconds: float
    history: list[dict[str, float]]


def fit(
    model: Classifier,
    dataset: ImageDataset,
    *,
    config: TrainingConfig,
    folder: Path,
    fabric: Fabric | None = None,
    show_progress: bool = True,
) -> TrainingResult:
    """Train a model, keep its best epoch, and calibrate its temperature.

    A checkpoint is written after every epoch: the same call after a kill goes on with the next epoch, and
    ends at the same weights as an uninterrupted run on the same machine.

    Args:
        model: The model, with its initial weights; it is changed in place.
        dataset: The training set; a part of it is held out for validation. Where labels are hidden, that is a
            part of the images that have one, and the model gets -1 as the label of the others.
        config: How to train.
        folder: Where checkpoints are kept.
        fabric: Device, precision and processes; one of Fabric's own choice with `config.precision` if none.
        show_progress: Show a progress bar.

    Raises:
        ValueError: If `folder` holds a checkpoint of another config, or the loss is no longer finite.
    """
    if not isinstance(model, Trainable):
        raise TypeError(f"Expected a model with `phases` and `training_loss`, but got {type(model).__name__}")
    fabric = fabric or Fabric(devices=1, precision=config.precision)
    fabric.launch()
    generator = torch.Generator().manual_seed(config.seed)
    training, validation = dataset.split_validation(config.validation_fraction, generator=generator)
    run = _Run(model, config, folder, fabric)
    run.resume()
    with _progress(disable=not (show_progress and fabric.is_global_zero)) as progress:
        bar = progress.add_task(type(model).__name__, total=config.epochs, completed=run.state.epoch, note="")
        while run.state.epoch < config.epochs:
            started = time.monotonic()
            losses = run.train_epoch(
                training, lambda done, note: progress.update(bar, completed=done, note=note)
            )
            run.finish_epoch(losses, accuracy(_validation_variant(model), validation), started)
            progress.update(bar, completed=run.state.epoch, note=_note(run.state.history[-1]))
            if show_progress and fabric.is_global_zero and not progress.console.is_terminal:
                progress.console.print(
                    f"epoch {run.state.epoch}/{config.epochs} {_note(run.state.history[-1])}"
                )
    run.load_best()
    if getattr(model, "calibrates_temperature", False):
        _calibrate(model, validation)
    state = run.state
    return TrainingResult(state.best_epoch, state.best_accuracy, state.seconds, state.history)


class _Run:
    """A training in progress: model, optimisers and state, as one thing that is checkpointed."""

    def __init__(self, model: Any, config: TrainingConfig, folder: Path, fabric: Fabric) -> None:
        self.model, self.config, self.folder, self.fabric = model, config, folder, fabric
        self.state = _State()
        self.wrapped = fabric.setup_module(model)
        self.wrapped.mark_forward_method("training_loss")
        phases: Mapping[str, list[nn.Parameter]] = model.phases
        make_optimizer = getattr(model, "make_optimizer", _adam)
        self.optimizers: dict[str, Any] = {
            phase: fabric.setup_optimizers(make_optimizer(phase, parameters, config.learning_rate))
            for phase, parameters in phases.items()
        }
        self.rates = {phase: o.param_groups[0]["lr"] for phase, o in self.optimizers.items()}
        self.max_gradient_norm: float | None = getattr(model, "max_gradient_norm", None)

    def train_epoch(self, dataset: ImageDataset, report: Callable[[float, str], None]) -> dict[str, float]:
        """Run one epoch; give the mean loss of each phase."""
        config, epoch, rank = self.config, self.state.epoch, self.fabric.global_rank
        for phase, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[phase] * 0.5 ** (epoch // config.halve_every)
        order = np.random.default_rng((config.seed, epoch))
        batches = list(_batches(self.model, dataset, config.batch_size, order))
        totals = dict.fromkeys(self.optimizers, 0.0)
        seed = int(np.random.SeedSequence((config.seed, epoch, rank)).generate_state(1)[0])
        with isolated_rng(seed):
            self.model.set_parts_training(True)
            try:
                for done, indices in enumerate(batches, start=1):
                    for phase, loss in self._step(dataset, indices).items():
                        totals[phase] += loss
                    report(epoch + done / len(batches), _note({p: t / done for p, t in totals.items()}))
            finally:
                self.model.set_parts_training(False)
        return {phase: total / len(batches) for phase, total in totals.items()}

    def _step(self, dataset: ImageDataset, indices: Int[Tensor, " rows *classes"]) -> dict[str, float]:
        share = indices[self.fabric.global_rank :: self.fabric.world_size]
        images, labels = dataset.batch(share.flatten())
        x, y = images.to(self.fabric.device), labels.to(self.fabric.device)
        x = (x + self.config.noise_std * torch.randn_like(x)).unflatten(0, tuple(share.shape))
        clean = dataset.clean_batch(share.flatten())
        paired = () if clean is None else (clean.to(self.fabric.device),)
        losses = {}
        for phase, optimizer in self.optimizers.items():
            optimizer.zero_grad()
            with self.fabric.autocast():  # Fabric enters it by itself only where a strategy wraps the model
                loss = self.wrapped.training_loss(phase, x, y, *paired)
            self.fabric.backward(loss)
            if self.max_gradient_norm is not None:
                nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.max_gradient_norm)
            optimizer.step()
            losses[phase] = float(loss.detach())
            if not np.isfinite(losses[phase]):
                raise ValueError(
                    f"Expected a finite loss, but got {losses[phase]} in phase {phase!r}: lower the rate"
                )
        return losses

    def finish_epoch(self, losses: dict[str, float], validation_accuracy: float, started: float) -> None:
        """Count the epoch, keep its weights if they are the best so far, and write the checkpoint."""
        state = self.state
        state.epoch += 1
        state.history.append({**losses, "validation_accuracy": validation_accuracy})
        if validation_accuracy >= state.best_accuracy:
            state.best_accuracy, state.best_epoch = validation_accuracy, state.epoch
            self.best = {
                name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()
            }
        state.seconds += time.monotonic() - started
        if self.fabric.is_global_zero:
            content = {
                "config": asdict(self.config),
                "state": asdict(state),
                "model": self.model.state_dict(),
                "best": self.best,
                "optimizers": {phase: o.state_dict() for phase, o in self.optimizers.items()},
            }
            with write_atomically(self.folder / CHECKPOINT) as part:
                torch.save(content, part)
        self.fabric.barrier()

    def resume(self) -> None:
        """Load the checkpoint of the folder, if there is one."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        content = torch.load(path, map_location="cpu", weights_only=True)
        mine, theirs = asdict(self.config), content["config"]
        if different := sorted(k for k in mine if k != "epochs" and mine[k] != theirs.get(k)):
            raise ValueError(
                f"Expected a checkpoint of the same training in {self.folder}, "
                f"but {', '.join(different)} differ: choose another folder, or remove it"
            )
        self.state = _State(**content["state"])
        self.model.load_state_dict(content["model"])
        self.best = content["best"]
        for phase, optimizer in self.optimizers.items():
            optimizer.load_state_dict(content["optimizers"][phase])

    def load_best(self) -> None:
        """Put the weights of the best epoch into the model."""
        self.model.load_state_dict(self.best)


def _batches(
    model: Trainable, dataset: ImageDataset, batch_size: int, order: np.random.Generator
) -> Iterator[Int[Tensor, " rows *classes"]]:
    if model.class_balanced:
        return _balanced_batches(dataset, batch_size, order)
    if dataset.partly_labelled:
        return _partly_labelled_batches(dataset, batch_size, order)
    return _shuffled_batches(dataset, batch_size, order)


def _partly_labelled_batches(
    dataset: ImageDataset, batch_size: int, order: np.random.Generator
) -> Iterator[Int[Tensor, " rows"]]:
    """Give batches with a constant share of labelled images, which repeat until the others are through."""
    known = dataset.labels.numpy() != UNLABELLED
    unlabelled, labelled = (order.permutation(np.flatnonzero(members)) for members in (~known, known))
    if not (len(labelled) and len(unlabelled)):
        raise ValueError("Expected images with a label and images without, but there are none of one kind")
    share = max(1, round(LABELLED_SHARE * batch_size))
    for first in range(0, len(unlabelled), batch_size - share):
        while len(labelled) < share:
            labelled = np.concatenate([labelled, order.permutation(np.flatnonzero(known))])
        chosen, labelled = labelled[:share], labelled[share:]
        yield torch.from_numpy(np.concatenate([chosen, unlabelled[first : first + batch_size - share]]))


def _adam(phase: str, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    del phase
    return torch.optim.Adam(parameters, lr=learning_rate)


def _shuffled_batches(
    dataset: ImageDataset, batch_size: int, order: np.random.Generator
) -> Iterator[Int[Tensor, " rows"]]:
    indices = torch.from_numpy(order.permutation(len(dataset)))
    for batch in indices.split(batch_size):
        if len(batch) > 1:  # batch norm needs two
            yield batch


def _balanced_batches(
    dataset: ImageDataset, batch_size: int, order: np.random.Generator
) -> Iterator[Int[Tensor, "rows classes"]]:
    """Give batches whose column k holds class k; small classes repeat until the largest is through."""
    members = [np.flatnonzero(dataset.labels.numpy() == k) for k in range(dataset.num_classes)]
    if not all(len(member) for member in members):
        raise ValueError("Expected images of every class, but a class of the training set is empty")
    longest = max(map(len, members))
    columns = [
        np.concatenate([order.permutation(member) for _ in range(-(-longest // len(member)))])[:longest]
        for member in members
    ]
    indices = torch.from_numpy(np.stack(columns, axis=1))
    for batch in indices.split(max(2, batch_size // dataset.num_classes)):
        if len(batch) > 1:
            yield batch


def _validation_variant(model: Classifier) -> Classifier:
    if not isinstance(model, GenerativeClassifier):
        return model
    budget: Mapping[str, Any] = getattr(model, "validation_budget", VALIDATION_BUDGET)
    return model.with_inference(**budget)


def _calibrate(model: Any, validation: ImageDataset) -> None:
    images, labels = validation.subset(slice(CALIBRATION_IMAGES)).batch(slice(None))
    model.temperature.fill_(1.0)
    with torch.no_grad():
        logits = torch.cat(
            [model(batch) for batch in images.to(model.temperature.device).split(EVALUATION_BATCH)]
        )
    model.temperature.fill_(calibrate_temperature(logits.cpu(), labels))


@torch.no_grad()
def accuracy(model: Classifier, dataset: ImageDataset) -> float:
    """Give the share of images that the model labels correctly."""
    device = next(model.parameters()).device
    correct = 0
    for first in range(0, len(dataset), EVALUATION_BATCH):
        images, labels = dataset.batch(slice(first, first + EVALUATION_BATCH))
        correct += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
    return correct / len(dataset)


def calibrate_temperature(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> float:
    """Give the factor that logits are divided by for the least cross-entropy (Guo et al. 2017).

    Class scores in nats are far apart: their softmax saturates, and with it an attacker's gradient. Where
    every image is labelled rightly, cross-entropy falls for ever as the factor does, and would saturate it
    again: one image more is then counted, whose label might be any.
    """
    logits = logits.double()
    all_right = bool((logits.argmax(1) == labels).all())
    smoothing = 1 / (len(labels) + 1) if all_right else 0.0

    def loss(log_factor: float) -> float:
        scaled = logits / np.exp(log_factor)
        return float(nn.functional.cross_entropy(scaled, labels, label_smoothing=smoothing))

    return float(np.exp(minimize_scalar(loss, bounds=(-7.0, 7.0), method="bounded").x))


def _note(values: Mapping[str, float]) -> str:
    names = {"validation_accuracy": "val acc"}
    return "  ".join(f"{names.get(name, name)} {value:.4g}" for name, value in values.items())


def _progress(*, disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=disable,
    )
