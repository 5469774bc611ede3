import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from rich.console import Console
from torch import Tensor

from genrobust.benchmarks.evaluate import evaluate
from genrobust.benchmarks.run.cells import SCHEMA, Cell, plan
from genrobust.benchmarks.run.forecast import BatchSeconds, Forecast
from genrobust.benchmarks.run.progress import run_progress
from genrobust.benchmarks.run.results import MANIFEST, Results, load_results
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.run.tasks import choose_samples
from genrobust.benchmarks.run.toolkits import craft
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import Attack, Suite, ThreatModel
from genrobust.benchmarks.suites.shared import expanded_attacks
from genrobust.data import ImageDataset
from genrobust.models import ABS, CNN, EABS, DeepBayes, DeepBayesConfig
from genrobust.nets.conditionals import ConditionalArchitecture
from genrobust.purifiers import Purified, Purifier
from genrobust.selective import Detector, SelectiveClassifier

SAMPLES = 7


def run(suite: Suite, digits: ImageDataset, out: Path, cnn: CNN, **changes: Any) -> Results:
    settings = {"models": {"cnn": cnn}, "samples": SAMPLES, "seed": 5, "show_progress": False}
    return run_suite(suite, dataset=digits, out=out, **{**settings, **changes})


def comparable(results: Results) -> pa.Table:
    """Everything but the time that it took."""
    return results.rows.drop_columns(["seconds"])


def files(out: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(out.rglob("*.parquet"))}


@pytest.fixture(scope="session")
def reference(
    small_suite: Suite, digits: ImageDataset, cnn: CNN, tmp_path_factory: pytest.TempPathFactory
) -> Results:
    """An uninterrupted run."""
    return run(small_suite, digits, tmp_path_factory.mktemp("run"), cnn)


def test_a_run_has_a_row_per_sample_and_cell(reference: Results, small_suite: Suite) -> None:
    cells = list(plan(small_suite, ("cnn",), SAMPLES))
    assert len(files(reference.folder)) == len(cells)
    assert reference.rows.schema.equals(SCHEMA)
    for attack in small_suite.attacks:
        for epsilon in small_suite.epsilons(attack):
            table = reference.rows.to_pylist()
            rows = [r for r in table if (r["attack"], r["epsilon"]) == (attack.key, epsilon)]
            assert [r["sample"] for r in rows] == reference.samples.tolist()
            assert all(r["norm"] == attack.norm for r in rows)
    seeds = {(r["attack"], r["epsilon"], r["seed"]) for r in reference.rows.to_pylist()}
    assert len(seeds) == len(cells)


def test_rows_tell_the_truth(reference: Results, digits: ImageDataset, cnn: CNN) -> None:
    images, labels = digits.batch(torch.from_numpy(reference.samples))
    clean = dict(zip(reference.samples.tolist(), cnn(images).argmax(1).tolist(), strict=True))
    truth = dict(zip(reference.samples.tolist(), labels.tolist(), strict=True))
    for row in reference.rows.to_pylist():
        assert row["clean_prediction"] == clean[row["sample"]]
        assert row["label"] == truth[row["sample"]]
        if row["success"]:
            assert row["valid"]
            assert row["prediction"] != row["label"]
            assert row["epsilon"] is None or row[f"distance_{row['norm']}"] <= row["epsilon"] * 1.0001


def test_attacks_get_through_to_an_unprotected_model(reference: Results) -> None:
    rows = reference.rows.to_pylist()
    for attack in ("pgd-linf", "deepfool-l2", "boundary"):
        assert sum(row["success"] for row in rows if row["attack"] == attack) >= 4


def test_the_same_seed_gives_the_same_rows(
    reference: Results, small_suite: Suite, digits: ImageDataset, cnn: CNN, tmp_path: Path
) -> None:
    torch.manual_seed(99)  # must not matter
    assert comparable(run(small_suite, digits, tmp_path, cnn)).equals(comparable(reference))


def test_another_seed_gives_other_rows(
    reference: Results, small_suite: Suite, digits: ImageDataset, cnn: CNN, tmp_path: Path
) -> None:
    other = run(small_suite, digits, tmp_path, cnn, seed=6)
    assert not np.array_equal(other.samples, reference.samples)


