"""Own models, queries, galleries, and the commands around a run."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

import genrobust
from genrobust import SelectiveClassifier, load_model
from genrobust._modules import cheaper
from genrobust.benchmarks.evaluate import Evaluation, IncompleteRunError, evaluate, for_dataset
from genrobust.benchmarks.report.terminal import summary_table
from genrobust.benchmarks.run.cells import Cell
from genrobust.benchmarks.run.environment import environment, git_revision
from genrobust.benchmarks.run.gallery import EXAMPLES, read_examples, read_gallery, write_arrays
from genrobust.benchmarks.run.query import query_rows, rows_as_csv, rows_as_json
from genrobust.benchmarks.run.results import Results
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.run.toolkits import craft, goals_of, uses_gradients
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import Attack, Expected, Suite, SuiteModel, ThreatModel
from genrobust.cli.main import app
from genrobust.cli.running import BenchOptions, _with_weights, run_bench
from genrobust.data import ImageDataset, load_dataset
from genrobust.models import CNN, EABS, GMVAE
from genrobust.zoo import load_detectors

SUITE = """
title = "Mine"
dataset = "digits"
samples = 4
batch_size = 2
[[models]]
name = "cnn"
title = "CNN"
[[models]]
name = "mlp"
title = "MLP"
[[threat_models]]
norm = "linf"
epsilon = 0.3
[[attacks]]
key = "fgsm"
title = "FGSM"
norm = "linf"
kind = "fixed epsilon"
name = "LinfFastGradientAttack"
"""


@pytest.fixture(scope="session")
def few(small_suite: Suite) -> Suite:
    attack = replace(small_suite.attack("fgsm"), every_epsilon=False)
    return replace(small_suite, attacks=(attack,), samples=5)


@pytest.fixture(scope="session")
def finished(few: Suite, digits: ImageDataset, cnn: CNN, tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("run")
    return run_suite(
        few, models={"cnn": cnn}, dataset=digits, out=out, keep_examples=True, show_progress=False
    )


class Plain(nn.Module):
    """Anybody's network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def test_anybodys_module_is_evaluated(few: Suite, tmp_path: Path, digits: ImageDataset) -> None:
    torch.manual_seed(0)
    module = Plain()
    found = genrobust.evaluate(module, few, out=tmp_path, show_progress=False)
    assert isinstance(found, Evaluation)
    rows = found.rows.to_pylist()
    assert {row["model"] for row in rows} == {"model"}
    images, _ = digits.batch(torch.from_numpy(found.results.samples))
    expected = module.eval()(images).argmax(1).tolist()
    assert [row["clean_prediction"] for row in rows if row["attack"] == "clean"] == expected
    assert {row["gradients"] for row in rows if row["attack"] == "fgsm"} == {1}
    clean = found.summary().rows[0]
    assert clean.accuracy("model").total == 5
    assert found.query("select count(*) as n from rows")["n"].to_pylist() == [10]
    assert all(path.is_file() for path in found.report())
    assert "1 models, 5 images, 10 rows, 0 cells missing" in repr(found)
    for result in (found, found.results, found.summary()):
        assert len(repr(result)) < 200
        assert "\n" not in repr(result)
    assert "<td>FGSM" in found._repr_html_().replace("  ", "")
    text = Console(width=100, record=True, file=None)
    with text.capture() as shown:
        text.print(found.table())
    assert "FGSM" in shown.get()


def test_functions_and_models_of_the_zoo_are_evaluated_side_by_side(few: Suite) -> None:
    weight = torch.randn(784, 10, generator=torch.Generator().manual_seed(0))
    found = evaluate(
        {"linear": lambda x: x.flatten(1) @ weight},
        few,
        compare_with=("cnn",),
        samples=2,
        show_progress=False,
    )
    assert found.results.models == ("linear", "cnn")
    assert not found.results.missing


