"""Every export of a real run, read back by the format's own tool; and what a run must have for it."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import SMALL, make_run

from genrobust import load_dataset, load_model
from genrobust.benchmarks.export import export_run
from genrobust.benchmarks.export.content import Content, deciding_rows
from genrobust.benchmarks.run.cells import plan
from genrobust.benchmarks.run.gallery import read_examples
from genrobust.benchmarks.run.references import reference
from genrobust.benchmarks.run.results import Results, load_results
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.statistics import Summary, summarise
from genrobust.benchmarks.suites.model import Attack, Suite, SuiteModel, ThreatModel
from genrobust.data import ImageDataset
from genrobust.verification import reach

FORMATS = ("every-eval-ever", "hf-eval", "robustbench", "croissant")
IMAGES = 14

SUITE = Suite(
    name="little",
    dataset="digits",
    models=(SuiteModel(name="cnn", title="CNN"), SuiteModel(name="bnn", title='a "Bayesian"\x7f\n\té: MLP')),
    threat_models=(
        ThreatModel(norm="linf", epsilon=0.2, curve_epsilons=(0.05,)),
        ThreatModel(norm="l2", epsilon=1.6),
    ),
    attacks=(
        Attack(
            key="pgd",
            title="PGD \"of ours\": #1\x7f 'é' \N{GRINNING FACE}",
            norm="linf",
            kind="fixed epsilon",
            name="LinfPGD",
            toolkit="genrobust",
            parameters={"steps": 4},
            every_epsilon=True,
        ),
        Attack(
            key="pgd-l2",
            title="PGD",
            norm="l2",
            kind="fixed epsilon",
            name="L2PGD",
            toolkit="genrobust",
            parameters={"steps": 4},
        ),
        Attack(
            key="ddn",
            title="DDN",
            norm="l2",
            kind="minimal norm",
            name="DDNAttack",
            parameters={"steps": 10},
        ),
    ),
    samples=IMAGES,
    batch_size=6,
    draws=3,
)


@contextmanager
def quiet() -> Iterator[None]:
    """Lets other people's packages warn while they are imported and used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def imported(name: str) -> Any:
    with quiet():
        return pytest.importorskip(name, exc_type=ImportError)


@pytest.fixture(scope="module")
def images() -> ImageDataset:
    return load_dataset("digits", "test").subset(slice(IMAGES))


