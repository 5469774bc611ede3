"""`genrobust bench --fail-under`: a gate for CI."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("duckdb")
pytest.importorskip("joblib")
pytest.importorskip("jinja2")

SUITE = """
dataset = "digits"
samples = 6
models = [{ name = "cnn", title = "CNN" }]
threat_models = [{ norm = "linf", epsilon = 0.4 }, { norm = "l2", epsilon = 0.01 }]
[[attacks]]
key = "strong"
title = "strong PGD"
norm = "linf"
kind = "fixed epsilon"
toolkit = "genrobust"
name = "LinfPGD"
[[attacks]]
key = "weak"
title = "weak PGD"
norm = "l2"
kind = "fixed epsilon"
toolkit = "genrobust"
name = "L2PGD"
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gate") / "gate.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


def bench(genrobust: Callable[..., Any], suite: Path, *arguments: str) -> Any:
    return genrobust("bench", str(suite), "--out", str(suite.parent / "run"), *arguments)


@pytest.mark.parametrize(("bound", "status"), [("", 0), ("0", 0), ("40", 1), ("100", 1)])
def test_the_status_is_1_below_the_bound(
    bound: str, status: int, genrobust: Callable[..., Any], suite: Path
) -> None:
    ran = bench(genrobust, suite, *(["--fail-under", bound] if bound else []))
    told = " ".join((ran.output + ran.errors).split())
    assert ran.status == status, told
    assert "the report is" in told
    assert ("CNN: 0.0 % under strong PGD L\N{INFINITY}, which is below" in told) == bool(status)


@pytest.mark.parametrize("bound", ["-1", "140"])
def test_a_bound_is_a_percentage(bound: str, genrobust: Callable[..., Any], suite: Path) -> None:
    ran = bench(genrobust, suite, "--fail-under", bound)
    assert ran.status == 2
    assert "--fail-under" in ran.errors