def examples(run: Path, model: str, attack: str) -> np.ndarray[Any, Any]:
    """Read the adversarial images of an attack's only batch."""
    (path,) = (run / "examples" / model).glob(f"{attack}@*/*.npz")
    images: np.ndarray[Any, Any] = np.load(path)["adversarial"]
    return images


@pytest.mark.slow
def test_an_attack_by_a_second_gradient_runs_on_every_model_that_has_it(few: Suite, tmp_path: Path) -> None:
    first = replace(few.attacks[0], parameters={"random_start": False})
    again, other = (
        replace(first, key=name, gradient=name, for_models=("eabs",)) for name in ("envelope", "joint")
    )
    models = {
        "mine": load_model("eabs", dataset="digits").with_inference(candidates=20, steps=1),
        "network": Plain(),
    }
    found = evaluate(
        models,
        replace(few, attacks=(first, again, other)),
        out=tmp_path,
        samples=2,
        keep_examples=True,
        show_progress=False,
    )
    assert not found.results.failures
    ran = {(row["model"], row["attack"]) for row in found.rows.to_pylist()} - {("network", "clean")}
    assert ran == {("network", "fgsm"), *(("mine", key) for key in ("clean", "fgsm", "envelope", "joint"))}
    own, *others = (examples(tmp_path, "mine", key) for key in ("fgsm", "envelope", "joint"))
    assert [np.array_equal(own, other) for other in others] == [True, False]


def test_a_second_gradient_that_a_model_lacks_fails_its_cell(few: Suite, digits: ImageDataset) -> None:
    attack = replace(few.attacks[0], gradient="proposal", for_models=("cnn",))
    suite = replace(few, attacks=(attack,))
    with pytest.raises(IncompleteRunError, match="surrogate gradients, but CNN has none") as found:
        evaluate(Plain(), suite, compare_with=("cnn",), samples=1, show_progress=False)
    assert len(found.value.evaluation.results.failures) == 1


def test_draws_of_noise_are_taken_of_whatever_decides_at_random(few: Suite, tmp_path: Path) -> None:
    once = replace(few.attacks[0], parameters={"random_start": False})
    suite = replace(few, attacks=(once, replace(once, key="draws", eot=3)))
    model = load_model("eabs", dataset="digits").with_inference(candidates=20, steps=1)
    found = evaluate(
        {"mine": model, "network": Plain()},
        suite,
        out=tmp_path,
        samples=2,
        keep_examples=True,
        show_progress=False,
    )
    assert not found.results.failures
    for name, same in (("mine", False), ("network", True)):
        first, second = (examples(tmp_path, name, key) for key in ("fgsm", "draws"))
        assert np.array_equal(first, second) == same


def test_a_vanished_gradient_is_flagged(few: Suite) -> None:
    def quantised(x: Tensor) -> Tensor:
        return (x.flatten(1)[:, :10] * 4).round()

    rows = evaluate(quantised, few, samples=3, show_progress=False).rows.to_pylist()
    assert {row["zero_gradient"] for row in rows if row["attack"] == "fgsm"} == {True}
    assert {row["zero_gradient"] for row in rows if row["attack"] == "clean"} == {False}


def test_a_decision_at_random_is_flagged(few: Suite, digits: ImageDataset, tmp_path: Path) -> None:
    class Coin(EABS):
        def with_randomness(self, mode: Any, *, seed: int = 0, generator: Any = None) -> Any:
            del mode, generator
            return self._variant(generator=torch.Generator().manual_seed(seed))

        def predict(self, x: Tensor) -> Any:
            found = super().predict(x)
            generator = self.__dict__.get("generator", torch.Generator())
            return replace(found, labels=torch.randint(0, 2, (len(x),), generator=generator))

    coin = Coin().with_inference(candidates=5, steps=0)
    rows = run_suite(
        replace(few, samples=16, attacks=()),
        models={"eabs": coin},
        dataset=digits,
        out=tmp_path,
        show_progress=False,
    ).rows.to_pylist()
    assert 0 < sum(row["unstable"] for row in rows) < 16