@pytest.fixture(scope="module")
def results(images: ImageDataset, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A run on all of a few test images, with a model that draws noise, which keeps its images."""
    models = {model.name: reference(SUITE, model.name) for model in SUITE.models}
    found = run_suite(
        SUITE,
        models=models,
        dataset=images,
        out=tmp_path_factory.mktemp("run"),
        keep_examples=True,
        command="genrobust bench little",
        show_progress=False,
    )
    assert not found.missing, found.failures
    return found


@pytest.fixture(scope="module")
def summary(results: Results) -> Summary:
    return summarise(results)


def test_the_run_has_something_to_tell(results: Results, summary: Summary) -> None:
    """Else the tests below would say little: robust and fallen images, and draws that disagree."""
    shares = [row.accuracy(model).value for row in summary.rows for model in row.robust]
    assert min(shares) < 0.7 < max(shares)
    assert {drawn.model for drawn in summary.drawn} == {"bnn"}


@pytest.mark.parametrize("form", FORMATS)
def test_a_second_export_replaces_the_first(form: str, results: Results, tmp_path: Path) -> None:
    first = export_run(results, form, tmp_path)
    assert first
    assert all(path.is_file() for path in first)
    assert export_run(results.folder, form, tmp_path) == first
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(first)


# Every Eval Ever


def test_records_pass_the_checks_of_every_eval_ever(results: Results, tmp_path: Path) -> None:
    core = imported("every_eval_ever.validator.validation_core")
    for owner, expected in ((None, "genrobust"), ("my-lab", "my-lab")):
        out = tmp_path / expected
        paths = export_run(results, "every-eval-ever", out, owner=owner)
        names = {path.relative_to(out).as_posix() for path in paths}
        assert len(names) == 2 * len(results.models)
        for name in names:
            report = core.validate_file(
                out / name,
                repo_path=name,
                available_files=names,
                read_repo_file=lambda place, out=out: (out / place).read_text(encoding="utf-8"),
                run_semantic_checks=True,
            )
            assert (report.valid, report.errors, report.warnings) == (True, [], [])
            assert name.startswith(f"data/little/{expected}/")
    assert core.get_schema_version() == json.loads(paths[0].read_text())["schema_version"]


def test_records_have_the_verified_numbers(results: Results, summary: Summary, tmp_path: Path) -> None:
    paths = export_run(results, "every-eval-ever", tmp_path)
    for model, aggregate, samples in zip(results.models, paths[::2], paths[1::2], strict=True):
        record = json.loads(aggregate.read_text(encoding="utf-8"))
        assert record["model_info"]["id"] == f"genrobust/{model}-digits"
        lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        detailed = record["detailed_evaluation_results"]
        assert detailed["total_rows"] == len(lines)
        assert detailed["checksum"] == hashlib.sha256(samples.read_bytes()).hexdigest()
        drawn = {entry.row.key: entry for entry in summary.drawn if entry.model == model}
        assert len(record["evaluation_results"]) == len(summary.rows)
        for row, result in zip(summary.rows, record["evaluation_results"], strict=True):
            share = row.accuracy(model)
            assert (result["evaluation_result_id"], result["score_details"]["score"]) == (
                row.key,
                share.value,
            )
            details = result["score_details"]["details"]
            entry = drawn.get(row.key)
            for name, other in (("first_draw", entry and entry.first), ("worst_draw", entry and entry.worst)):
                known = other or share
                assert details[name] == f"{known.count} of {known.total}"
            mine = [line for line in lines if line["evaluation_result_id"] == row.key]
            right = {int(line["sample_id"]): line["evaluation"]["is_correct"] for line in mine}
            assert [right[sample] for sample in results.samples.tolist()] == row.robust[model].tolist()


# The Hugging Face Hub


def test_evaluation_results_are_read_by_the_hub(results: Results, summary: Summary, tmp_path: Path) -> None:
    hub, yaml = imported("huggingface_hub"), imported("yaml")
    paths = export_run(results, "hf-eval", tmp_path, benchmark="my-lab/digits")
    for model, path in zip(results.models, paths, strict=True):
        assert path == tmp_path / model / ".eval_results" / "little.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = hub.parse_eval_result_entries(content)
        assert hub.eval_result_entries_to_yaml(entries) == content
        assert {entry.dataset_id for entry in entries} == {"my-lab/digits"}
        rows = {row.norm: row for row in summary.rows}  # the last of a norm is the worst of its attacks
        assert [entry.task_id for entry in entries] == ["clean", "pgd-0.2", "all-l2-1.6"]
        for row, entry in zip(rows.values(), entries, strict=True):
            assert entry.value == pytest.approx(100 * row.accuracy(model).value, abs=1e-4)
            assert "by the majority of 3 draws; first draw " in entry.notes
        assert "PGD \"of ours\": #1\\x7f 'é' \N{GRINNING FACE} (genrobust)" in entries[1].notes
    plain = yaml.safe_load(export_run(results, "hf-eval", tmp_path)[0].read_text(encoding="utf-8"))
    assert plain[0]["dataset"] == {"id": "digits", "task_id": "clean"}


# RobustBench


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_tensor_gives_the_robust_accuracy(
    norm: str, results: Results, summary: Summary, images: ImageDataset, tmp_path: Path
) -> None:
    paths = export_run(results, "robustbench", tmp_path)
    assert len(paths) == 2 * 2 * len(results.models)
    tensor = torch.load(tmp_path / f"cnn-{norm}.pt", weights_only=True)
    clean, labels = images.batch(slice(None))
    assert (tensor.shape, tensor.dtype) == (clean.shape, torch.float32)
    row = {row.norm: row for row in summary.rows}[norm]  # type: ignore[index]
    right = load_model("cnn", dataset="digits")(tensor).argmax(1) == labels
    assert right[results.samples].tolist() == row.robust["cnn"].tolist()
    order = {"linf": torch.inf, "l2": 2}[norm]
    moved = (tensor - clean).flatten(1).norm(order, dim=1)
    assert moved.max() <= reach(row.epsilon or 0) * (1 + 1e-6)
    fooled = ~right & (load_model("cnn", dataset="digits")(clean).argmax(1) == labels)
    assert (moved > 0).tolist() == fooled.tolist()
    text = (tmp_path / f"cnn-{norm}.md").read_text(encoding="utf-8")
    assert f"+ **Robust accuracy:** {100 * row.accuracy('cnn').value:.2f} %" in text
    assert f"digits, {'Linf' if norm == 'linf' else 'L2'}, eps = {row.epsilon:g}" in text
    assert hashlib.sha256((tmp_path / f"cnn-{norm}.pt").read_bytes()).hexdigest() in text


def test_robustbench_counts_the_same(
    results: Results, summary: Summary, images: ImageDataset, tmp_path: Path
) -> None:
    for needed in ("autoattack", "pkg_resources"):
        if find_spec(needed) is None:
            pytest.skip(f"robustbench needs {needed}")
    utils = imported("robustbench.utils")
    export_run(results, "robustbench", tmp_path)
    tensor = torch.load(tmp_path / "cnn-linf.pt", weights_only=True)
    counted = utils.clean_accuracy(load_model("cnn", dataset="digits"), tensor, images.labels)
    row = {row.norm: row for row in summary.rows}["linf"]
    assert counted == pytest.approx(row.accuracy("cnn").value)


# Croissant


def test_croissant_loads_every_image_as_it_was_judged(results: Results, tmp_path: Path) -> None:
    mlc = imported("mlcroissant")
    metadata, _ = export_run(results, "croissant", tmp_path)
    with quiet():
        data = mlc.Dataset(str(metadata))
        records = list(data.records("examples"))
    assert not data.metadata.issues.errors
    (field,) = (f for f in data.metadata.record_sets[0].fields if f.name == "image")
    assert field.array_shape_tuple == (1, 28, 28)
    rows = results.rows.to_pylist()
    assert len(records) == len(rows)
    for record, row in zip(records, rows, strict=True):
        for name in set(row) & {key.removeprefix("examples/") for key in record}:
            value = record[f"examples/{name}"]
            assert (value.decode() if isinstance(value, bytes) else value) == row[name], name
    kept = [
        image
        for cell in plan(results.suite, results.models, len(results.samples))
        for image in read_examples(results.folder, cell, run=results.run)["adversarial"]  # type: ignore[index]
    ]
    shown = np.array([record["examples/image"] for record in records], np.float32)
    assert np.array_equal(shown, np.array(kept).reshape(len(kept), -1))


# What a run must have


@pytest.mark.parametrize("form", ["robustbench", "croissant"])
def test_a_run_without_its_images_names_the_option(form: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"kept none of them: run it again with --keep-examples"):
        export_run(run, form, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("form", ["robustbench", "croissant"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"PK")])
def test_damaged_images_are_named(form: str, damage: Any, results: Results, tmp_path: Path) -> None:
    run = shutil.copytree(results.folder, tmp_path / "run")
    for path in (run / "examples" / "cnn").glob("*/0001.npz"):
        damage(path)
    with pytest.raises(ValueError, match=r"missing or damaged: delete \S*run/cells/cnn/\S*/0001\.parquet"):
        export_run(run, form, tmp_path / "out")


def test_a_part_of_the_test_images_is_not_enough_for_robustbench(
    images: ImageDataset, tmp_path: Path
) -> None:
    few = replace(SUITE, models=SUITE.models[:1], attacks=SUITE.attacks[1:2], samples=3)
    found = run_suite(
        few,
        models={"cnn": reference(few, "cnn")},
        dataset=images,
        out=tmp_path / "run",
        keep_examples=True,
        show_progress=False,
    )
    with pytest.raises(ValueError, match=r"has 3 test images: run it again with --samples of the whole"):
        export_run(found, "robustbench", tmp_path / "out")


def test_robustbench_has_no_other_norms(tmp_path: Path) -> None:
    l1 = replace(SMALL, threat_models=(ThreatModel(norm="l1", epsilon=3.0),), attacks=())
    attack = Attack(key="ead", title="EAD", norm="l1", kind="minimal norm", name="EADAttack")
    run = make_run(tmp_path / "run", replace(l1, attacks=(attack,)))
    with pytest.raises(
        ValueError, match="Expected attacks in linf or l2, as RobustBench has them, but the run has l1"
    ):
        export_run(run, "robustbench")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "croisant"}, "`format` to be one of .*'croissant'"),
        ({"form": "hf-eval", "owner": "../me"}, "`owner` to be a name such as 'mylab', but got '../me'"),
        ({"form": "hf-eval", "benchmark": "a//b"}, "`benchmark` to be a name such as 'mylab/digits'"),
    ],
)
def test_what_is_no_name_is_an_error(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_run(make_run(tmp_path / "run"), **arguments)


def test_an_unfinished_run_is_not_exported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", left_out=lambda cell: cell.attack == "ddn")
    with pytest.raises(ValueError, match="Expected a finished run"):
        export_run(run, "hf-eval")
    with pytest.raises(ValueError, match="Expected a finished run, but 4 cells are missing"):
        export_run(load_results(run, partial=True), "hf-eval")


def test_a_model_of_the_caller_has_the_callers_name(tmp_path: Path) -> None:
    results = load_results(make_run(tmp_path / "run"))
    content = Content(results=results, summary=summarise(results))
    assert (content.owner_of("cnn"), content.repository("cnn")) == ("local", "cnn")
    origins = {**results.manifest, "weights": {"cnn": "shipped", "eabs": "given by the caller"}}
    content = replace(content, results=replace(results, manifest=origins))
    assert (content.owner_of("cnn"), content.repository("cnn")) == ("genrobust", "cnn-digits")
    assert (content.owner_of("eabs"), content.repository("eabs")) == ("local", "eabs")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load_results(make_run(tmp_path_factory.mktemp("made-up") / "run"))


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.3, 0.9]))
def test_the_deciding_example_agrees_with_the_table(seed: int, share: float, made_up: Results) -> None:
    """Whatever is wrong when clean, rejected or fooled: the deciding rows count what the table counts."""
    generator = np.random.default_rng(seed)
    wrong, rejecting = generator.random((2, len(made_up.samples))) < share / 2
    rows = made_up.rows
    at, clean = rows["sample"].to_numpy(), np.array(rows["attack"].to_pylist()) == "clean"
    success = (generator.random(len(rows)) < share) & ~clean
    changed = {
        "right": ~(wrong | rejecting)[at],
        "success": success,
        "rejected": np.where(clean, rejecting[at], (generator.random(len(rows)) < share) & ~success),
    }
    for name, column in changed.items():
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), pa.array(column))
    results = replace(made_up, rows=rows)
    for row in summarise(results).rows:
        for model in row.robust:
            decided = results.rows.take(deciding_rows(results, model, row))
            assert decided["sample"].to_pylist() == results.samples.tolist()
            unharmed = np.array(decided["attack"].to_pylist()) == "clean"
            right = unharmed & decided["right"].to_numpy()
            assert right.tolist() == row.robust[model].tolist()
            assert (decided["rejected"].to_numpy() & ~right).tolist() == row.rejected[model].tolist()
            if row.norm is not None:
                lengths = decided[f"distance_{row.norm}"].to_numpy()
                assert (lengths[~unharmed] <= reach(row.epsilon or 0)).all()
