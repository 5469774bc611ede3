"""A stranger's attack: one function in one file, in suites beside PGD and on the page."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from genrobust import evaluate, load_model
from genrobust.attacks import ATTACKS
from genrobust.benchmarks.suites.files import load_suite
from genrobust.cli.main import app
from genrobust.registry import load_plugin

DIGITS = load_suite("digits")

MINE = '''
import torch

from genrobust import register_attack


@register_attack("corner-search", norm="linf", knowledge="score", note="Draws corners of the ball.")
def corner_search(model, x, y, *, epsilon, generator, draws=20):
    """Keeps the corner of the ball with the lowest logit of the class."""
    best = x.clone()
    lowest = model(x).gather(1, y[:, None])[:, 0]
    for _ in range(draws):
        signs = torch.randn(x.shape, generator=generator).sign().to(x)
        trial = (x + epsilon * signs).clamp(0, 1)
        logit = model(trial).gather(1, y[:, None])[:, 0]
        better = logit < lowest
        best[better], lowest[better] = trial[better], logit[better]
    return best


@register_attack("too-far", norm="linf")
def too_far(model, x, y, *, epsilon, generator):
    """Claims everything: it returns black images, far outside of the ball."""
    return torch.zeros_like(x)
'''

SUITE = """
title = "Mine"
dataset = "digits"
samples = 4
batch_size = 2
models = [{ name = "cnn", title = "CNN" }]
threat_models = [{ norm = "linf", epsilon = 0.3 }]
[[attacks]]
key = "pgd"
title = "PGD"
norm = "linf"
kind = "fixed epsilon"
name = "LinfPGD"
parameters = { steps = 3 }

[[attacks]]
key = "corner"
title = "corners"
norm = "linf"
kind = "fixed epsilon"
name = "corner-search"
toolkit = "genrobust"
parameters = { draws = 5 }
"""


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Any]:
    before = {**ATTACKS.items()}
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    yield load_plugin(path)
    ATTACKS._entries = {name: entry for name, entry in ATTACKS._entries.items() if name in before}


def rows(found: Any, attack: str) -> list[dict[str, Any]]:
    return [row for row in found.rows.to_pylist() if row["attack"] == attack]


@pytest.mark.parametrize("jobs", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_it_runs_beside_a_suites_own_and_is_on_the_page(mine: Any, jobs: int | None, tmp_path: Path) -> None:
    model = load_model("cnn", dataset="digits")
    suite = replace(DIGITS, attacks=(DIGITS.attack("pgd-linf"),))
    found = evaluate(
        model,
        suite,
        attacks=[mine.corner_search, "too-far"],
        samples=4,
        jobs=jobs,
        out=tmp_path / "run",
        show_progress=False,
    )
    assert not found.results.failures
    ran = {row["attack"] for row in found.rows.to_pylist()}
    assert ran >= {"clean", "pgd-linf", "corner-search", "too-far"}
    corner = rows(found, "corner-search")
    assert {row["toolkit"] for row in corner} == {"genrobust"}
    assert {row["queries"] for row in corner} == {21}
    assert all(row["distance_linf"] <= 0.1 + 1e-6 for row in corner)
    # Black images outside of the ball are no success, whatever the attack says.
    assert not any(row["success"] for row in rows(found, "too-far"))
    found.report()
    page = (found.folder / "report.html").read_text(encoding="utf-8")
    assert "corner-search" in page


def test_another_source_does_not_resume(mine: Any, tmp_path: Path) -> None:
    model = load_model("cnn", dataset="digits")
    given: dict[str, Any] = {"samples": 2, "out": tmp_path / "run", "show_progress": False}
    suite = replace(DIGITS, attacks=())
    evaluate(model, suite, attacks=["corner-search"], **given)
    path = tmp_path / "mine.py"
    path.write_text(MINE.replace("logit < lowest", "logit > lowest"), encoding="utf-8")
    load_plugin(path)
    with pytest.raises(ValueError, match="attacks"):
        evaluate(model, suite, attacks=["corner-search"], **given)


def test_it_is_named_in_a_toml_suite_and_listed(mine: Any, tmp_path: Path) -> None:
    path = tmp_path / "my-suite.toml"
    path.write_text(SUITE, encoding="utf-8")
    found = evaluate(load_model("cnn", dataset="digits"), path, out=tmp_path / "run", show_progress=False)
    assert not found.results.failures
    assert len(rows(found, "corner")) == len(rows(found, "pgd")) == 4
    assert {row["queries"] for row in rows(found, "corner")} == {6}
    listed = CliRunner().invoke(app, ["attacks", "--toolkit", "genrobust", "--json"])
    assert listed.exit_code == 0, listed.output
    row = next(row for row in json.loads(listed.output) if row["name"] == "corner-search")
    assert (row["norm"], row["knowledge"], row["needs_epsilon"]) == ("linf", "score", True)
    assert row["parameters"] == {"draws": 20}
    assert row["reason"] == "Draws corners of the ball."


def test_an_attack_without_a_norm_says_what_to_do() -> None:
    def plain(model: Any, x: Any, y: Any, *, epsilon: float, generator: Any) -> Any:
        return x

    with pytest.raises(ValueError, match=r"decorate it with @genrobust\.register_attack"):
        evaluate(load_model("cnn", dataset="digits"), attacks=[plain], show_progress=False)