def test_a_suite_on_other_images_is_without_the_papers_numbers(digits: ImageDataset) -> None:
    table = load_suite("eabs-table1")
    moved = for_dataset(table, digits)
    assert (moved.dataset, moved.expected) == ("digits", ())
    assert "digits, not mnist" in moved.reduced[-1]


def test_images_under_a_borrowed_name_are_without_the_papers_numbers(digits: ImageDataset) -> None:
    table = load_suite("eabs-table1")
    moved = for_dataset(table, replace(digits, name="mnist"))
    assert (moved.dataset, moved.expected) == ("mnist", ())
    assert "not the test images of mnist" in moved.reduced[-1]


def test_a_suite_knows_its_own_images_under_any_name(few: Suite, digits: ImageDataset) -> None:
    number = Expected(model="cnn", attack="fgsm", value=0.5)
    known = replace(few, expected=(number,))
    for images in (digits, replace(digits, name="other")):
        assert for_dataset(known, images) is known
    inverted = replace(digits, images=255 - digits.images)
    assert for_dataset(known, inverted).expected == ()


@pytest.mark.parametrize("suite", [None, "quick"])
def test_anybodys_images_can_be_evaluated(suite: str | None, few: Suite) -> None:
    generator = torch.Generator().manual_seed(0)
    images = ImageDataset(
        "mine",
        "test",
        torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8, generator=generator),
        torch.arange(6) % 3,
        ("a", "b", "c"),
    )

    def model(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]

    found = evaluate(model, suite or few, dataset=images, samples=1, show_progress=False)
    assert found.results.suite.dataset == "mine"
    assert not found.results.failures


def test_validation_images_can_be_attacked_in_place_of_test_images(few: Suite, cnn: CNN) -> None:
    number = Expected(model="cnn", attack="fgsm", value=0.5)
    known = replace(few, expected=(number,), paper="a paper")
    found = evaluate(cnn, known, split="validation", samples=2, show_progress=False)
    validation = load_dataset("digits", "validation")
    written = found.results.manifest["dataset"]
    assert (written["split"], written["sha256"]) == ("validation", validation.sha256)
    assert found.rows["label"].to_pylist() == validation.labels[found.rows["sample"].to_pylist()].tolist()
    assert found.results.suite.expected == ()
    assert "not the test images of digits" in found.results.suite.reduced[-1]
    assert "2 validation images" in found.table()._repr_html_()
    with pytest.raises(ValueError, match="but got 'validation' and images of 'test'"):
        evaluate(cnn, known, dataset=load_dataset("digits", "test"), split="validation")


def test_the_commands_take_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(SUITE.replace('name = "mlp"', 'name = "adv-l2"'), encoding="utf-8")
    options = BenchOptions(suite="mine.toml", samples=2, split="validation", skip_missing=True)
    found = run_bench(options)
    assert found.folder == Path("runs/mine-validation-2-samples-seed-0")
    assert found.manifest["dataset"]["split"] == "validation"


def test_the_gallery_shows_successes_first(finished: Results, digits: ImageDataset, cnn: CNN) -> None:
    cell = Cell(model="cnn", attack="fgsm", epsilon=0.2, batch=0)
    gallery = read_gallery(finished.folder, cell, run=finished.run)
    assert gallery is not None
    rows = {row["sample"]: row for row in finished.rows.to_pylist() if row["attack"] == "fgsm"}
    shown = gallery["sample"].tolist()
    assert len(shown) == 3  # the first batch has no more
    successes = [rows[sample]["success"] for sample in shown]
    assert successes == sorted(successes, reverse=True)
    assert gallery["prediction"].tolist() == [rows[sample]["prediction"] for sample in shown]
    clean, labels = digits.batch(torch.from_numpy(gallery["sample"]))
    assert np.array_equal(gallery["clean"], clean.numpy())
    assert gallery["label"].tolist() == labels.tolist()
    moved = np.abs(gallery["adversarial"] - gallery["clean"]).max((1, 2, 3))
    assert np.allclose(moved, [rows[sample]["distance_linf"] for sample in shown])
    assert gallery["class_names"].tolist() == list(digits.class_names)
    assert "reconstructions" not in gallery
    assert len(list((finished.folder / "gallery").rglob("*.npz"))) == 1


