"""The speed benchmark reports what it promises, and its plain reference is the published schedule."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genrobust.benchmarks.speed.reference import PlainInference

Make = Callable[..., Any]


@pytest.mark.slow
def test_command_writes_every_figure(tmp_path: Path) -> None:
    report, picture = tmp_path / "speed.json", tmp_path / "speed.png"
    command = [sys.executable, "-m", "genrobust.benchmarks.speed", "--quick", "--repeats", "1"]
    files = ["--json", str(report), "--png", str(picture)]
    done = subprocess.run([*command, "--models", "abs", *files], capture_output=True, text=True, check=True)
    assert "exponent" in done.stdout
    results = json.loads(report.read_text())
    assert results["budget"] == {"candidates": 800, "steps": 5}
    rows = [row for row in results["against_reference"] if row["device"] == "cpu"]
    assert [row["batch_size"] for row in rows] == [1, 10]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["reference_ms_per_image"] / row["ms_per_image"])
        assert 1 <= row["evaluations_per_problem"] <= 7
    assert [row["classes"] for row in results["classes"]] == [10, 20, 10, 20]
    assert [row["candidates"] for row in results["candidates"]] == [500, 1000]
    assert len(results["peak"]) == 2
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("name", ["abs", "eabs"])
def test_the_plain_reference_is_the_published_schedule(name: str, make_model: Make, images: Make) -> None:
    variant = {"variational": False} if name == "eabs" else {}
    model = make_model(name, dtype=torch.float32, **variant).with_inference(method="adam", steps=20)
    x = images(model, 5)
    expected = -model.scores_to_logits(model.class_scores(x)) * model.temperature
    torch.testing.assert_close(PlainInference(model).losses(x), expected, rtol=1e-3, atol=1e-3)