@pytest.mark.slow
def test_generative_models_repeat_too(
    small_suite: Suite, digits: ImageDataset, abs_model: ABS, eabs_model: EABS, tmp_path: Path
) -> None:
    suite = replace(
        small_suite,
        attacks=(
            replace(small_suite.attack("fgsm"), eot=2, every_epsilon=False),
            small_suite.attack("deepfool-l2"),
        ),
        batch_size=2,
    )
    models = {"abs": abs_model, "eabs": eabs_model}
    first, second = (
        run_suite(suite, models=models, dataset=digits, samples=2, out=tmp_path / name, show_progress=False)
        for name in "ab"
    )
    assert comparable(first).equals(comparable(second))
    assert first.models == ("abs", "eabs")


def test_a_finished_run_is_not_computed_again(
    reference: Results, small_suite: Suite, digits: ImageDataset, cnn: CNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise AssertionError

    before = files(reference.folder)
    monkeypatch.setattr("genrobust.benchmarks.run.engines.execute", fail)
    again = run(small_suite, digits, reference.folder, cnn)
    assert again.rows.equals(reference.rows)
    assert files(reference.folder) == before


def test_torn_and_missing_cells_are_computed_again(
    reference: Results, small_suite: Suite, digits: ImageDataset, cnn: CNN, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(small_suite, digits, out, cnn)
    before = files(out)
    torn, missing, clean = [*list(before)[5:7], next(path for path in before if "clean" in str(path))]
    torn.write_bytes(before[torn][0][:300])
    clean.write_bytes(b"")
    missing.unlink()
    (torn.parent / ".0000.parquet.abc.part").write_bytes(b"what a kill leaves behind")
    with pytest.raises(ValueError, match=f"{len(before) - 3} of {len(before)} cells"):
        load_results(out)
    assert comparable(run(small_suite, digits, out, cnn)).equals(comparable(reference))
    after = files(out)
    kept = before.keys() - {torn, missing, clean}
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, r"seed \(5 there, 6 here\)"),
        ({"samples": 5}, r"samples \(7 entries there, 5 here\)"),
        ({"suite": {"batch_size": 2}}, r"suite.batch_size \(3 there, 2 here\)"),
        ({"suite": {"overshoots": (1.0,)}}, "suite.overshoots"),
        ({"models": {"other": None}}, "models.cnn.*models.other"),
    ],
    ids=["seed", "samples", "batch size", "overshoots", "models"],
)
def test_other_settings_need_another_folder(
    change: dict[str, Any],
    named: str,
    reference: Results,
    small_suite: Suite,
    digits: ImageDataset,
    cnn: CNN,
) -> None:
    before = files(reference.folder)
    change = dict(change)
    suite = replace(small_suite, **change.pop("suite", {}))
    if "models" in change:
        change["models"] = dict.fromkeys(change["models"], cnn)
    with pytest.raises(ValueError, match=f"these differ: .*{named}.*another --out"):
        run(suite, digits, reference.folder, cnn, **change)
    assert files(reference.folder) == before


def test_other_weights_need_another_folder(
    reference: Results, small_suite: Suite, digits: ImageDataset, cnn: CNN
) -> None:
    other = CNN()
    other.load_state_dict({**cnn.state_dict(), "head.bias": cnn.state_dict()["head.bias"] + 1e-6})
    with pytest.raises(ValueError, match=r"models\.cnn\.weights"):
        run(small_suite, digits, reference.folder, other)


def test_another_budget_needs_another_folder(
    small_suite: Suite, digits: ImageDataset, abs_model: ABS, tmp_path: Path
) -> None:
    suite = replace(small_suite, attacks=())
    run_suite(suite, models={"abs": abs_model}, dataset=digits, samples=1, out=tmp_path, show_progress=False)
    with pytest.raises(ValueError, match=r"models.abs.budget.steps \(1 there, 2 here\)"):
        run_suite(
            suite,
            models={"abs": abs_model.with_inference(steps=2)},
            dataset=digits,
            samples=1,
            out=tmp_path,
            show_progress=False,
        )


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_an_unreadable_manifest_is_named(
    content: str, small_suite: Suite, digits: ImageDataset, cnn: CNN, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        run(small_suite, digits, tmp_path, cnn)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "`samples` to be at least 1, but got 0"),
        ({"samples": 361}, "`samples` in 1..360"),
        ({"models": {}}, "at least one model"),
        ({"models": {"../cnn": None}}, r"'\.\./cnn'"),
    ],
    ids=["no samples", "too many samples", "no models", "name"],
)
def test_mistakes_are_named_before_anything_is_written(
    change: dict[str, Any],
    message: str,
    small_suite: Suite,
    digits: ImageDataset,
    cnn: CNN,
    tmp_path: Path,
) -> None:
    change = {key: dict.fromkeys(value, cnn) if key == "models" else value for key, value in change.items()}
    with pytest.raises(ValueError, match=message):
        run(small_suite, digits, tmp_path / "run", cnn, **change)
    assert not (tmp_path / "run").exists()


