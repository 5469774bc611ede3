"""The attacks of an audit: each runs once, is judged on the deployed model, and is shared by the checks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._brief import one_line
from ..attacks.contest import contest
from ..attacks.pgd import pgd
from ..contract import Classifier
from .subject import Subject

__all__ = [
    "Run",
    "Watch",
    "judged",
    "known_examples",
    "many",
    "once",
    "one_step_run",
    "pgd_run",
    "step_length",
    "transferred_run",
]

_PATH = 2.5  # radii that the steps of PGD can walk together


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """What an attack found.

    Attributes:
        name: The attack, with its budget.
        epsilon: The radius of the ball.
        images: The examples of the least margin that were seen, shape (B, C, H, W).
        final: What the attack returned after the last start.
        robust: Where the judge is right about the clean image, and `images` do not count.
        by_start: The same after each start, shape (S, B).
        margins: By how much the attacked model decided rightly, for every query of the first start, shape
            (Q, B); below 0 where the attack won.
        bounded: Whether the run counts in the union: it is made at the audit's epsilon.
    """

    name: str
    epsilon: float
    images: Float[Tensor, "batch channels height width"]
    final: Float[Tensor, "batch channels height width"]
    robust: Bool[Tensor, " batch"]
    by_start: Bool[Tensor, "starts batch"]
    margins: Float[Tensor, "queries batch"]
    bounded: bool

    __repr__ = one_line


class Watch:
    """A model of two columns that remembers the margins, and the image of the least one."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model = model
        self.margins: list[Tensor] = []
        self.least: Tensor | None = None
        self.image: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the two columns of images."""
        columns = self.model(x)
        values = columns.detach()
        self.see(x.detach(), (values[:, 0] - values[:, 1]).nan_to_num(nan=-torch.inf))
        return columns

    def see(self, x: Tensor, margins: Tensor) -> None:
        """Remembers the images whose margin is the least so far."""
        self.margins.append(margins)
        if self.least is None or self.image is None:
            self.least, self.image = margins, x
            return
        better = margins < self.least
        self.least = torch.where(better, margins, self.least)
        self.image = torch.where(better[:, None, None, None], x, self.image)

    def best(self) -> Tensor:
        """Returns the image of the least margin."""
        if self.image is None:
            raise ValueError("Expected a model that was asked, but got one that was not")
        return self.image


def pgd_run(
    subject: Subject,
    *,
    gradient: str | None = None,
    steps: int | None = None,
    starts: int = 1,
    epsilon: float | None = None,
    eot: int | None = None,
) -> Run:
    """Runs PGD on the margin, from random points, and judges the best image that it saw.

    Args:
        subject: What is audited.
        gradient: One of the surrogate gradients of the model; by default the model's own.
        steps: Gradient steps; by default the budget's.
        starts: Restarts.
        epsilon: The radius; by default the subject's.
        eot: Draws in every query; by default the budget's.
    """
    steps = subject.budget.steps if steps is None else steps
    radius = subject.epsilon if epsilon is None else epsilon
    size = f"PGD, {many(steps, 'step')}" + (f", {many(starts, 'start')}" if starts > 1 else "")
    name = size + ("" if gradient is None else f", gradient {gradient}")
    name += "" if eot is None else f", {many(eot, 'draw')} a query"

    def craft() -> Run:
        model = subject.view(gradient, eot=eot)
        return _climbed(subject, name, model, steps=steps, starts=starts, epsilon=radius)

    return once(subject, name, radius, craft)


def one_step_run(subject: Subject) -> Run:
    """Runs one step of length epsilon from the clean image."""

    def craft() -> Run:
        model = subject.view()
        return _climbed(subject, "one step", model, steps=1, starts=1, epsilon=subject.epsilon, single=True)

    return once(subject, "one step", subject.epsilon, craft)


def transferred_run(subject: Subject, source: Classifier, name: str) -> Run:
    """Runs PGD on another model, and judges what it finds on the subject's."""
    title = f"transfer from {name}"

    def craft() -> Run:
        from ..attack_view import attack_view

        eot = subject.budget.eot if source.randomized else 1
        view = attack_view(source, eot=eot, seed=subject.seed)
        budget = subject.budget
        return _climbed(
            subject, title, view, steps=budget.steps, starts=budget.starts, epsilon=subject.epsilon, last=True
        )

    return once(subject, title, subject.epsilon, craft)


