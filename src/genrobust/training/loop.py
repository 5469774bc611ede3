"""One training loop for every model; systems differ in their `training_loss`."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from lightning.fabric import Fabric
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar
from torch import Tensor, nn

from .._brief import one_line
from .._console import make_console
from .._fields import AtLeastOne, AtLeastTwo, NotNegative, Positive, Seed, check_fields
from ..capabilities import Tempered, Trainable
from ..contract import Classifier
from ..data import UNLABELLED, ImageDataset
from ..randomness import isolated_rng
from .checkpoints import Progress, claim, identity_of, read_checkpoint, write_checkpoint
from .criterion import SELECTION_SEED, calibrate, decides_as_compared, deciding_score, validation_score

__all__ = ["TrainingConfig", "TrainingResult", "fit"]

DECISIONS = 10  # number of epochs that the deciding rule judges, if a config does not say how often
LABELLED_SHARE = 0.25  # share of labelled images in every batch if most images have no label


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of a training; the defaults are those of E-ABS section 4.3.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Images per step, over all classes and devices.
        learning_rate: Learning rate of Adam.
        halve_every: Epochs after which the learning rate is halved.
        noise_std: Standard deviation of the Gaussian noise on the images: 0.2 for MNIST and Fashion-MNIST,
            0.01 for the colour sets.
        decide_images: Number of validation images, of every class, on which a model decides with its full
            budget to choose the best epoch, if that differs from its `validation_budget`; all if there are
            fewer.
        decide_every: Epochs from one such choice to the next; the first and the last epoch are judged too.
            None judges about ten.
        seed: Seed of the initial weights, the order, the noise and dropout.
        precision: Precision of Lightning Fabric, such as "32-true" or "bf16-mixed".
    """

    epochs: AtLeastOne = 500
    batch_size: AtLeastTwo = 512
    learning_rate: Positive = 1e-3
    halve_every: AtLeastOne = 200
    noise_std: NotNegative = 0.2
    decide_images: AtLeastOne = 300
    decide_every: AtLeastOne | None = None
    seed: Seed = 0
    precision: Any = "32-true"

    def __post_init__(self) -> None:
        check_fields(self)

    def decides(self, epoch: int) -> bool:
        """Returns whether the deciding rule judges an epoch, counted from 1."""
        every = self.decide_every or math.ceil(self.epochs / DECISIONS)
        return epoch in (1, self.epochs) or epoch % every == 0


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training; the model that was passed in holds the best epoch's weights.

    Attributes:
        best_epoch: The epoch that was kept, counted from 1.
        selected_by: Names the score that chose it, such as "accuracy" or "robust accuracy".
        validation_score: Its score on the whole validation split, at the model's `validation_budget`.
        deciding_score: Its score at the budget that the trained model decides with, which chose it.
        deciding_images: Number of validation images of the deciding score.
        seconds: Training time, over all resumed runs.
        history: Loss per phase and validation score of every epoch, and the deciding score of those that have
            one of their own.
    """

    best_epoch: int
    selected_by: str
    validation_score: float
    deciding_score: float
    deciding_images: int
    seconds: float
    history: list[dict[str, float]]

    __repr__ = one_line


def fit(
    model: Classifier,
    dataset: ImageDataset,
    *,
    config: TrainingConfig,
    folder: Path,
    fabric: Fabric | None = None,
    source: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> TrainingResult:
    """Trains a model, keeps its best epoch, and calibrates its temperature.

    The best epoch is the one with the highest score on the validation split; the model names that score in
    `selected_by`. The score is that of the model as it decides when it is trained. Where that costs more than
    the model's `validation_budget`, only some epochs are scored, on some of the images, and the best of these
    is kept; every epoch also has the cheap score of all images, which chooses nothing.

    A checkpoint is written after every epoch: the same call after a kill goes on with the next epoch, and
    ends at the same weights as an uninterrupted run on the same machine.

    Args:
        model: The model, with its initial weights; it is changed in place.
        dataset: The training set; `split_validation` separates what is held out. If labels are hidden, the
            held-out part consists of labelled images, and the model gets -1 as the label of unlabelled ones.
        config: Settings of the training.
        folder: Folder of the checkpoints.
        fabric: Device, precision and processes; by default Fabric's own choice with `config.precision`.
        source: What else decides the result, such as the weights that the training starts from, as JSON can
            hold it. A folder goes on with the same model, data, config and source alone.
        show_progress: Whether to show a progress bar.

    Raises:
        ValueError: If nothing is held out, or most images are, `folder` belongs to another training or holds
            a damaged checkpoint, or the loss is no longer finite.
    """
    if not isinstance(model, Trainable):
        raise TypeError(f"Expected a model that is `Trainable`, but got {type(model).__name__}")
    fabric = fabric or Fabric(devices=1, precision=config.precision)
    fabric.launch()
    training, validation = dataset.split_validation()
    if not 0 < len(validation) < len(training):
        raise ValueError(
            "Expected images to learn from, and fewer to validate on, but got "
            f"{len(training)} and {len(validation)}"
        )
    identity = identity_of(model, dataset, validation, config, source or {})
    run = _Run(model, config, folder, fabric, validation, identity)
    run.resume()
    with _progress(disable=not (show_progress and fabric.is_global_zero)) as progress:
        bar = progress.add_task(type(model).__name__, total=config.epochs, completed=run.state.epoch, note="")
        while run.state.epoch < config.epochs:
            started = time.monotonic()
            losses = run.train_epoch(
                training, lambda done, note: progress.update(bar, completed=done, note=note)
            )
            run.finish_epoch(losses, started)
            progress.update(bar, completed=run.state.epoch, note=_note(run.state.history[-1]))
            if show_progress and fabric.is_global_zero and not progress.console.is_terminal:
                progress.console.print(
                    f"epoch {run.state.epoch}/{config.epochs} {_note(run.state.history[-1])}"
                )
    run.load_best()
    if isinstance(model, Tempered) and model.calibrates_temperature:
        calibrate(model, validation)
    state = run.state
    return TrainingResult(
        best_epoch=state.best_epoch,
        selected_by=model.selected_by,
        validation_score=state.history[state.best_epoch - 1]["validation_score"],
        deciding_score=state.best_score,
        deciding_images=len(run.judged),
        seconds=state.seconds,
        history=state.history,
    )


class _Run:
    """A training in progress: model, optimisers and state, which a checkpoint stores together."""

    def __init__(
        self,
        model: Any,
        config: TrainingConfig,
        folder: Path,
        fabric: Fabric,
        validation: ImageDataset,
        identity: dict[str, Any],
    ) -> None:
        self.identity = identity
        self.model, self.config, self.folder, self.fabric = model, config, folder, fabric
        self.validation = self.judged = validation
        self.compared_as_decided = decides_as_compared(model)
        if not self.compared_as_decided:
            count = min(config.decide_images, len(validation))
            self.judged = validation.stratified(count, seed=SELECTION_SEED)
        self.state = Progress()
        self.wrapped = fabric.setup_module(model)
        self.wrapped.mark_forward_method("training_loss")
        self.optimizers: dict[str, Any] = {
            phase: fabric.setup_optimizers(model.make_optimizer(phase, parameters, config.learning_rate))
            for phase, parameters in model.phases.items()
        }
        self.rates = {phase: o.param_groups[0]["lr"] for phase, o in self.optimizers.items()}
        self.max_gradient_norm: float | None = model.max_gradient_norm

    def train_epoch(self, dataset: ImageDataset, report: Callable[[float, str], None]) -> dict[str, float]:
        """Runs one epoch, and returns the mean loss of each phase."""
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
            with self.fabric.autocast():  # Fabric enters it only if a strategy wraps the model
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

    def finish_epoch(self, losses: dict[str, float], started: float) -> None:
        """Counts and scores the epoch, keeps the best weights so far, and writes the checkpoint."""
        state = self.state
        state.epoch += 1
        state.history.append(losses)
        score = self._score(state.history[-1])
        if score is not None and score >= state.best_score:
            state.best_score, state.best_epoch = score, state.epoch
            self.best = {
                name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()
            }
        state.seconds += time.monotonic() - started
        if self.fabric.is_global_zero:
            content = {
                "identity": self.identity,
                "state": asdict(state),
                "model": self.model.state_dict(),
                "best": self.best,
                "optimizers": {phase: o.state_dict() for phase, o in self.optimizers.items()},
            }
            write_checkpoint(self.folder, content)
        self.fabric.barrier()

    def _score(self, scores: dict[str, float]) -> float | None:
        """Writes down the epoch's scores, and returns the one that may choose it."""
        scores["validation_score"] = validation_score(self.model, self.validation)
        if self.compared_as_decided:
            return scores["validation_score"]
        if not self.config.decides(self.state.epoch):
            return None
        scores["deciding_score"] = deciding_score(self.model, self.judged)
        return scores["deciding_score"]

    def resume(self) -> None:
        """Takes the folder, and loads its checkpoint, if there is one."""
        claim(self.folder, self.identity)
        content = read_checkpoint(self.folder, self.identity, self.config.epochs)
        if content is None:
            return
        self.state, self.best = content["state"], content["best"]
        try:
            self.model.load_state_dict(self.best)
            self.model.load_state_dict(content["model"])
            for phase, optimizer in self.optimizers.items():
                optimizer.load_state_dict(content["optimizers"][phase])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"Expected the checkpoint in {self.folder} to fit the model, but: {error}"
            ) from error

    def load_best(self) -> None:
        """Puts the weights of the best epoch into the model."""
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
    """Yields batches with a constant share of labelled images, which repeat until the others are used."""
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
    """Yields batches whose column k holds class k; small classes repeat until the largest one is used."""
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


def _note(values: Mapping[str, float]) -> str:
    names = {"validation_score": "val score", "deciding_score": "deciding score"}
    return "  ".join(f"{names.get(name, name)} {value:.4g}" for name, value in values.items())


def _progress(*, disable: bool) -> ProgressBar:
    return ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=make_console(),
        disable=disable,
    )
