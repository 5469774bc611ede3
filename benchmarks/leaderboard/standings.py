"""The number of a model under a threat model: the lowest that anything verified brought it to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from ..._brief import one_line
from ...verification import Decided, Norm, reach
from ..statistics import Proportion, wilson

__all__ = ["DECIDED", "Attempted", "Base", "Contender", "Standing", "standing_of"]

DECIDED: tuple[Decided, ...] = ("first", "majority", "worst")


@dataclass(frozen=True, kw_only=True)
class Attempted:
    """What one attack did to some test images, verified.

    Attributes:
        attack: Its title.
        source: The run's folder, or the submission's.
        date: When; empty if that is not recorded.
        samples: Positions of the images in the test split.
        lost: Per image, the length of the shortest perturbation with which the model is no longer right and
            accepts: by the first draw, by the majority of draws, and by the worst. 0 if it errs on the clean
            image, infinite if the attack failed.
        submitter: Who submitted it; empty if a run found it.
    """

    attack: str
    source: str
    date: str
    samples: Int[np.ndarray, " images"]
    lost: Mapping[Decided, Float[np.ndarray, " images"]]
    submitter: str = ""

    __repr__ = one_line

    def broken(
        self, base: Int[np.ndarray, " base"], *, epsilon: float, by: Decided
    ) -> Bool[np.ndarray, " base"]:
        """Returns which of the base's images are lost within epsilon, out of those that were attacked."""
        lost = self.samples[self.lost[by] <= reach(epsilon)]
        broken: Bool[np.ndarray, " base"] = np.isin(base, lost)
        return broken


@dataclass(frozen=True, kw_only=True)
class Base:
    """The images that a number counts over: chosen before any attack, by a run, or all test images.

    Attributes:
        samples: Positions in the test split.
        source: The run's folder; empty for all test images.
        date: When the run began; empty if that is not recorded.
        wrong: Which of them the model errs on or rejects without an attack, by each way to decide; None if it
            was not asked.
    """

    samples: Int[np.ndarray, " images"]
    source: str = ""
    date: str = ""
    wrong: Mapping[Decided, Bool[np.ndarray, " images"]] | None = None

    __repr__ = one_line

    @property
    def clean(self) -> Proportion | None:
        """Clean accuracy by the majority of draws; None if the model was not asked."""
        if self.wrong is None:
            return None
        return wilson(int((~self.wrong["majority"]).sum()), len(self.samples))


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model under a norm, with everything that attacked it.

    Attributes:
        title: The model's title.
        kinds: Why RobustBench excludes it.
        dataset: Name of the data set.
        norm: The norm.
        draws: Number of draws that decide about an image.
        bases: Images to count over.
        attempts: What attacked it in this norm.
    """

    title: str
    kinds: tuple[str, ...]
    dataset: str
    norm: Norm
    draws: int
    bases: tuple[Base, ...]
    attempts: tuple[Attempted, ...]

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A row of the leaderboard.

    Attributes:
        contender: The model, with everything that attacked it.
        epsilon: Radius of the ball.
        base: The images that the shares count.
        shares: Share of images that stay right and accepted under everything: by the first draw, by the
            majority, and by the worst draw.
        strongest: The attempt that brings the majority's share lowest alone.
        alone: That share.
        lowered: The submissions that lower what the runs found, by the majority.
    """

    contender: Contender
    epsilon: float
    base: Base
    shares: Mapping[Decided, Proportion]
    strongest: Attempted
    alone: Proportion
    lowered: tuple[Attempted, ...]

    __repr__ = one_line

    @property
    def worst(self) -> Proportion:
        """The number: the majority's."""
        return self.shares["majority"]

    @cached_property
    def date(self) -> str:
        """When the last of what it rests on was made; empty if that is not recorded."""
        return max((self.base.date, *(part.date for part in self.lowered)))


def standing_of(contender: Contender, epsilon: float) -> Standing:
    """Computes a row: over the base on which everything together leaves the lowest share.

    A run of many images with weak attacks would hide what a run of few images with strong attacks found. A
    submission chooses its images after it has attacked them, so that it is no base.

    Args:
        contender: A model with at least one base and one attempt.
        epsilon: Radius of the ball.
    """
    parts = contender.attempts
    base = min(contender.bases, key=lambda base: _share(parts, base, epsilon).value)
    alone = [_share([part], base, epsilon) for part in parts]
    strongest = min(range(len(parts)), key=lambda number: alone[number].value)
    shares = {by: _share(parts, base, epsilon, by=by) for by in DECIDED}
    ours = [part for part in parts if not part.submitter]
    before = _share(ours, base, epsilon).count
    lowered = [
        part for part in parts if part.submitter and _share([*ours, part], base, epsilon).count < before
    ]
    return Standing(
        contender=contender,
        epsilon=epsilon,
        base=base,
        shares=shares,
        strongest=parts[strongest],
        alone=alone[strongest],
        lowered=tuple(lowered),
    )


def _share(parts: Sequence[Attempted], base: Base, epsilon: float, *, by: Decided = "majority") -> Proportion:
    broken = np.zeros(len(base.samples), dtype=bool) if base.wrong is None else base.wrong[by].copy()
    for part in parts:
        broken |= part.broken(base.samples, epsilon=epsilon, by=by)
    return wilson(int((~broken).sum()), len(broken))
