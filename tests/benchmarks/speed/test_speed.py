"""The speed benchmark reports what it promises, and its plain reference is the published schedule."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genrobust.adapters import available
from genrobust.benchmarks.speed import agreement
from genrobust.benchmarks.speed.__main__ import main
from genrobust.benchmarks.speed.overhead import measure_overhead
from genrobust.benchmarks.speed.partial import run_in_batches
from genrobust.benchmarks.speed.reference import PlainInference
from genrobust.benchmarks.speed.studies import STUDIES

Make = Callable[..., Any]


@pytest.mark.matrix  # a minute and a half; the studies have their own tests
def test_command_writes_every_figure(tmp_path: Path) -> None:
    report, picture = tmp_path / "speed.json", tmp_path / "speed.png"
    command = [sys.executable, "-m", "genrobust.benchmarks.speed", "--quick", "--repeats", "1"]
    command += ["--models", "abs", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "exponent" in done.stdout
    results = json.loads(report.read_text())
    assert results["budget"] == {"candidates": 800, "steps": 5}
    rows = [row for row in results["against_reference"] if row["device"] == "cpu"]
    assert [row["batch_size"] for row in rows] == [1, 10]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["reference_ms_per_image"] / row["ms_per_image"])
        assert 1 <= row["evaluations_per_problem"] <= 7
    on_cpu = {name: [r for r in results[name] if r["device"] == "cpu"] for name in ("classes", "candidates")}
    assert [row["classes"] for row in on_cpu["classes"]] == [10, 20, 10, 20]
    assert [row["candidates"] for row in on_cpu["candidates"]] == [500, 1000]
    assert len(results["peak"]) == 2
    assert picture.stat().st_size > 10_000


def test_a_figure_that_is_no_png_is_named_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--png", "a.pdf"])
    assert stop.value.code == 2
    assert "`--png` to end in .png, but got a.pdf" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["abs", "eabs"])
def test_the_plain_reference_is_the_published_schedule(name: str, make_model: Make, images: Make) -> None:
    variant = {"variational": False} if name == "eabs" else {}
    model = make_model(name, dtype=torch.float32, **variant).with_inference(method="adam", steps=20)
    x = images(model, 5)
    expected = -model.scores_to_logits(model.class_scores(x)) * model.temperature
    torch.testing.assert_close(PlainInference(model).losses(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["abs", "eabs"])
def test_the_reference_gives_the_envelope_gradient(name: str, make_model: Make, images: Make) -> None:
    variant = {"variational": False} if name == "eabs" else {}
    model = make_model(name, dtype=torch.float32, **variant).with_inference(method="adam", steps=20)
    reference, x = PlainInference(model), images(model, 3).requires_grad_()
    losses, scores = reference.losses(x), model.with_gradient("envelope").class_scores(x)
    for k in range(model.num_classes):
        gradients = [torch.autograd.grad(v[:, k].sum(), x, retain_graph=True)[0] for v in (losses, -scores)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-2)
    with torch.no_grad():
        at = model.objective.at(x, reference.posterior(x), model.noise.stream())
    torch.testing.assert_close(at, losses.detach(), rtol=1e-4, atol=1e-4)


TINY = ["--dataset", "digits", "--budget", "candidates=60,steps=3", "--draws", "2"]
TINY += ["--attack-steps", "2", "--attack-budget", "candidates=20,steps=1"]


@pytest.mark.parametrize(
    "study", [pytest.param(study, marks=[pytest.mark.slow] * (study != "decisions")) for study in STUDIES]
)
def test_every_study_goes_on_where_it_was_stopped(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, pieces = tmp_path / "whole.json", tmp_path / "pieces.json"
    command = [study, *TINY, "--threads", str(torch.get_num_threads()), "--batch-size", "1"]
    agreement.main([*command, "--images", "2", "--json", str(whole)])
    assert "2 of 2 images" in capsys.readouterr().out
    agreement.main([*command, "--images", "1", "--json", str(pieces)])
    agreement.main([*command, "--images", "2", "--json", str(pieces)])
    assert "1 of 2" not in capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in (whole, pieces)]
    assert results[0]["settings"] == results[1]["settings"]
    assert results[0]["summary"]["images"] == 2
    for name, values in results[0]["columns"].items():
        assert len(values) == 2, name
        if not name.endswith("seconds"):
            assert results[1]["columns"][name] == pytest.approx(values, rel=1e-3, abs=1e-3), name
    with pytest.raises(ValueError, match="Expected rows of"):
        agreement.main([*command, "--images", "2", "--method", "adam", "--json", str(whole)])


def test_studies_refuse_what_they_cannot_measure() -> None:
    with pytest.raises(ValueError, match="a model that optimises latents, but got 'cnn'"):
        agreement.main(["decisions", *TINY, "--images", "1", "--model", "cnn"])
    with pytest.raises(ValueError, match=r"no whole number for \['steps'\]"):
        agreement.main(["decisions", "--dataset", "digits", "--images", "1", "--budget", "steps=few"])
    x, y = torch.zeros(1, 1, 2, 2), torch.zeros(1).long()
    with pytest.raises(ValueError, match="`batch_size` of at least 1, but got 0"):
        run_in_batches(lambda *_: {}, x, y, batch_size=0, settings={})


def test_the_overhead_of_every_installed_toolkit_is_measured() -> None:
    results = measure_overhead(batch_size=2, budget={"candidates": 8, "steps": 1}, repeats=1)
    assert set(results["toolkits"]) == set(available())
    assert all(row["ms"] > 0 for row in results["toolkits"].values())
