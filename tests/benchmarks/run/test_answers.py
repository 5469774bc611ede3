"""The columns that say what a model answered, and a guard that a suite names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genrobust.benchmarks.evaluate import for_dataset
from genrobust.benchmarks.run.references import reference
from genrobust.benchmarks.run.results import Results
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import Suite, SuiteModel
from genrobust.data import ImageDataset
from genrobust.selective import GuardedClassifier


def run(suite: Suite, digits: ImageDataset, out: Path, *, samples: int) -> Results:
    models = {model.name: reference(suite, model.name) for model in suite.models}
    return run_suite(suite, models=models, dataset=digits, out=out, samples=samples, show_progress=False)


def test_rejections_have_margins_and_a_second_label(digits: ImageDataset, tmp_path: Path) -> None:
    suite = for_dataset(load_suite("gmvae-table2"), digits)
    suite = replace(suite, threat_models=(replace(suite.threat_models[0], curve_epsilons=()),))
    rows = run(suite, digits, tmp_path, samples=8).rows.to_pylist()
    chosen = [row for row in rows if row["model"] == "gmvae-selective"]
    assert all((row["margin"] > 0) == row["rejected"] for row in chosen)
    assert any(row["rejected"] for row in chosen)
    assert all((row["reclassified"] is not None) == row["rejected"] for row in chosen)
    assert all((row["fooling"] is not None) == row["rejected"] for row in chosen)
    others = [row for row in rows if row["model"] == "gmvae"]
    assert all(row["margin"] is None and row["reclassified"] is None for row in others)
    assert all(0 <= row["entropy"] <= 2.31 for row in rows)


def test_nobody_looks_again_unless_the_suite_asks(digits: ImageDataset, tmp_path: Path) -> None:
    suite = for_dataset(load_suite("gmvae-table2"), digits)
    suite = replace(suite, reclassify=False, attacks=(), models=suite.models[1:])
    rows = run(suite, digits, tmp_path, samples=40).rows
    assert set(rows["reclassified"].to_pylist()) == {None}


def test_the_entropy_is_that_of_the_verdicts_own_draw(digits: ImageDataset, tmp_path: Path) -> None:
    suite = replace(load_suite("deepbayes-figure1"), dataset="digits", attacks=(), expected=(), baseline=None)
    suite = replace(suite, models=suite.models[:2])
    rows = run(suite, digits, tmp_path, samples=10).rows.to_pylist()
    entropies = {name: [row["entropy"] for row in rows if row["model"] == name] for name in ("mlp", "bnn")}
    x = digits.subset(torch.tensor([row["sample"] for row in rows[:10]])).batch(slice(None))[0]
    found = reference(suite, "mlp").load().predict(x)
    expected = -(found.probabilities * found.probabilities.clamp_min(1e-30).log()).sum(1)
    assert entropies["mlp"] == pytest.approx(expected.tolist(), abs=1e-5)
    fixed = reference(suite, "bnn").load().predict(x)
    assert entropies["bnn"] != pytest.approx(torch.special.entr(fixed.probabilities).sum(1).tolist())


def test_a_guard_flags_what_fools_the_victim(digits: ImageDataset, tmp_path: Path) -> None:
    suite = for_dataset(load_suite("deepbayes-table2"), digits)
    suite = replace(suite, models=suite.models[:2], attacks=suite.attacks[:1])
    guarded = reference(suite, "guarded").load()
    assert isinstance(guarded, GuardedClassifier)
    rows = run(suite, digits, tmp_path, samples=12).rows.to_pylist()
    fooled = [
        row for row in rows if (row["model"], row["attack"]) == ("guarded", "deepfool") and row["claimed"]
    ]
    clean = [row for row in rows if (row["model"], row["attack"]) == ("guarded", "clean")]
    assert len(fooled) > 6
    assert sum(row["margin"] for row in fooled) / len(fooled) > sum(row["margin"] for row in clean) / len(
        clean
    )


def test_a_guard_needs_detectors_and_weights() -> None:
    with pytest.raises(ValueError, match="`detectors` of the guard 'vade' for 'mine'"):
        SuiteModel(name="mine", title="Mine", zoo="cnn", guard="vade")
    suite = load_suite("deepbayes-table2")
    entry = replace(suite.model("guarded"), guard="deep-bayes-gbz")
    guarded = replace(reference(suite, "guarded"), entry=entry)
    assert not guarded.there
    assert guarded.command.startswith("genrobust train deep-bayes-gbz --dataset mnist")


def test_the_encoder_is_attacked_in_one_step_and_in_ten(digits: ImageDataset, tmp_path: Path) -> None:
    suite = for_dataset(load_suite("gmvae-figure3"), digits)
    threat = replace(suite.threat_models[0], curve_epsilons=())
    suite = replace(suite, threat_models=(threat,), models=suite.models[:1])
    rows = run(suite, digits, tmp_path, samples=8).rows.to_pylist()
    gradients = {row["attack"]: row["gradients"] for row in rows if row["target"] == "encoder"}
    assert gradients == {"fgsm-encoder": 1, "mim-encoder": 10, "pgd-encoder": 10}
    fooled = {key: sum(row["claimed"] for row in rows if row["attack"] == key) for key in gradients}
    assert min(fooled.values()) > 0
    assert all(row["distance_linf"] <= threat.epsilon + 1e-6 for row in rows)
