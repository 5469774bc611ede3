"""The time that a run will take, before and while it runs."""

from dataclasses import replace

import pytest

from genrobust.benchmarks.run.cells import Cell, plan
from genrobust.benchmarks.run.forecast import BatchSeconds, Forecast, queries_of
from genrobust.benchmarks.run.tasks import Experiment, choose_samples
from genrobust.benchmarks.suites.files import load_suite
from genrobust.data import ImageDataset
from genrobust.models import CNN

DIGITS = load_suite("digits")
COSTS = {
    "cnn": BatchSeconds(query=1.0, gradient=2.0, verdict=10.0),
    "eabs": BatchSeconds(query=3.0, gradient=5.0, verdict=20.0),
}


def cell(model: str, attack: str, epsilon: float | None = 0.1) -> Cell:
    return Cell(model=model, attack=attack, epsilon=epsilon, batch=0)


@pytest.mark.parametrize(
    ("key", "queries"),
    [("fgsm", 1), ("noise-linf", 10), ("pgd-linf", 20), ("search-l2", 100), ("ddn", 40), ("cw-l2", 60)],
)
def test_queries_are_read_off_the_parameters(key: str, queries: int) -> None:
    assert queries_of(DIGITS.attack(key)) == queries
    assert queries_of(replace(DIGITS.attack(key), restarts=3)) == 3 * queries


def test_the_time_left_is_that_of_queries_and_verdicts() -> None:
    clean = cell("cnn", "clean", None)
    waiting = [clean, cell("cnn", "noise-linf"), cell("cnn", "pgd-linf"), cell("eabs", "ddn", None)]
    parts = [10.0, 10 * 1.0 + 10.0, 20 * 2.0 + 10.0, 40 * 5.0 + 1.5 * 20.0]
    assert Forecast(DIGITS, COSTS, waiting).seconds_left == sum(parts)
    assert Forecast(DIGITS, COSTS, waiting, jobs=2).seconds_left == sum(parts) / 2
    drawn = Forecast(DIGITS, COSTS, waiting, draws={("cnn", "pgd-linf"): 3})
    assert drawn.seconds_left == sum(parts) + 2 * 20 * 2.0


def test_cells_that_end_correct_the_rest_of_their_model() -> None:
    waiting = [cell("cnn", "pgd-linf"), cell("cnn", "noise-linf"), cell("eabs", "pgd-linf")]
    forecast = Forecast(DIGITS, COSTS, waiting)
    forecast.end(waiting[0], 100.0)  # twice what was expected
    assert forecast.seconds_left == 2 * 20.0 + 120.0
    forecast.end(waiting[2], 60.0)
    assert forecast.seconds_left == 2 * 20.0
    forecast.end(waiting[1], 0.0)
    assert forecast.seconds_left == 0


def test_a_probe_times_every_model_that_waits(digits: ImageDataset, cnn: CNN) -> None:
    suite = replace(DIGITS, batch_size=4)
    experiment = Experiment(suite=suite, dataset=digits, samples=choose_samples(digits, 4, seed=0), seed=0)
    cells = list(plan(suite, ("cnn",), 4))
    assert Forecast.probe(experiment, {"cnn": cnn}, cells).seconds_left > 0
    assert Forecast.probe(experiment, {"cnn": cnn}, []).seconds_left == 0
