"""What is counted at one epsilon: entropy, detection, and what reclassification recovers."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import SMALL, make_run

from genrobust.benchmarks.report.document import describe
from genrobust.benchmarks.report.numbers import numbers
from genrobust.benchmarks.run.cells import Cell
from genrobust.benchmarks.run.query import confusion, rows_as_csv
from genrobust.benchmarks.run.results import Results, load_results
from genrobust.benchmarks.statistics import Rejections, Targeted, summarise
from genrobust.benchmarks.suites.model import CLEAN, Expected

EXPECTED = (
    Expected(model="cnn", attack="fgsm", quantity="detection", epsilon=0.1, value=0.5),
    Expected(model="cnn", attack="fgsm", quantity="reclassified", epsilon=0.1, value=0.9),
    Expected(model="cnn", attack=CLEAN, quantity="recovered", value=1.0),
)
ONE = replace(SMALL, models=SMALL.models[:1], attacks=(SMALL.attack("fgsm"),), expected=EXPECTED)
LABELS = [0, 1, 2, 3]


@pytest.fixture
def refusing(tmp_path: Path) -> Results:
    """At 0.1 the second and third of four images are rejected; three of four examples fool the attacked."""

    def change(cell: Cell, columns: dict[str, Any]) -> None:
        columns["label"] = np.asarray(LABELS)
        columns["clean_prediction"] = columns["prediction"] = np.asarray(LABELS)
        columns["entropy"] = np.full(4, 0.125 if cell.epsilon is None else cell.epsilon)
        columns["success"] = np.zeros(4, bool)
        if cell.epsilon != 0.1:
            return
        columns["prediction"] = np.asarray([1, 4, 4, 3])  # 4 is to reject
        columns["rejected"] = np.asarray([False, True, True, False])
        columns["claimed"] = np.asarray([True, True, True, False])
        columns["success"] = np.asarray([True, False, False, False])
        columns["reclassified"] = [None, 1, 0, None]
        columns["margin"] = [-1.0, 0.5, 2.0, -2.0]

    return load_results(make_run(tmp_path, ONE, samples=4, change=change))


def test_shares_by_hand(refusing: Results) -> None:
    (found,) = summarise(refusing).rejections
    assert isinstance(found, Rejections)
    assert (found.model, found.key, found.epsilon) == ("cnn", "fgsm", 0.1)
    shares = (found.detection, found.reclassified, found.recovered)
    counts = [(share.count, share.total) for share in shares if share is not None]
    assert counts == [(2, 3), (1, 2), (2, 4)]


def test_entropies_are_those_of_one_epsilon(refusing: Results) -> None:
    entropies = {entry.epsilon: entry.value for entry in summarise(refusing).entropies}
    assert entropies == pytest.approx({None: 0.125, 0.05: 0.05, 0.1: 0.1, 0.2: 0.2})


def test_the_papers_numbers_stand_beside_them(refusing: Results) -> None:
    values = {value.quantity: value for value in summarise(refusing).paper}
    assert values["detection"].measured == pytest.approx(2 / 3)
    assert values["reclassified"].measured == 0.5
    assert values["recovered"].measured == 1.0


def test_nothing_rejected_is_nothing_measured(tmp_path: Path) -> None:
    found = summarise(load_results(make_run(tmp_path, ONE)))
    assert found.rejections == ()
    measured = {value.quantity: value.measured for value in found.paper}
    assert measured["reclassified"] is None
    assert measured["detection"] == 0.0


def test_the_report_has_both_tables(refusing: Results) -> None:
    shown = describe(refusing).tables
    (entropy,) = shown["entropy"]
    assert [row[1].text for row in entropy.rows] == ["0.125", "0.05", "0.1", "0.2"]
    assert [table.key for table in shown["rejections"]] == ["models-that-reject", "rejections"]


def test_confusion_counts_predictions_in_rows(refusing: Results) -> None:
    # Of three epsilons, 0.1 has one wrong label and two rejections.
    lines = list(csv.reader(io.StringIO(rows_as_csv(confusion(refusing.folder, "cnn")))))
    assert lines[0] == ["predicted", "of 0", "of 1", "of 2", "of 3"]
    assert [list(map(int, line[1:])) for line in lines[1:]] == [
        *([2, 0, 0, 0], [1, 2, 0, 0]),
        *([0, 0, 2, 0], [0, 0, 0, 3]),
    ]
    with pytest.raises(ValueError, match="it has none"):
        confusion(refusing.folder, "it's")


# Targeted attacks: five images, all with the label 0 and the goal 1. The second is wrong when clean, and the
# last is wrong but misses its goal.
TARGETED = replace(
    SMALL,
    models=SMALL.models[:1],
    attacks=(replace(SMALL.attack("ddn"), targeted=True),),
    expected=(
        Expected(model="cnn", attack="ddn", quantity="reached", value=0.5, images=10),
        Expected(model="cnn", attack="ddn", quantity="mean_distance", value=1.5),
    ),
)


@pytest.fixture
def aimed(tmp_path: Path) -> Results:
    def change(cell: Cell, columns: dict[str, Any]) -> None:
        columns["label"] = np.zeros(5, int)
        columns["clean_prediction"] = np.asarray([0, 1, 0, 0, 0])
        if cell.attack == CLEAN:
            return
        columns["goal"] = np.ones(5, int)
        columns["prediction"] = [1, 1, 0, None, 2]
        columns["success"] = np.asarray([True, True, False, False, True])
        columns["distance_l2"] = np.asarray([1.0, 0.25, 9.0, np.inf, 3.0])

    return load_results(make_run(tmp_path, TARGETED, samples=5, change=change))


def test_what_reached_its_target_and_how_far_successes_are(aimed: Results) -> None:
    (found,) = summarise(aimed).targeted
    assert isinstance(found, Targeted)
    assert (found.model, found.key, found.epsilon) == ("cnn", "ddn", None)
    assert (found.reached.count, found.reached.total) == (2, 5)
    assert found.length == pytest.approx(2.0)  # of 1 and 3
    assert found.low == 0.0
    assert found.high == pytest.approx(2 + 12.7062047 * np.sqrt(2) / np.sqrt(2))  # t of one degree of freedom


def test_targets_and_lengths_stand_beside_the_papers(aimed: Results) -> None:
    values = {value.quantity: value for value in summarise(aimed).paper}
    assert values["reached"].measured == pytest.approx(0.4)
    assert values["mean_distance"].measured == pytest.approx(2.0)
    assert values["mean_distance"].difference == pytest.approx(0.5)
    (table,) = describe(aimed).tables["targeted"]
    assert [cell.text for cell in table.rows[0][2:]] == ["40\N{NO-BREAK SPACE}%", "2"]
    paper = {row[2].text: (row[3].text, row[4].text) for row in describe(aimed).tables["paper"][0].rows}
    assert paper["mean distance of successes"] == ("1.5", "2")
    assert numbers(aimed)["targeted"][0]["reached"]["count"] == 2


def test_an_attack_without_target_has_no_such_table(tmp_path: Path) -> None:
    found = load_results(make_run(tmp_path, replace(TARGETED, attacks=(SMALL.attack("ddn"),))))
    assert summarise(found).targeted == ()
    assert describe(found).tables["targeted"] == ()
    values = {value.quantity: value.measured for value in summarise(found).paper}
    assert values["reached"] is None