def test_galleries_of_generative_models_have_reconstructions(
    few: Suite, eabs_model: EABS, digits: ImageDataset, tmp_path: Path
) -> None:
    done = run_suite(
        few, models={"eabs": eabs_model}, dataset=digits, samples=2, out=tmp_path, show_progress=False
    )
    gallery = read_gallery(tmp_path, Cell(model="eabs", attack="fgsm", epsilon=0.2, batch=0), run=done.run)
    assert gallery is not None
    assert gallery["reconstructions"].shape == (2, 10, 1, 28, 28)
    assert not list(tmp_path.glob(EXAMPLES))


def test_kept_examples_are_what_the_rows_judge(finished: Results, cnn: CNN, digits: ImageDataset) -> None:
    assert len(sorted((finished.folder / EXAMPLES).rglob("*.npz"))) == 4
    for attack, epsilon in (("clean", None), ("fgsm", 0.2)):
        rows = {row["sample"]: row for row in finished.rows.to_pylist() if row["attack"] == attack}
        for batch in range(2):
            cell = Cell(model="cnn", attack=attack, epsilon=epsilon, batch=batch)
            kept = read_examples(finished.folder, cell, run=finished.run)
            assert kept is not None
            samples, images = kept["sample"].tolist(), torch.from_numpy(kept["adversarial"])
            assert cnn(images).argmax(1).tolist() == [rows[sample]["prediction"] for sample in samples]
            if attack == "clean":
                assert torch.equal(images, digits.batch(torch.tensor(samples))[0])


def test_examples_of_another_run_or_another_shape_are_none(finished: Results, tmp_path: Path) -> None:
    cell = Cell(model="cnn", attack="fgsm", epsilon=0.2, batch=0)
    assert read_examples(finished.folder, cell, run="another") is None
    images, samples = np.zeros((2, 1, 4, 4), np.float32), np.arange(2)
    for arrays in (
        {"sample": samples},
        {"sample": samples, "adversarial": images[0]},
        {"sample": samples[:1], "adversarial": images},
        {"sample": samples.astype(float), "adversarial": images},
        {"sample": samples, "adversarial": images.astype(int)},
    ):
        write_arrays(tmp_path, EXAMPLES, cell, arrays, run="run")
        assert read_examples(tmp_path, cell, run="run") is None
    write_arrays(tmp_path, EXAMPLES, cell, {"sample": samples, "adversarial": images}, run="run")
    assert read_examples(tmp_path, cell, run="run") is not None


def test_sql_answers_from_the_rows(finished: Results) -> None:
    answer = query_rows(finished.folder, "select attack, count(*) as n from rows group by all order by all")
    assert answer.to_pylist() == [{"attack": "clean", "n": 5}, {"attack": "fgsm", "n": 5}]
    assert json.loads(rows_as_json(answer))[0] == {"attack": "clean", "n": 5}
    assert rows_as_csv(answer).splitlines() == ["attack,n", "clean,5", "fgsm,5"]
    twice = query_rows(finished.folder, "select 1 as n, 2 as n")
    with pytest.raises(
        ValueError, match=r"columns of different names, but got 'n' twice: rename one by `as`"
    ):
        rows_as_json(twice)
    exact = query_rows(
        finished.folder, "select sum(9007199254740993::hugeint) as n, [1, 2] as both from rows"
    )
    assert json.loads(rows_as_json(exact)) == [{"n": 10 * 9007199254740993, "both": [1, 2]}]
    with pytest.raises(ValueError, match="attak"):
        query_rows(finished.folder, "select attak from rows")


