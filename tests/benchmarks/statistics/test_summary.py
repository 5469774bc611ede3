"""What is counted where a model refuses, a run is unfinished, or a paper has a number."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from runs import SMALL, make_run

from genrobust.benchmarks.report import render_table
from genrobust.benchmarks.report.tables import tables
from genrobust.benchmarks.report.words import NBSP
from genrobust.benchmarks.run.cells import Cell
from genrobust.benchmarks.run.results import Results, load_results
from genrobust.benchmarks.statistics import Row, Summary, mcnemar, summarise
from genrobust.benchmarks.suites.model import CLEAN, Expected, Suite

ONE = replace(SMALL, attacks=(SMALL.attack("ddn"), SMALL.attack("deepfool-l2")), expected=())
INFINITE = float("inf")


def row(summary: Summary, key: str) -> Row:
    return next(row for row in summary.rows if row.key == key)


def written(values: dict[str, dict[str, list[Any]]]) -> Any:
    """Gives a change that sets columns: by attack, then by column."""

    def change(cell: Cell, columns: dict[str, Any]) -> None:
        for name, column in values.get(cell.attack, {}).items():
            columns[name] = np.asarray(column)

    return change


@pytest.fixture
def refusing(tmp_path: Path) -> Results:
    """Right, refused clean, wrong clean, broken, refused, and refused by one attack and broken by another."""
    right = [0, 10, 1, 3, 4, 5]  # 10 is to refuse
    none = [False] * 6
    values: dict[str, dict[str, list[Any]]] = {
        CLEAN: {
            "clean_prediction": right,
            "prediction": right,
            "label": [0, 1, 2, 3, 4, 5],
            "rejected": [False, True, False, False, False, False],
        },
        "ddn": {
            "success": [False, False, True, True, False, False],
            "rejected": [False, False, False, False, True, True],
            "distance_l2": [0.5, 0.5, 0.2, 1.0, 1.2, 0.4],
        },
        "deepfool-l2": {
            "success": [False, False, True, False, False, True],
            "rejected": none,
            "distance_l2": [0.5, 0.5, 0.1, 0.3, 0.3, 1.4],
        },
    }
    for key in ("ddn", "deepfool-l2"):
        values[key] |= {"clean_prediction": right, "label": [0, 1, 2, 3, 4, 5], "claimed": [True] * 6}
    folder = make_run(tmp_path, ONE, models=["eabs"], samples=6, change=written(values))
    return load_results(folder)


def test_refusing_is_neither_right_nor_wrong(refusing: Results) -> None:
    summary = summarise(refusing)
    clean, union = row(summary, CLEAN), row(summary, "all-l2")
    assert [clean.accuracy("eabs").count, clean.error("eabs").count, clean.rejection("eabs").count] == [
        4,
        1,
        1,
    ]
    assert union.robust["eabs"].tolist() == [True, False, False, False, False, False]
    assert union.rejected["eabs"].tolist() == [False, True, False, False, True, False]
    assert union.error("eabs").count == 3
    assert union.coverage("eabs").value == pytest.approx(4 / 6)
    risk = union.risk("eabs")
    assert risk is not None
    assert (risk.count, risk.total) == (3, 4)


def test_shares_of_a_refusing_model_add_up(refusing: Results) -> None:
    for entry in summarise(refusing).grid:
        shares = (entry.accuracy("eabs"), entry.error("eabs"), entry.rejection("eabs"))
        assert sum(share.count for share in shares) == 6


def test_a_model_that_refuses_everything_has_no_risk(tmp_path: Path) -> None:
    change = written({key: {"rejected": [True] * 4} for key in (CLEAN, "ddn", "deepfool-l2")})
    results = load_results(make_run(tmp_path, ONE, models=["eabs"], samples=4, change=change))
    clean = row(summarise(results), CLEAN)
    assert clean.risk("eabs") is None
    assert clean.coverage("eabs").count == 0


def test_the_terminal_says_what_is_wrong_and_what_rejected(refusing: Results) -> None:
    with (console := Console(width=100)).capture() as captured:
        console.print(render_table(refusing))
    lines = [line.strip() for line in captured.get().splitlines()]
    below = {line.split("  ")[0]: after for line, after in pairwise(lines)}
    assert below["clean"] == "17 % wrong, 17 % rejected"
    assert below["all attacks"] == "50 % wrong, 33 % rejected"


def test_medians_by_hand(refusing: Results) -> None:
    medians = {median.key: median for median in summarise(refusing).medians}
    # Errors: DDN at 1.0 and, clean, at 0; DeepFool at 1.4 and, clean, at 0.
    assert medians["ddn"].value == INFINITE
    assert medians["all-l2"].value == INFINITE
    assert medians["all-l2"].low == 0.0
    assert medians["all-l2"].total == 6


def test_health_is_counted_by_model_and_attack(tmp_path: Path) -> None:
    change = written(
        {
            "ddn": {
                "claimed": [True, True, True, False],
                "success": [True, False, False, False],
                "fell_first": [True, True, True, False],
                "valid": [True, True, False, True],
                "zero_gradient": [False, True, True, True],
                "unstable": [True, True, False, False],
                "queries": [10, 20, 30, 40],
            }
        }
    )
    summary = summarise(load_results(make_run(tmp_path, ONE, models=["cnn"], samples=4, change=change)))
    health = next(entry for entry in summary.claims if entry.attack == "ddn")
    assert vars(health) == {
        "model": "cnn",
        "attack": "ddn",
        "examples": 4,
        "claimed": 3,
        "fell": 2,
        "fell_first": 3,
        "invalid": 1,
        "zero_gradient": 3,
        "unstable": 2,
        "undefined": 0,
        "unchanged": 0,
        "reason": "",
    }
    cost = next(entry for entry in summary.costs if entry.attack == "ddn")
    assert (cost.queries, cost.gradients, cost.seconds) == (25, 20, 0.25)


def test_verdicts_of_one_draw_most_draws_and_every_draw_stand_beside_one_another(tmp_path: Path) -> None:
    by = {
        "clean": {"right": [True] * 4, "right_worst": [True, True, True, False]},
        "ddn": {
            "success": [True, False, False, False],
            "success_first": [False, False, False, False],
            "success_worst": [True, True, False, False],
            "right": [True] * 4,
            "right_worst": [True, True, True, False],
            "distance_l2": [0.1] * 4,
        },
    }
    suite = replace(ONE, attacks=ONE.attacks[:1])
    results = load_results(make_run(tmp_path, suite, models=["eabs"], samples=4, change=written(by)))
    summary = summarise(results)
    shares = {
        entry.row.key: (entry.first.value, entry.majority.value, entry.worst.value) for entry in summary.drawn
    }
    assert shares == {CLEAN: (1.0, 1.0, 0.75), "ddn": (1.0, 0.75, 0.25)}
    assert row(summary, "ddn").accuracy("eabs").value == 0.75
    (table,) = (t for t in tables(results, summary)["leaderboard"] if t.key == "draws")
    assert [cell.text.replace(NBSP, "") for cell in table.rows[1]][2:] == ["100%", "75%", "25%"]
    (note,) = (note for note in render_table(results, summary).notes if "the worst" in note)
    assert note.endswith("worst: clean 100%, 100%, 75%.")


def test_an_attack_is_compared_with_the_nearest_example_of_all(tmp_path: Path) -> None:
    found = {
        "ddn": {"success": [True, True, False, False], "distance_l2": [1.0, 2.5, 1.0, 1.0]},
        "deepfool-l2": {"success": [True, False, True, False], "distance_l2": [2.0, 1.0, 0.5, 1.0]},
    }
    results = load_results(make_run(tmp_path, ONE, models=["cnn"], samples=4, change=written(found)))
    summary = summarise(results)
    epsilons = ONE.threat_model("l2").epsilons
    assert epsilons == (0.5, 1.0, 1.5, 2.0)
    values = {entry.key: entry.value for entry in summary.optimalities}
    # All together win the first image at three epsilons and the third at four; DDN the first at three, and
    # DeepFool the first at one and the third at four.
    assert values == pytest.approx({"ddn": 3 / 7, "deepfool-l2": 5 / 7})
    (table,) = (t for t in tables(results, summary)["attacks"] if t.key == "optimality")
    assert [[cell.text for cell in line][1] for line in table.rows] == ["0.43", "0.71"]
    assert [line[1].strong for line in table.rows] == [False, True]
    (note,) = (note for note in render_table(results, summary).notes if "Nearest to all" in note)
    assert note.endswith("0.71.")


def test_attacks_at_one_epsilon_are_compared_by_what_they_win_there(tmp_path: Path) -> None:
    """An attack that wins one of three images is a third as good, however near its example is."""
    threat = replace(ONE.threat_model("l2"), curve_epsilons=())
    suite = replace(ONE, threat_models=(threat,))
    found = {
        "ddn": {"success": [True, True, True, False], "distance_l2": [threat.epsilon] * 4},
        "deepfool-l2": {"success": [True, False, False, False], "distance_l2": [0.99 * threat.epsilon] * 4},
    }
    summary = summarise(
        load_results(make_run(tmp_path, suite, models=["cnn"], samples=4, change=written(found)))
    )
    values = {entry.key: entry.value for entry in summary.optimalities}
    assert values == pytest.approx({"ddn": 1, "deepfool-l2": 1 / 3})


def test_where_there_is_one_epsilon_a_curve_goes_from_the_clean_accuracy_to_the_union(tmp_path: Path) -> None:
    attacks = tuple(replace(attack, kind="fixed epsilon", every_epsilon=False) for attack in ONE.attacks)
    suite = replace(ONE, threat_models=(replace(ONE.threat_model("l2"), curve_epsilons=()),), attacks=attacks)
    found = {
        "ddn": {"success": [True, False, False, False], "distance_l2": [1.0] * 4},
        "deepfool-l2": {"success": [False, True, False, False], "distance_l2": [1.0] * 4},
    }
    run = make_run(tmp_path, suite, models=["cnn"], samples=4, change=written(found))
    (curve,) = summarise(load_results(run)).curves
    assert curve.epsilons.tolist() == [0.0, 1.5]
    assert curve.accuracy.tolist() == [1.0, 0.5]
    assert len(curve.attacks) == 2
    assert not curve.exact


def test_transferred_examples_claim_nothing(tmp_path: Path) -> None:
    against_cnn = tuple(replace(attack, against="cnn") for attack in ONE.attacks)
    claims = written({attack.key: {"claimed": [True] * 4, "success": [False] * 4} for attack in against_cnn})
    suite = replace(ONE, attacks=against_cnn)
    results = load_results(make_run(tmp_path, suite, models=["cnn", "eabs"], samples=4, change=claims))
    found = {entry.model: entry.claimed for entry in summarise(results).claims}
    assert found == {"cnn": 4, "eabs": 0}
    (note,) = (note for note in render_table(results).notes if "not confirm" in note)
    assert note.endswith("CNN 8 of 8.")


def missing_batch(cell: Cell) -> bool:
    return cell.attack == "ddn" and cell.batch == 1


def test_an_unfinished_run_counts_what_is_there(tmp_path: Path) -> None:
    whole = summarise(load_results(make_run(tmp_path / "whole", ONE, samples=20)))
    part = make_run(tmp_path / "part", ONE, samples=20, left_out=missing_batch)
    summary = summarise(load_results(part, partial=True))
    assert summary.missing == 2
    ddn, union = row(summary, "ddn"), row(summary, "all-l2")
    assert ddn.accuracy("cnn").total == union.accuracy("cnn").total == 10
    assert ddn.accuracy("cnn").count == row(whole, "ddn").robust["cnn"][:10].sum()
    assert union.accuracy("cnn").count == row(whole, "all-l2").robust["cnn"][:10].sum()
    assert row(summary, "deepfool-l2").accuracy("cnn").total == 20
    ((_, _, p),) = union.comparisons()
    both = [row(whole, "all-l2").robust[model][:10] for model in ("cnn", "eabs")]
    assert p == pytest.approx(mcnemar(*both))


def test_a_run_with_some_epsilons_says_nothing_of_the_attack_yet(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path, samples=10, left_out=lambda cell: cell.attack == "fgsm" and cell.epsilon == 0.2
    )
    summary = summarise(load_results(folder, partial=True))
    assert {row.key for row in summary.rows} == {CLEAN, "pgd-linf", "ddn", "deepfool-l2", "all-l2"}


def test_a_run_that_has_just_begun_has_no_numbers(tmp_path: Path) -> None:
    results = load_results(make_run(tmp_path, samples=4, left_out=lambda _: True), partial=True)
    summary = summarise(results)
    assert (summary.rows, summary.curves, summary.medians, summary.claims) == ((), (), (), ())
    assert summary.missing > 0


def beside(suite: Suite, folder: Path, expected: Expected) -> Any:
    results = load_results(make_run(folder, replace(suite, expected=(expected,)), samples=40))
    (value,) = summarise(results).paper
    return value


def test_a_number_of_the_paper_stands_beside_the_same_number_of_ours(tmp_path: Path) -> None:
    results = load_results(make_run(tmp_path / "plain", SMALL, samples=40))
    summary = summarise(results)
    ddn = row(summary, "ddn").accuracy("eabs")
    within = beside(
        SMALL, tmp_path / "a", Expected(model="eabs", attack="ddn", value=ddn.value - 0.01, images=1000)
    )
    assert (within.measured, within.low, within.high) == (ddn.value, ddn.low, ddn.high)
    assert within.difference == pytest.approx(0.01)
    assert (within.epsilon, within.norm, within.verdict) == (1.5, "l2", "within")
    far = beside(SMALL, tmp_path / "b", Expected(model="eabs", attack="ddn", value=0.01, images=1000))
    assert far.verdict == "differs"
    other = beside(SMALL, tmp_path / "c", Expected(model="eabs", attack="fgsm", value=0.5, epsilon=0.05))
    elsewhere = next(r for r in summary.grid if (r.key, r.epsilon) == ("fgsm", 0.05))
    assert other.measured == elsewhere.accuracy("eabs").value
    union = beside(SMALL, tmp_path / "d", Expected(model="cnn", attack="all", norm="l2", value=0.5))
    assert union.measured == row(summary, "all-l2").accuracy("cnn").value
    median = beside(
        SMALL, tmp_path / "e", Expected(model="cnn", attack="ddn", value=1.0, quantity="median_distance")
    )
    mine = next(m for m in summary.medians if (m.model, m.key) == ("cnn", "ddn"))
    assert (median.measured, median.epsilon) == (mine.value, None)
    assert median.difference_low == pytest.approx(mine.low - 1.0)
    unknown = beside(SMALL, tmp_path / "f", Expected(model="cnn", attack="fgsm", value=0.5, epsilon=0.07))
    assert (unknown.measured, unknown.verdict) == (None, "not measured")


def test_a_paper_with_fewer_images_leaves_more_room_for_its_median(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": "cnn", "attack": "ddn", "value": 1.0, "quantity": "median_distance"}
    exact = beside(SMALL, tmp_path / "a", Expected(**settings))
    sampled = beside(SMALL, tmp_path / "b", Expected(**settings, images=40))
    spread = exact.difference - exact.difference_low
    assert sampled.difference - sampled.difference_low == pytest.approx(spread * 2**0.5)


def test_curves_have_bands_and_can_be_thinned(tmp_path: Path) -> None:
    summary = summarise(load_results(make_run(tmp_path, samples=40)))
    curve = next(curve for curve in summary.curves if curve.exact)
    assert (curve.low <= curve.accuracy).all()
    assert (curve.accuracy <= curve.high).all()
    assert len(curve.epsilons) > 12
    thin = curve.thinned(12)
    assert len(thin.epsilons) == 12
    assert (thin.epsilons[[0, -1]] == curve.epsilons[[0, -1]]).all()
    assert np.isin(thin.accuracy, curve.accuracy).all()
    with pytest.raises(ValueError, match="`points`"):
        curve.thinned(1)


def test_models_under_fewer_attacks_are_not_ranked_with_the_others(tmp_path: Path) -> None:
    models = (*SMALL.models, replace(SMALL.models[0], name="abs", title="ABS"))
    suite = replace(
        ONE, models=models, attacks=(ONE.attacks[0], replace(ONE.attacks[1], for_models=("cnn", "abs")))
    )
    results = load_results(make_run(tmp_path, suite))
    summary = summarise(results)
    union = row(summary, "all-l2")
    assert union.comparable == ("cnn", "abs")
    assert [(first, second) for first, second, _ in union.comparisons()] == [("cnn", "abs")]
    assert len(list(row(summary, "ddn").comparisons())) == 3
    assert row(summary, "deepfool-l2").comparable == ("cnn", "abs")
    assert union.robust["eabs"].tolist() == row(summary, "ddn").robust["eabs"].tolist()
    leaderboard = tables(results, summary)["leaderboard"][0]
    cells = {line[0].text: line[2] for line in leaderboard.rows}
    assert cells["E-ABS"].note == "1 of 2 attacks"
    assert not cells["E-ABS"].strong
    assert cells["CNN"].note == ""


def test_a_second_gradient_counts_in_the_union_and_bars_no_comparison(tmp_path: Path) -> None:
    second = replace(ONE.attacks[1], gradient="proposal", for_models=("eabs",))
    results = load_results(make_run(tmp_path, replace(ONE, attacks=(ONE.attacks[0], second))))
    summary = summarise(results)
    union = row(summary, "all-l2")
    assert union.comparable == ("cnn", "eabs")
    assert len(list(union.comparisons())) == 1
    assert union.attacks["eabs"] - union.attacks["cnn"] == {"deepfool-l2"}
    both = [row(summary, key).robust["eabs"] for key in ("ddn", "deepfool-l2")]
    assert union.robust["eabs"].tolist() == (both[0] & both[1]).tolist()
    assert [line[2].note for line in tables(results, summary)["leaderboard"][0].rows] == ["", ""]
