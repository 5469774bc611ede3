"""Clean accuracies measured again."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from genrobust import load_dataset, load_model
from genrobust.benchmarks.reproduction import CheckedModel, check_models, check_table
from genrobust.benchmarks.run.results import Results, load_results
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.statistics import wilson


@pytest.fixture
def results(tiny_run: Path) -> Results:
    return load_results(tiny_run)


def test_the_same_images_give_the_same_accuracy(results: Results) -> None:
    found = check_models([results], samples=30)
    assert [entry.model for entry in found] == ["CNN", "MLP"]
    for entry in found:
        assert entry.before is not None
        assert entry.now == entry.before
        assert not entry.differs
        assert entry.confidence == pytest.approx(0.975)


def test_a_split_with_fewer_images_is_taken_whole(results: Results) -> None:
    (first, _) = check_models([results], samples=10_000)
    assert first.now is not None
    assert first.now.total == len(load_dataset("digits", "test"))


def test_other_weights_differ(results: Results, blank_weights: Path) -> None:
    cnn, mlp = check_models([results], samples=30, folder=blank_weights)
    assert cnn.differs
    assert not mlp.differs
    assert cnn.now is not None
    assert cnn.now.value < 0.3


@pytest.mark.parametrize(("count", "differs"), [(90, False), (84, False), (40, True), (100, True)])
def test_a_difference_exceeds_chance(count: int, differs: bool) -> None:
    entry = CheckedModel(run="r", model="m", before=wilson(90, 100), now=wilson(count, 100))
    assert entry.differs == differs


def test_what_cannot_be_measured_says_why(results: Results, tmp_path: Path) -> None:
    others = {**results.manifest, "dataset": {**results.manifest["dataset"], "sha256": "0" * 64}}
    unknown = {**results.manifest, "dataset": {"name": "nothing", "split": "test"}}
    reasons = {
        entry.reason
        for manifest in (others, unknown)
        for entry in check_models([replace(results, manifest=manifest)], samples=5)
    }
    assert any("Expected the images of the run" in reason for reason in reasons)
    assert any("'nothing'" in reason for reason in reasons)
    suite = replace(results.suite, dataset="gtsrb10")
    entries = check_models([replace(results, suite=suite)], samples=5, folder=tmp_path)
    assert all("genrobust train" in entry.reason for entry in entries)
    assert not any(entry.differs for entry in entries)


def test_a_model_of_the_caller_is_not_taken_for_one_of_the_zoo(results: Results, tmp_path: Path) -> None:
    found = run_suite(
        replace(results.suite, attacks=(), expected=()),
        models={"cnn": load_model("mlp", dataset="digits")},
        dataset=load_dataset("digits", "test"),
        samples=4,
        out=tmp_path,
        show_progress=False,
    )
    (entry,) = check_models([found], samples=4)
    assert entry.now is None
    assert "the caller gave the model" in entry.reason


def test_no_images_are_an_error(results: Results) -> None:
    with pytest.raises(ValueError, match="`samples`"):
        check_models([results], samples=0)


def test_the_table_has_both_numbers(results: Results) -> None:
    known = CheckedModel(run="a", model="CNN", before=wilson(90, 100), now=wilson(40, 100))
    text = StringIO()
    Console(file=text, width=200).print(check_table([known, CheckedModel(run="b", model="M", reason="why")]))
    told = text.getvalue()
    assert "90" in told
    assert "differs by more than chance" in told
    assert "why" in told