def test_datasets_and_models_must_fit(
    small_suite: Suite, digits: ImageDataset, cnn: CNN, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="'mnist'"):
        run(replace(small_suite, dataset="mnist"), digits, tmp_path, cnn)
    tall = replace(digits, images=digits.images[:, :, :20])
    with pytest.raises(ValueError, match=r"'cnn'.*\(1, 20, 28\)"):
        run(small_suite, tall, tmp_path, cnn)


def test_a_failing_cell_is_written_down_and_tried_again(
    reference: Results,
    small_suite: Suite,
    digits: ImageDataset,
    tmp_path: Path,
    cnn: CNN,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(attack: Attack, *arguments: Any, **settings: Any) -> Any:
        if attack.key == "fgsm" and settings["epsilon"] == 0.1:
            raise RuntimeError("no more memory")
        return craft(attack, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("genrobust.benchmarks.run.attempts.craft", fail)
        partial = run(small_suite, digits, tmp_path, cnn)
    assert partial.missing == len(partial.failures) == 3
    assert {failure.cell for failure in partial.failures} == {f"cnn/fgsm@0.1/000{i}" for i in range(3)}
    assert partial.failures[0].error == "RuntimeError: no more memory"
    assert "in fail" in partial.failures[0].traceback
    assert len(partial.rows) == len(reference.rows) - SAMPLES
    with pytest.raises(ValueError, match=r"3 failed \(RuntimeError: no more memory\)"):
        load_results(tmp_path)
    again = run(small_suite, digits, tmp_path, cnn)
    assert (again.failures, again.missing) == ((), 0)
    assert not list((tmp_path / "failures").rglob("*.json"))
    assert comparable(again).equals(comparable(reference))


def test_attacks_wait_for_a_clean_cell_that_failed(
    small_suite: Suite, digits: ImageDataset, tmp_path: Path, cnn: CNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("no more memory")

    monkeypatch.setattr("genrobust.benchmarks.run.execution.judge_examples", fail)
    partial = run(small_suite, digits, tmp_path, cnn)
    assert [failure.cell for failure in partial.failures] == [f"cnn/clean/000{i}" for i in range(3)]
    assert len(partial.rows) == 0
    assert partial.rows.schema.equals(SCHEMA)


def test_rows_say_what_the_attack_cost(reference: Results) -> None:
    by_attack = {row["attack"]: row for row in reference.rows.to_pylist()}
    assert (by_attack["clean"]["queries"], by_attack["clean"]["toolkit"]) == (0, None)
    # Foolbox judges the clean images and its result beside the steps of the attack.
    assert by_attack["fgsm"]["gradients"] == 1
    assert by_attack["pgd-linf"]["gradients"] == 5
    assert 5 <= by_attack["pgd-linf"]["queries"] <= 7
    assert by_attack["boundary"]["gradients"] == 0
    assert by_attack["boundary"]["queries"] > 20
    assert {row["toolkit"] for row in by_attack.values()} == {None, "foolbox"}
    assert not any(row["unstable"] or row["zero_gradient"] for row in by_attack.values())


def test_samples_are_balanced_nested_and_seeded(digits: ImageDataset) -> None:
    chosen = choose_samples(digits, 25, seed=0)
    counts = np.bincount(digits.labels.numpy()[chosen], minlength=10)
    assert set(counts) == {2, 3}
    assert len(set(chosen.tolist())) == 25
    assert np.array_equal(chosen[:10], choose_samples(digits, 10, seed=0))
    assert not np.array_equal(chosen, choose_samples(digits, 25, seed=1))
    assert sorted(choose_samples(digits, len(digits), seed=3)) == list(range(len(digits)))


def test_progress_in_lines_and_bar(reference: Results) -> None:
    cell = Cell(model="cnn", attack="fgsm", epsilon=0.1, batch=0)
    rows = reference.rows.slice(0, 3)
    plain = StringIO()
    with run_progress(5, finished=3, forecast=forecast_of(cell), console=Console(file=plain)) as progress:
        progress.begin(cell)
        progress.end(cell, rows)
    lines = plain.getvalue().splitlines()
    assert lines[0] == "about 5 s here, by a probe of one batch"
    assert lines[1] == "3 of 5 cells were finished before"
    assert lines[2].startswith("[4/5] cnn/fgsm@0.1/0000: ")
    assert lines[2].endswith("s left")
    terminal = StringIO()
    console = Console(file=terminal, force_terminal=True, width=100)
    with run_progress(5, finished=3, forecast=forecast_of(cell), console=console) as progress:
        progress.begin(cell)
        progress.end(cell, rows)
    assert "4/5" in terminal.getvalue()
    assert "cnn/fgsm@0.1/0000" in terminal.getvalue()


def forecast_of(*cells: Cell) -> Forecast:
    costs = {"cnn": BatchSeconds(query=1.0, gradient=2.0, verdict=3.0)}
    queries = {(cell.model, cell.attack): 1 for cell in cells}
    return Forecast(load_suite("digits"), costs, cells, queries=queries)


def test_a_nearest_example_is_told_by_its_distance(reference: Results) -> None:
    cell = Cell(model="cnn", attack="deepfool-l2", epsilon=None, batch=0)
    rows = reference.rows.filter(pc.equal(reference.rows["attack"], "deepfool-l2")).slice(0, 3)
    columns = {"success": [True, True, False], "distance_l2": [0.5, 1.25, 9.0], "rejected": [False] * 3}
    for name, values in columns.items():
        column = pa.array(values, rows.schema.field(name).type)
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), column)
    rows = rows.set_column(rows.column_names.index("right"), "right", pa.array([True] * 3))
    plain = StringIO()
    with run_progress(2, finished=0, forecast=forecast_of(cell), console=Console(file=plain)) as progress:
        progress.end(cell, rows)
        progress.end(cell, rows.slice(2, 1))
    assert "cnn/deepfool-l2/0000: median distance 1.25 of 3, " in plain.getvalue()
    assert "no example for half of 4, " in plain.getvalue()


def test_progress_counts_refused_images_as_lost(reference: Results) -> None:
    cell = Cell(model="cnn", attack="clean", epsilon=0.0, batch=0)
    rows = reference.rows.slice(0, 3)
    for name, values in (("success", [False] * 3), ("rejected", [True, False, False])):
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values))
    rows = rows.set_column(rows.column_names.index("right"), "right", pa.array([True] * 3))
    plain = StringIO()
    with run_progress(1, finished=0, forecast=forecast_of(cell), console=Console(file=plain)) as progress:
        progress.end(cell, rows)
    assert "67% of 3 right" in plain.getvalue()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_strongest_ensemble_is_a_row_at_every_epsilon(
    norm: Any, small_suite: Suite, digits: ImageDataset, cnn: CNN, tmp_path: Path
) -> None:
    (entry,) = expanded_attacks([{"use": f"own.strongest-{norm}", "eot": 2, "every_epsilon": True}], "small")
    threat = ThreatModel(norm=norm, epsilon=0.05, curve_epsilons=(0.5, 0.9))
    suite = replace(small_suite, attacks=(Attack(**entry),), threat_models=(threat,))
    sizes = ConditionalArchitecture(channels=(), hidden=(8,), latent_dim=2)
    noisy = DeepBayes(DeepBayesConfig(architecture=sizes)).with_inference(samples=1)
    found = run(suite, digits, tmp_path, cnn, models={"cnn": cnn, "noisy": noisy}, samples=3)
    assert not found.failures
    rows = [row for row in found.rows.to_pylist() if row["attack"] != "clean"]
    assert sorted({(row["model"], row["epsilon"]) for row in rows}) == [
        (model, epsilon) for model in ("cnn", "noisy") for epsilon in threat.epsilons
    ]
    assert sum(row["success"] for row in rows if row["epsilon"] == 0.9) >= 3


