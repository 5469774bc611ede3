"""Which differences of two runs are more than chance."""

import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from runs import SMALL, make_run
from typer.testing import CliRunner

from genrobust.benchmarks.report.compare import Comparisons, compare_runs, render_comparisons
from genrobust.benchmarks.run.cells import Cell
from genrobust.benchmarks.run.results import load_results
from genrobust.benchmarks.suites.files import load_suite
from genrobust.cli.main import app

DIGITS = load_suite("digits")

SUITE = replace(SMALL, attacks=(SMALL.attack("fgsm"), SMALL.attack("ddn")))


def stronger(cell: Cell, columns: dict[str, Any]) -> None:
    """DDN breaks E-ABS always, close by."""
    if (cell.model, cell.attack) == ("eabs", "ddn"):
        count = len(columns["sample"])
        columns["success"] = np.ones(count, bool)
        for norm in ("l2", "linf", "l1", "l0"):
            columns[f"distance_{norm}"] = np.full(count, 0.01)


def compared(first: Path, second: Path, **settings: Any) -> Comparisons:
    runs = [load_results(folder, partial=True) for folder in (first, second)]
    return compare_runs(runs[0], runs[1], **settings)


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path, SUITE)
    found = compared(run, run)
    # clean; FGSM and DDN at every epsilon (3 and 4); two models
    assert len(found.compared) == 2 * (1 + 3 + 4)
    assert found.significant == ()
    assert found.settings == ()
    assert {entry.p for entry in found.compared} == {1.0}


def test_the_same_images_are_compared_pair_by_pair(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", SUITE, samples=40)
    second = make_run(tmp_path / "b", SUITE, samples=40, change=stronger)
    found = compared(first, second)
    assert {(entry.model, entry.attack) for entry in found.significant} == {("eabs", "ddn")}
    worst = next(entry for entry in found.compared if (entry.attack, entry.epsilon) == ("ddn", 0.5))
    entry = next(e for e in found.significant if e.epsilon == 0.5)
    assert worst.test == entry.test == "McNemar"
    lost = entry.first.count - entry.second.count
    assert entry.second.count == 0
    assert entry.p == pytest.approx(2 * 0.5**lost)
    assert entry.corrected >= entry.p
    assert found.settings == ()


def test_other_images_are_compared_as_two_shares(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", SUITE, samples=40)
    second = make_run(tmp_path / "b", SUITE, samples=30, seed=1, change=stronger)
    found = compared(first, second)
    assert {entry.test for entry in found.compared} == {"Fisher"}
    assert {(entry.model, entry.attack) for entry in found.significant} == {("eabs", "ddn")}
    differing = {setting.name: (setting.first, setting.second) for setting in found.settings}
    assert differing == {"samples": (40, 30), "seed": (0, 1)}


def test_holm_counts_every_comparison(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", SUITE, samples=12)
    second = make_run(tmp_path / "b", SUITE, samples=12, change=stronger)
    found = compared(first, second)
    smallest = found.compared[0]
    assert smallest.corrected == pytest.approx(min(1.0, smallest.p * len(found.compared)))
    assert compared(first, second, level=math.nextafter(smallest.corrected, 0)).significant == ()
    with pytest.raises(ValueError, match="`level`"):
        compare_runs(load_results(first), load_results(second), level=0)


def test_what_only_one_run_has_is_counted_and_settings_are_named(tmp_path: Path) -> None:
    changed = replace(
        SUITE,
        attacks=(replace(SUITE.attacks[0], restarts=3), SUITE.attacks[1]),
        overshoots=(1.0, 2.0),
    )
    first = make_run(tmp_path / "a", SUITE)
    second = make_run(tmp_path / "b", changed, models=["cnn"])
    found = compared(first, second)
    assert found.alone == (8, 0)
    names = {setting.name for setting in found.settings}
    assert {"suite.attacks.fgsm.restarts", "suite.overshoots", "models.eabs.weights"} <= names


def test_unions_of_other_attacks_are_not_compared(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", replace(SMALL, attacks=SMALL.attacks[2:]))
    second = make_run(tmp_path / "b", replace(SMALL, attacks=(*SMALL.attacks[2:], SMALL.attacks[0])))
    assert {entry.attack for entry in compared(first, second).compared} >= {"all-l2"}
    third = make_run(tmp_path / "c", replace(SMALL, attacks=(*SMALL.attacks[2:], DIGITS.attack("cw-l2"))))
    found = compared(first, third)
    assert {entry.attack for entry in found.compared} == {"clean", "ddn", "deepfool-l2"}
    assert found.alone == (2, 2 + 8)


def test_an_unfinished_run_is_compared_by_what_it_has(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", SUITE)
    second = make_run(tmp_path / "b", SUITE, left_out=lambda cell: cell.batch == 1 and cell.attack == "ddn")
    tests = {entry.attack: entry.test for entry in compared(first, second).compared}
    assert tests == {"clean": "McNemar", "fgsm": "McNemar", "ddn": "Fisher"}


def test_what_is_printed(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", SUITE, samples=40)
    second = make_run(tmp_path / "b", SUITE, samples=40, seed=3, change=stronger)
    found = compared(first, second)

    def shown(**settings: bool) -> str:
        output = StringIO()
        titles = {"cnn": "CNN", "eabs": "E-ABS"}
        Console(file=output, width=200).print(render_comparisons(found, titles, **settings))
        return output.getvalue()

    brief = shown()
    assert f"Accuracies compared: 16; significantly different: {len(found.significant)} " in brief
    assert "E-ABS" in brief
    assert "CNN" not in brief
    assert "seed: 0 in A, 3 in B" in brief
    assert shown(everything=True).count("CNN") == 8


def test_the_command(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", SUITE, samples=40)
    second = make_run(tmp_path / "b", SUITE, samples=40, change=stronger)
    command = ["compare", str(first), str(second)]
    printed = CliRunner().invoke(app, command)
    assert printed.exit_code == 0, printed.output
    assert "The settings are the same." in printed.output
    content = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert content["compared"] == 16
    assert len(content["comparisons"]) == content["significant"] > 0
    assert all(entry["difference"] < 0 for entry in content["comparisons"])
    everything = json.loads(CliRunner().invoke(app, [*command, "--json", "--all"]).output)
    assert len(everything["comparisons"]) == 16
