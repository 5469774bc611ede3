"""How long a run will take here: a probe of one batch before it starts, corrected by the cells that end."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..._brief import one_line
from ..._modules import cheaper
from ...contract import Classifier, GenerativeClassifier
from ...inference.warm_start import one_inference
from ...randomness import isolated_rng
from ..suites.model import CLEAN, Suite
from .cells import Cell
from .execution import judge_of
from .tasks import Experiment
from .toolkits import queries_of, uses_gradients

__all__ = ["BatchSeconds", "Forecast"]

_MOVED = 0.1  # of every pixel, between two calls: a model may know a repetition, or profit from a warm start
_CLIMB = 4  # steps of an attack: near a boundary an inference that starts warm has more classes to refine
_LONGER = 1.5  # verdicts a minimal-norm cell takes: some examples are lengthened and judged again


@final
@dataclass(frozen=True, kw_only=True)
class BatchSeconds:
    """Seconds that a batch takes.

    Attributes:
        query: A forward call of the attacked variant.
        gradient: A forward and a backward call of it.
        verdict: A decision with the budget of verdicts, by as many draws as they take.
    """

    query: float
    gradient: float
    verdict: float

    __repr__ = one_line


@final
class Forecast:
    """The time that is left of a run.

    Args:
        suite: The suite.
        costs: The cost of a batch, for each model.
        draws: Draws of noise per query, for each model and attack that has more than one.
        cells: The cells that are still to be computed.
        jobs: Cells at once.
    """

    def __init__(
        self,
        suite: Suite,
        costs: Mapping[str, BatchSeconds],
        cells: Iterable[Cell],
        *,
        queries: Mapping[tuple[str, str], int],
        jobs: int = 1,
    ) -> None:
        self._suite, self._costs, self._queries, self._jobs = suite, costs, queries, jobs
        self._waiting = {cell: self._expected(cell) for cell in cells}
        self._ended: dict[str, tuple[float, float]] = {}

    @classmethod
    def probe(
        cls,
        experiment: Experiment,
        models: Mapping[str, Classifier],
        cells: Iterable[Cell],
        *,
        jobs: int = 1,
    ) -> Self:
        """Times one batch of every model: a query, a gradient and a verdict, each after a warm-up."""
        cells, suite = list(cells), experiment.suite
        names = sorted({cell.model for cell in cells})
        with isolated_rng(0):
            costs = {name: _cost_or_none(experiment, name, models) for name in names}
        queries = {
            (name, attack.key): queries_of(attack, models[name])
            * (attack.eot if models[name].randomized else 1)
            for name in costs
            for attack in suite.attacks_of(name)
        }
        return cls(suite, costs, cells, queries=queries, jobs=jobs)

    def end(self, cell: Cell, seconds: float) -> None:
        """Takes note of a cell that has ended."""
        expected = self._waiting.pop(cell, 0.0)
        before = self._ended.get(cell.model, (0.0, 0.0))
        self._ended[cell.model] = (before[0] + seconds, before[1] + expected)

    @property
    def seconds_left(self) -> float:
        """Expected seconds of the cells that have not ended, given how far off the ended ones were."""
        left = sum(seconds * self._factor(cell.model) for cell, seconds in self._waiting.items())
        return left / self._jobs

    def _factor(self, model: str) -> float:
        taken, expected = self._ended.get(model, (0.0, 0.0))
        return taken / expected if expected > 0 else 1.0

    def _expected(self, cell: Cell) -> float:
        cost = self._costs[cell.model]
        if cell.attack == CLEAN:
            return cost.verdict
        attack = self._suite.attack(cell.attack)
        query = cost.gradient if uses_gradients(attack) else cost.query
        verdicts = _LONGER if attack.kind == "minimal norm" else 1.0
        return self._queries[cell.model, attack.key] * query + verdicts * cost.verdict


def _cost_or_none(experiment: Experiment, name: str, models: Mapping[str, Classifier]) -> BatchSeconds:
    try:
        return _cost(experiment, name, models)
    except Exception:
        return BatchSeconds(
            query=0.0, gradient=0.0, verdict=0.0
        )  # its cells will fail, and keep their tracebacks


def _cost(experiment: Experiment, name: str, models: Mapping[str, Classifier]) -> BatchSeconds:
    task = experiment.task(Cell(model=name, attack=CLEAN, epsilon=None, batch=0))
    images = task.images.batch(slice(None))[0].clone().to(models[name].like.device)
    attacked, suite = models[name], experiment.suite
    if isinstance(attacked, GenerativeClassifier):
        attacked = cheaper(attacked, suite.attack_inference)
    judge = judge_of(task, models[name], seed=0)

    @one_inference()
    def decide(model: Classifier, x: Tensor) -> None:
        for _ in range(suite.draws if model.randomized else 1):
            _ask(model, x)

    for model in (attacked, judge):  # builds what all calls share
        _ask(model, images)
    moved = (images + _MOVED * torch.randn_like(images).sign()).clamp(0, 1)
    return BatchSeconds(
        query=_seconds(_ask, attacked, moved),
        gradient=_seconds(_climb, attacked, images) / _CLIMB,
        verdict=_seconds(decide, judge, moved),
    )


def _ask(model: Classifier, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def _climb(model: Classifier, x: Tensor) -> None:
    """Takes some steps of an attack, which goes from the image to the boundary."""
    for _ in range(_CLIMB):
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            logits = model(leaf)
            loss = cross_entropy(logits, logits.argmax(1))
            (slope,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        x = (x if slope is None else x + _MOVED / 2 * slope.sign()).clamp(0, 1)


def _seconds(call: Callable[[Classifier, Tensor], None], model: Classifier, x: Tensor) -> float:
    started = time.monotonic()
    call(model, x)
    return time.monotonic() - started