def step_length(steps: int, epsilon: float) -> float:
    """Returns the length of a step of PGD: all together walk 2.5 radii, and none is longer than one."""
    return min(1.0, _PATH / steps) * epsilon


def known_examples(subject: Subject) -> Tensor:
    """Returns, for each image, a clean image of another class about which the judge is right.

    It is an adversarial example in a ball that holds every image. Where there is none, it is the image.
    """
    usable, labels = subject.right, subject.labels
    found = subject.images.clone()
    for row, label in enumerate(labels.tolist()):
        others = (usable & (labels != label)).nonzero()[:, 0]
        if len(others):
            found[row] = subject.images[others[row % len(others)]]
    return found


def _climbed(
    subject: Subject,
    name: str,
    model: Callable[[Tensor], Tensor],
    *,
    steps: int,
    starts: int,
    epsilon: float,
    single: bool = False,
    last: bool = False,
) -> Run:
    """Runs PGD from several starts.

    Args:
        subject: What is audited.
        name: What the run is called.
        model: What is queried.
        steps: Gradient steps.
        starts: Restarts.
        epsilon: The radius.
        single: Take one step of length epsilon from the clean image.
        last: Judge what the attack returns, as a transferred example is.
    """
    generator = subject.generator(3)
    columns = contest(model, subject.labels, subject.model.num_classes)
    right = torch.zeros_like(subject.labels)
    runs: list[Run] = []
    for _ in range(starts):
        watch = Watch(columns)
        made = pgd(
            watch,
            subject.images,
            right,
            epsilon=epsilon,
            norm=subject.norm,
            steps=steps,
            step_size=epsilon if single else step_length(steps, epsilon),
            random_start=not single,
            generator=generator,
            loss="margin",
        )
        with torch.no_grad():
            watch(made)
        runs.append(judged(subject, name, watch, made, epsilon=epsilon, best=not last))
    return _joined(runs)


def _joined(runs: list[Run]) -> Run:
    """Returns the runs of several starts as one, with each image's first example that counts."""
    images, robust, by_start = runs[0].images, runs[0].robust, [runs[0].robust]
    for run in runs[1:]:
        better = robust & ~run.robust
        images = torch.where(better[:, None, None, None], run.images, images)
        robust = robust & run.robust
        by_start.append(robust)
    return replace(
        runs[0], images=images, final=runs[-1].final, robust=robust, by_start=torch.stack(by_start)
    )


def judged(
    subject: Subject, name: str, watch: Watch, final: Tensor, *, epsilon: float, best: bool = True
) -> Run:
    """Returns what an attack found, judged on the deployed model.

    Args:
        subject: What is audited.
        name: What the run is called.
        watch: What the attack asked.
        final: What it returned.
        epsilon: The radius.
        best: Judge the image of the least margin that it asked about, not the one that it returned.
    """
    images = watch.best() if best else final
    robust = subject.robust(images, epsilon=epsilon)
    return Run(
        name=name,
        epsilon=epsilon,
        images=images,
        final=final,
        robust=robust,
        by_start=robust[None],
        margins=torch.stack(watch.margins),
        bounded=epsilon == subject.epsilon,
    )


def once(subject: Subject, name: str, epsilon: float, craft: Callable[[], Run]) -> Run:
    """Returns a run that the checks share; makes it where no check has asked for it."""
    key = f"{name} at {epsilon:.6g}"
    if key not in subject.runs:
        subject.runs[key] = craft()
    return subject.runs[key]


def many(count: int, singular: str, plural: str = "") -> str:
    """Returns a number with its noun."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
