"""Cells with all that it takes to compute them, and what comes of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int

from ..._brief import one_line
from ...attacks import OwnAttack
from ...data import ImageDataset
from ..suites.model import CLEAN, PARTS, Attack, Suite
from .cells import Cell, derived_seed
from .toolkits import registered_attacks

__all__ = ["Array", "Experiment", "Outcome", "Task", "choose_samples"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One cell with all that it takes beside the models, so that any process can compute it.

    Attributes:
        cell: Which one.
        suite: What it is part of.
        seed: Seed of the run; the cells' own seeds are derived from it.
        samples: Indices of the images in the test split.
        images: The images.
        pool: Images that starting points are chosen from, if the attack asks for them.
        clean_predictions: What the clean cell of the same model and batch found in its first draw; None for
            that cell itself.
        clean_right: Whether it was right by the majority of its draws, and by every draw; None if it drew
            once.
        own: The functions of registered attacks, which another process does not know.
        keep_examples: Give back every image that is judged, clean or adversarial.
    """

    cell: Cell
    suite: Suite
    seed: int
    samples: Int[np.ndarray, " batch"]
    images: ImageDataset
    pool: ImageDataset | None = None
    clean_predictions: Int[np.ndarray, " batch"] | None = None
    clean_right: Bool[np.ndarray, "2 batch"] | None = None
    own: tuple[OwnAttack, ...] = ()
    keep_examples: bool = False

    __repr__ = one_line

    @property
    def attack(self) -> Attack | None:
        """The attack; None for unperturbed images."""
        return None if self.cell.attack == CLEAN else self.suite.attack(self.cell.attack)

    @property
    def content(self) -> tuple[object, ...]:
        """Tells the images and the code of attacks apart from those of other runs in the same process."""
        pictures = (self.images, self.pool)
        sums = (None if pictured is None else pictured.sha256 for pictured in pictures)
        return (*self.samples.tolist(), *sums, *(attack.digest for attack in self.own))

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it takes: the judged one, and the one whose examples are transferred."""
        against = self.attack.against if self.attack else None
        others = () if against in (None, *PARTS, self.cell.model) else (str(against),)
        return (self.cell.model, *others)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished cell gives.

    Attributes:
        columns: Columns of `cells.SCHEMA`.
        gallery: A few examples as arrays; see `gallery.make_gallery`. None for all but the first batch.
        examples: Every image that was judged, if they are kept.
    """

    columns: Mapping[str, Any]
    gallery: Mapping[str, Array] | None = None
    examples: Array | None = None

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What all cells of a run have in common.

    Attributes:
        suite: What is run.
        dataset: The test split.
        samples: Indices of the attacked images.
        seed: Seed of the run; the cells' own seeds are derived from it.
        keep_examples: Keep every image, clean or adversarial.
    """

    suite: Suite
    dataset: ImageDataset = field(repr=False)
    samples: Int[np.ndarray, " samples"]
    seed: int
    keep_examples: bool = False

    __repr__ = one_line

    def task(
        self,
        cell: Cell,
        *,
        clean_predictions: Int[np.ndarray, " batch"] | None = None,
        clean_right: Bool[np.ndarray, "2 batch"] | None = None,
    ) -> Task:
        """Returns one cell with its images.

        Args:
            cell: Which one.
            clean_predictions: What the clean cell of the same model and batch found in its first draw.
            clean_right: Whether it was right by the majority of its draws, and by every draw.
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
            clean_right=clean_right,
            own=() if cell.attack == CLEAN else registered_attacks([self.suite.attack(cell.attack)]),
            keep_examples=self.keep_examples,
        )


def choose_samples(dataset: ImageDataset, count: int, *, seed: int) -> Int[np.ndarray, " count"]:
    """Chooses test images at random, with class counts that differ by at most one if possible.

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