def detected(model: Any) -> SelectiveClassifier:
    return SelectiveClassifier(model, [Detector(evidence="marginal", thresholds=(3.0,))])


FORMS: dict[str, Callable[[Any], Any]] = {
    "bare": lambda model: model,
    "selective": detected,
    "purified": lambda model: Purified(Inverting(), model),
    "both": lambda model: Purified(Inverting(), detected(model)),
}
CHANGES: dict[str, Callable[[Any], Any]] = {
    "budget": lambda model: model.with_inference(candidates=61),
    "gradient": lambda model: model.with_gradient("unrolled"),
    "noise": lambda model: model.with_randomness("fixed", seed=4),
}


class Inverting(Purifier):
    def __init__(self) -> None:
        super().__init__(input_shape=(1, 28, 28))

    def purify(self, x: Tensor) -> Tensor:
        return 1 - x


@pytest.mark.parametrize("form", FORMS)
def test_no_wrapper_hides_what_is_inside(
    form: str, small_suite: Suite, digits: ImageDataset, abs_model: ABS, tmp_path: Path
) -> None:
    suite = replace(small_suite, attacks=())
    settings: dict[str, Any] = {"dataset": digits, "samples": 1, "out": tmp_path, "show_progress": False}
    evaluate(FORMS[form](abs_model), suite, **settings)
    before = files(tmp_path)
    for change in CHANGES.values():
        with pytest.raises(ValueError, match=r"these differ: models\.model\..*another --out"):
            evaluate(FORMS[form](change(abs_model)), suite, **settings)
    if form in ("selective", "both"):
        moved = SelectiveClassifier(abs_model, [Detector(evidence="marginal", thresholds=(3.1,))])
        other = moved if form == "selective" else Purified(Inverting(), moved)
        with pytest.raises(ValueError, match=r"detectors.*thresholds"):
            evaluate(other, suite, **settings)
    evaluate(FORMS[form](abs_model), suite, **settings)
    assert files(tmp_path) == before


