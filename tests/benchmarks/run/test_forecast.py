"""The time that a run will take, before and while it runs."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from genrobust.benchmarks.run.cells import Cell, plan
from genrobust.benchmarks.run.forecast import BatchSeconds, Forecast
from genrobust.benchmarks.run.tasks import Experiment, choose_samples
from genrobust.benchmarks.run.toolkits import craft, queries_of
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import Attack
from genrobust.data import ImageDataset
from genrobust.models import CNN
from genrobust.verification import counted_calls

DIGITS = load_suite("digits")
COSTS = {
    "cnn": BatchSeconds(query=1.0, gradient=2.0, verdict=10.0),
    "eabs": BatchSeconds(query=3.0, gradient=5.0, verdict=20.0),
}


def cell(model: str, attack: str, epsilon: float | None = 0.1) -> Cell:
    return Cell(model=model, attack=attack, epsilon=epsilon, batch=0)


def forecast(cells: Iterable[Cell], *, pgd_on_cnn: int = 20, jobs: int = 1) -> Forecast:
    queries = {("cnn", "noise-linf"): 10, ("cnn", "pgd-linf"): pgd_on_cnn, ("eabs", "pgd-linf"): 20}
    return Forecast(DIGITS, COSTS, cells, queries=queries | {("eabs", "ddn"): 40}, jobs=jobs)


@pytest.mark.parametrize(
    ("key", "queries"),
    [("fgsm", 1), ("noise-linf", 10), ("pgd-linf", 20), ("search-l2", 100), ("ddn", 40), ("cw-l2", 60)],
)
def test_queries_are_read_off_the_parameters(key: str, queries: int, cnn: CNN) -> None:
    assert queries_of(DIGITS.attack(key), cnn) == queries
    assert queries_of(replace(DIGITS.attack(key), restarts=3), cnn) == 3 * queries


def own(name: str, **parameters: Any) -> Attack:
    kind: Any = "minimal norm" if name in ("SinglePixel", "LatentDescent") else "fixed epsilon"
    norm: Any = {"SinglePixel": "l0", "LatentDescent": "l2"}.get(name, "linf")
    given = {"norm": norm, "kind": kind, "name": name, "parameters": parameters}
    return Attack(key="own", title="own", toolkit="genrobust", **given)


@pytest.mark.parametrize(
    "attack",
    [
        own("LinfPGD"),
        own("LinfRandomSearch", queries=30),
        own("LinfLogitMatching", steps=7, targets=2),
        own("LinfMultiGradient", steps=5, trial=3, restarts=3),
        own("VrIGSM", steps=3, copies=4),
        own("SinglePixel", pixels=5),
        own("IteratedFGSM", steps=4),
        own("LinfStrongest"),
    ],
    ids=lambda attack: attack.name,
)
def test_an_attack_asks_as_often_as_it_declares(attack: Attack, digits: ImageDataset, cnn: CNN) -> None:
    x, y = digits.batch(slice(30))
    resisting = cnn(x).argmax(1) == y
    x, y = x[resisting][:8], y[resisting][:8]
    epsilon = None if attack.kind == "minimal norm" else 1e-6
    with counted_calls() as calls:
        craft(attack, cnn, x, y, epsilon=epsilon, seed=0)
    assert calls.queries / len(x) == pytest.approx(queries_of(attack, cnn), abs=2)


def test_the_catalogue_and_the_toolkit_say_what_a_suite_leaves_out(cnn: CNN) -> None:
    assert queries_of(replace(DIGITS.attack("search-linf"), parameters={}), cnn) == 1000
    assert queries_of(replace(DIGITS.attack("pgd-linf"), parameters={}), cnn) > 1


def test_the_time_left_is_that_of_queries_and_verdicts() -> None:
    clean = cell("cnn", "clean", None)
    waiting = [clean, cell("cnn", "noise-linf"), cell("cnn", "pgd-linf"), cell("eabs", "ddn", None)]
    parts = [10.0, 10 * 1.0 + 10.0, 20 * 2.0 + 10.0, 40 * 5.0 + 1.5 * 20.0]
    assert forecast(waiting).seconds_left == sum(parts)
    assert forecast(waiting, jobs=2).seconds_left == sum(parts) / 2
    assert forecast(waiting, pgd_on_cnn=60).seconds_left == sum(parts) + 2 * 20 * 2.0


def test_cells_that_end_correct_the_rest_of_their_model() -> None:
    waiting = [cell("cnn", "pgd-linf"), cell("cnn", "noise-linf"), cell("eabs", "pgd-linf")]
    running = forecast(waiting)
    running.end(waiting[0], 100.0)  # twice what was expected
    assert running.seconds_left == 2 * 20.0 + 120.0
    running.end(waiting[2], 60.0)
    assert running.seconds_left == 2 * 20.0
    running.end(waiting[1], 0.0)
    assert running.seconds_left == 0


def test_a_probe_times_every_model_that_waits(digits: ImageDataset, cnn: CNN) -> None:
    suite = replace(DIGITS, batch_size=4)
    experiment = Experiment(suite=suite, dataset=digits, samples=choose_samples(digits, 4, seed=0), seed=0)
    cells = list(plan(suite, ("cnn",), 4))
    assert Forecast.probe(experiment, {"cnn": cnn}, cells).seconds_left > 0
    assert Forecast.probe(experiment, {"cnn": cnn}, []).seconds_left == 0