def test_results_shows_a_summary_and_answers(finished: Results) -> None:
    environment = {"COLUMNS": "140"}
    shown = CliRunner().invoke(app, ["results", str(finished.folder)], env=environment)
    assert shown.exit_code == 0, shown.output
    assert "fgsm" in shown.output
    assert summary_table(finished.folder).row_count == 2
    query = ["results", str(finished.folder), "--query", "select max(gradients) as g from rows"]
    assert "1" in CliRunner().invoke(app, query, env=environment).output
    assert json.loads(CliRunner().invoke(app, [*query, "--json"]).output) == [{"g": 1}]
    assert CliRunner().invoke(app, [*query, "--csv"]).output == "g\n1\n"


def test_a_run_says_where_it_comes_from(finished: Results) -> None:
    said = finished.manifest["environment"]
    assert said["packages"]["torch"] == environment()["packages"]["torch"]
    assert said["git"] == git_revision()
    assert finished.manifest["versions"].keys() >= {"genrobust", "torch", "foolbox"}


def test_bench_runs_a_file_and_its_exit_status_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SUITE, encoding="utf-8")
    command = ["bench", str(path), "--out", str(tmp_path / "run")]

    def fail(attack: Attack, *arguments: Any, **settings: Any) -> Any:
        if isinstance(arguments[0], CNN):
            raise RuntimeError("no more memory")
        return craft(attack, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("genrobust.benchmarks.run.attempts.craft", fail)
        failed = CliRunner().invoke(app, command)
    assert failed.exit_code == 1, failed.output
    assert "cnn/fgsm@0.3/0000" in failed.output
    assert "2 cells are missing" in failed.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert "FGSM" in again.output


def test_bench_lists_the_suites() -> None:
    shown = CliRunner().invoke(app, ["bench"], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    assert "eabs-table1" in shown.output
    assert "Zhang et al. 2020, Table 7" in shown.output


@pytest.mark.parametrize("name", ["deep-bayes", "gmvae", "vade"])
def test_models_of_every_budget_run_in_a_suite(name: str, few: Suite) -> None:
    model = load_model(name, dataset="digits")
    found = evaluate(model, few, samples=2, show_progress=False)
    assert not found.results.failures


def test_an_attack_searches_no_more_than_the_verdict() -> None:
    asked = {"candidates": 1000, "steps": 10}
    vade, eabs, bayes = (load_model(name, dataset="digits") for name in ("vade", "eabs", "deep-bayes"))
    detectors = list(load_detectors("vade", dataset="digits").values())
    for model in (vade, SelectiveClassifier(vade, detectors)):
        shown: Any = cheaper(model, asked)
        budget = getattr(shown, "model", shown).budget
        assert (budget.candidates, budget.steps) == (0, 10)
    shown = cheaper(eabs, asked)
    assert (shown.budget.candidates, shown.budget.steps) == (1000, 10)
    assert cheaper(bayes, asked).budget == bayes.budget
    assert cheaper(bayes, {"samples": 3}).budget.samples == 3


def test_missing_weights_are_named_before_anything_runs(tmp_path: Path) -> None:
    options = BenchOptions(suite="eabs-table3", folder=tmp_path, out=tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"adv-linf.*genrobust train adv-linf --dataset gtsrb10.*--skip-missing"
    ):
        run_bench(options)
    with pytest.raises(ValueError, match="`device`"):
        run_bench(BenchOptions(suite="quick", out=tmp_path / "run", device="abacus"))
    with pytest.raises(ValueError, match=r"surrogate.*genrobust train zhang-surrogate --dataset mnist"):
        run_bench(BenchOptions(suite="zhang-table2", folder=tmp_path, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "against"), [("eabs", "tightened"), ("vade", "encoder")])
def test_a_model_that_is_attacked_by_a_part_of_itself_runs_alone(
    name: str, against: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    text = SUITE.replace('"mlp"', f'"{name}"') + f'against = "{against}"\nfor_models = ["{name}"]\n'
    path.write_text(text, encoding="utf-8")
    suite = load_suite(path)
    found, references = _with_weights(suite, BenchOptions(suite=str(path), models=name))
    assert list(references) == [name]
    assert found.attacks[0].against == against


def test_what_is_there_can_run_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = SUITE.replace('name = "mlp"', 'name = "adv-l2"').replace("samples = 4", "samples = 2")
    path.write_text(text, encoding="utf-8")
    found = run_bench(BenchOptions(suite=str(path), folder=tmp_path, out=tmp_path / "run", skip_missing=True))
    assert found.models == ("cnn",)
    assert [model.name for model in found.suite.models] == ["cnn"]


@pytest.mark.parametrize(
    ("attack", "differentiates"),
    [
        (
            Attack(key="a", title="a", norm="linf", kind="fixed epsilon", name="SquareAttack", toolkit="art"),
            False,
        ),
        (
            Attack(
                key="a",
                title="a",
                norm="linf",
                kind="fixed epsilon",
                name="LinfPGDAttack",
                toolkit="advertorch",
                parameters={"nb_iter": 3},
                restarts=2,
            ),
            True,
        ),
        (
            Attack(
                key="a", title="a", norm="l0", kind="minimal norm", name="SinglePixel", toolkit="genrobust"
            ),
            False,
        ),
        (
            Attack(
                key="a",
                title="a",
                norm="linf",
                kind="fixed epsilon",
                name="LinfBasicIterativeAttack",
                parameters={"steps": 3},
                targeted=True,
            ),
            True,
        ),
    ],
    ids=["art", "advertorch", "own", "targeted"],
)
def test_attacks_of_any_toolkit_run_and_repeat(
    attack: Attack, differentiates: bool, cnn: CNN, digits: ImageDataset
) -> None:
    if attack.toolkit in ("art", "advertorch") and find_spec(attack.toolkit) is None:
        pytest.skip(f"not installed: {attack.toolkit}")
    x, y = digits.batch(slice(3))
    epsilon = 0.1 if attack.kind == "fixed epsilon" else None
    goals = goals_of(attack, y, 10, seed=1)
    first, second = (craft(attack, cnn, x, y, goals=goals, epsilon=epsilon, seed=1) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert uses_gradients(attack) == differentiates
    if epsilon is not None:
        assert (first.images - x).abs().max() <= epsilon * 1.001


def test_a_model_that_refuses_is_attacked_through_its_refusal(digits: ImageDataset, tmp_path: Path) -> None:
    model = load_model("gmvae", dataset="digits")
    assert isinstance(model, GMVAE)
    selective = SelectiveClassifier(model, list(load_detectors("gmvae", dataset="digits").values()))

    def make(key: str, **settings: Any) -> Attack:
        base = Attack(
            key=key, title=key, norm="linf", kind="fixed epsilon", name="LinfFastGradientAttack", **settings
        )
        return replace(base, parameters={"random_start": False})

    threshold = Attack(
        key="threshold",
        title="eq. 10",
        norm="linf",
        kind="fixed epsilon",
        name="LinfThreshold",
        toolkit="genrobust",
        parameters={"steps": 2},
    )
    suite = Suite(
        name="refusing",
        dataset="digits",
        models=(SuiteModel(name="gmvae", title="GMVAE"),),
        threat_models=(ThreatModel(norm="linf", epsilon=0.3),),
        attacks=(
            make("through"),
            make("bare", against="bare"),
            make("on-encoder", against="encoder"),
            threshold,
        ),
        samples=4,
    )
    results = run_suite(suite, models={"gmvae": selective}, dataset=digits, out=tmp_path, show_progress=False)
    assert not results.failures
    rows = results.rows.to_pylist()
    assert {row["target"] for row in rows} == {None, "bare", "encoder"}
    assert any(row["rejected"] for row in rows if row["attack"] == "on-encoder")
    assert {row["queries"] for row in rows if row["attack"] == "threshold"} == {27}
    assert {row["gradients"] for row in rows if row["attack"] == "threshold"} == {18}
    assert not any(row["success"] and row["rejected"] for row in rows)