def test_two_functions_of_one_name_need_two_folders(
    small_suite: Suite, digits: ImageDataset, tmp_path: Path
) -> None:
    def scaled(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda x: factor * x.flatten(1)[:, :10]

    suite = replace(small_suite, attacks=())
    settings: dict[str, Any] = {"dataset": digits, "samples": 1, "out": tmp_path, "show_progress": False}
    evaluate(scaled(1.0), suite, **settings)
    evaluate(scaled(1.0), suite, **settings)
    with pytest.raises(ValueError, match=r"models\.model\.behaviour"):
        evaluate(scaled(1.5), suite, **settings)


def test_code_that_no_setting_tells_of_shows_in_the_answers(
    small_suite: Suite, digits: ImageDataset, cnn: CNN, tmp_path: Path
) -> None:
    suite, edited = replace(small_suite, attacks=()), copy.deepcopy(cnn)
    edited.__class__ = type("CNN", (CNN,), {"logits": lambda self, x: 2 * CNN.logits(self, x)})
    edited.__class__.__module__ = CNN.__module__
    run(suite, digits, tmp_path, cnn)
    with pytest.raises(ValueError, match=r"these differ: models\.cnn\.behaviour"):
        run(suite, digits, tmp_path, edited)


def test_answers_that_differ_by_rounding_alone_go_on(
    small_suite: Suite, digits: ImageDataset, cnn: CNN, tmp_path: Path
) -> None:
    suite = replace(small_suite, attacks=())
    first = run(suite, digits, tmp_path, cnn)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    behaviour = manifest["models"]["cnn"]["behaviour"]
    behaviour[0][0] += 0.005 * max(map(abs, behaviour[0]))
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    for path in files(tmp_path):
        path.unlink()
    run(suite, digits, tmp_path, cnn)
    before = files(tmp_path)
    again = run(suite, digits, tmp_path, cnn)
    assert files(tmp_path) == before
    assert comparable(again).equals(comparable(first))


KILLED_RUN = """
import json, sys, torch
from pathlib import Path
from genrobust.models import CNN
from genrobust import load_dataset
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.suites.model import suite_from_dict

suite, weights, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
cnn = CNN()
cnn.load_state_dict(torch.load(weights, weights_only=True))
run_suite(
    suite_from_dict(json.loads(suite)), models={"cnn": cnn}, dataset=load_dataset("digits", "test"),
    samples=20, seed=5, out=Path(out),
)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_without_losing_a_finished_cell(
    small_suite: Suite, digits: ImageDataset, cnn: CNN, tmp_path: Path
) -> None:
    pgd = replace(small_suite.attack("pgd-l2"), parameters={"steps": 60})
    suite = replace(small_suite, attacks=(pgd, small_suite.attack("deepfool-l2")), batch_size=1)
    cells, out = 3 * 20, tmp_path / "killed"
    torch.save(cnn.state_dict(), tmp_path / "cnn.pt")
    command = [
        sys.executable,
        "-c",
        KILLED_RUN,
        json.dumps(asdict(suite)),
        str(tmp_path / "cnn.pt"),
        str(out),
    ]
    with subprocess.Popen(
        [*command, str(torch.get_num_threads())],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": ""},
    ) as process:
        deadline = time.monotonic() + 60
        while len(files(out)) < 25 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        errors = process.communicate()[1].decode()
    survived = files(out)
    assert process.returncode == -signal.SIGKILL, errors
    assert 25 <= len(survived) < cells

    resumed = run(suite, digits, out, cnn, samples=20)
    after = files(out)
    assert len(after) == cells
    assert {path: after[path] for path in survived} == survived
    uninterrupted = run(suite, digits, tmp_path / "uninterrupted", cnn, samples=20)
    assert comparable(resumed).equals(comparable(uninterrupted))
