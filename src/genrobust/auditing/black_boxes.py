"""The attacks of an audit that know no gradient: noise, scores alone, and decisions alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..attacks.contest import contest
from ..attacks.pgd import Ball
from ..attacks.random_search import random_search
from .crafting import Run, Watch, judged, known_examples, many, once
from .subject import Subject

__all__ = ["decision_run", "estimated_run", "noise_run", "search_run"]

_PAIRS = 10  # of images that one estimate of a slope asks about
_REACH = 0.5  # how far these are from the image, in radii
_STEP = 0.25  # length of a step along an estimated slope, in radii
_BISECTIONS = 10
_PROBES, _AROUND = 20, 0.1  # points around the boundary, and how far they are, as a share of the distance
_SPHERE = Ball("l2", 1.0)
_HALVINGS = 4
_ROUND = _PROBES + _HALVINGS + _BISECTIONS


def noise_run(subject: Subject) -> Run:
    """Runs random perturbations within the ball, half of them at its edge; keeps the least margin."""
    name = f"noise, {many(subject.budget.noise, 'draw')}"

    def craft() -> Run:
        generator, x, ball = subject.generator(1), subject.images, subject.ball
        watch = _watched(subject)
        with torch.no_grad():
            for number in range(subject.budget.noise):
                draw = ball.edge if number % 2 else ball.random
                watch(ball.project(x + draw(x, generator), x))
        return judged(subject, name, watch, watch.best(), epsilon=subject.epsilon)

    return once(subject, name, subject.epsilon, craft)


def search_run(subject: Subject) -> Run:
    """Runs the random search, which knows scores and no gradient."""
    name = f"random search, {many(subject.budget.queries, 'query', 'queries')}"

    def craft() -> Run:
        watch = _watched(subject)

        def score(x: Tensor) -> Tensor:
            columns = watch(x)
            return columns[:, 1] - columns[:, 0]

        random_search(
            score,
            subject.images,
            ball=subject.ball,
            queries=subject.budget.queries,
            generator=subject.generator(2),
        )
        return judged(subject, name, watch, watch.best(), epsilon=subject.epsilon)

    return once(subject, name, subject.epsilon, craft)


def estimated_run(subject: Subject) -> Run:
    """Runs PGD along slopes that pairs of scores estimate (NES; Ilyas et al. 2018)."""
    steps = max(1, subject.budget.queries // (2 * _PAIRS))
    name = f"estimated slopes, {many(2 * _PAIRS * steps, 'query', 'queries')}"

    def craft() -> Run:
        generator, x, ball = subject.generator(11), subject.images, subject.ball
        watch, current = _watched(subject), subject.images
        with torch.no_grad():
            for _ in range(steps):
                slope = torch.zeros_like(x)
                for _ in range(_PAIRS):
                    away = _REACH * ball.edge(x, generator)
                    ahead, behind = (
                        watch(ball.project(current + sign * away, x)).diff(dim=1) for sign in (1, -1)
                    )
                    slope += (ahead - behind).nan_to_num()[:, :, None, None] * away
                current = ball.project(current + _STEP * subject.epsilon * ball.unit(slope), x)
            watch(current)
        return judged(subject, name, watch, current, epsilon=subject.epsilon)

    return once(subject, name, subject.epsilon, craft)


def decision_run(subject: Subject) -> Run:
    """Walks along the boundary towards the image, by decisions alone (HopSkipJump; Chen et al. 2020).

    It begins at a clean image of another class. Bisection finds the boundary, random points around it say
    by their decisions where its other side is, and a step goes there before the next bisection.
    """
    rounds = max(1, (subject.budget.queries - _BISECTIONS) // _ROUND)
    name = f"walk by decisions, {many(_BISECTIONS + rounds * _ROUND, 'query', 'queries')}"

    def craft() -> Run:
        watch = _watched(subject)
        with torch.no_grad():
            found = _walked(subject, watch, rounds)
        # Most of the images that it asked about are outside of the ball.
        return judged(subject, name, watch, found, epsilon=subject.epsilon, best=False)

    return once(subject, name, subject.epsilon, craft)


def _walked(subject: Subject, watch: Watch, rounds: int) -> Tensor:
    generator, x = subject.generator(12), subject.images

    def wins(images: Tensor) -> Tensor:
        return (watch(images).diff(dim=1) > 0)[:, :, None, None]

    current = _bisected(x, known_examples(subject), wins)
    for number in range(1, rounds + 1):
        length = (current - x).flatten(1).norm(dim=1)[:, None, None, None]
        points = torch.stack([_SPHERE.edge(x, generator) for _ in range(_PROBES)])
        votes = torch.stack([wins((current + _AROUND * length * point).clamp(0, 1)) for point in points])
        inside = ((votes.to(x) - votes.to(x).mean(0)) * points).sum(0)
        step = length / number**0.5 * _SPHERE.unit(subject.ball.unit(inside))
        moved, done = current, torch.zeros_like(votes[0])
        for _ in range(_HALVINGS):
            tried = (current + step).clamp(0, 1)
            won = wins(tried) & ~done
            moved, done, step = torch.where(won, tried, moved), done | won, step / 2
        current = _bisected(x, moved, wins)
    return current


def _bisected(x: Tensor, far: Tensor, wins: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the image that is nearest to x on the way from one that wins."""
    low, high = torch.zeros_like(x[:, :1, :1, :1]), torch.ones_like(x[:, :1, :1, :1])
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        won = wins(torch.lerp(x, far, middle))
        low, high = torch.where(won, low, middle), torch.where(won, middle, high)
    return torch.lerp(x, far, high)


def _watched(subject: Subject) -> Watch:
    """Returns the attacked model of two columns, which remembers what it is asked."""
    return Watch(contest(subject.view(), subject.labels, subject.model.num_classes))
