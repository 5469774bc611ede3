"""The commands as a user types them."""

import errno
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from genrobust import __version__, list_models
from genrobust.cli.main import app, main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*")


def test_models_lists_every_shipped_model() -> None:
    result = CliRunner().invoke(app, ["models"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    for name, dataset in list_models():
        assert any(name in line and dataset in line for line in result.output.splitlines())


def test_train_writes_weights_and_card_and_resumes(tmp_path: Path) -> None:
    command = ["train", "cnn", "--dataset", "digits", "--out", str(tmp_path), "--seed", "1"]
    command += ["--evaluate", "90", "--batch-size", "256", "--accelerator", "cpu"]
    for epochs in ("1", "2"):
        result = CliRunner().invoke(app, [*command, "--epochs", epochs])
        assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["model"], card["seed"], card["epochs"]) == ("cnn", 1, 2)
    assert card["clean_accuracy"]["images"] == 90
    assert card["clean_accuracy"]["value"] > 0.3
    assert {file.name for file in tmp_path.iterdir()} == {
        "card.json",
        "checkpoint.pt",
        "model.safetensors",
        "training.json",
    }


def test_audit_answers_first_and_writes_its_page(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    page = tmp_path / "audit.html"
    command = ["audit", "cnn", "--images", "8", "--check", "zero gradient", "--check", "transfer"]
    result = CliRunner().invoke(app, [*command, "--html", str(page)], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("believable up to here: ")
    assert "zero gradient" in page.read_text()
    result = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(result.stdout)["images"] == 8


@pytest.mark.slow
def test_certify_says_what_is_certified_and_draws_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    figure = tmp_path / "certified.png"
    command = ["certify", "mlp", "--images", "4", "--sigma", "0.2", "--sigma", "0.4", "--n", "50"]
    result = CliRunner().invoke(app, [*command, "--figure", str(figure)], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("the smoothed classifier (sigma 0.2, not the model itself)")
    assert figure.read_bytes().startswith(b"\x89PNG")
    result = CliRunner().invoke(app, [*command, "--radius", "0", "--json"])
    found = json.loads(result.stdout)["certificates"]
    assert list(found) == ["sigma 0.2", "sigma 0.4"]
    assert found["sigma 0.2"]["accuracy"] == [sum(r > 0 for r in found["sigma 0.2"]["radii"]) / 4]
    result = CliRunner().invoke(app, ["certify", "vade", "--images", "1"])
    assert result.stdout.startswith("the radii hold if the inference found is exact")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "resnet"], "'resnet'"),
        (["train", "cnn", "--dataset", "mnits"], "mnist"),
        (["train", "cnn", "--epochs", "0"], "`epochs`"),
        (["train", "adv-linf", "--dataset", "coil20"], "`initial`"),
        (["audit", "vit"], "'vit'"),
        (["audit", "cnn", "--norm", "l0"], "`norm`"),
        (["certify", "mlp"], "'smoothing' certifies any model"),
        (["certify", "mlp", "--sigma", "0"], "`sigma`"),
        (["certify", "mlp", "--sigma", "1", "--radius", "-1"], "`radius"),
        (["certify", "mlp", "--sigma", "1", "--images", "0"], "`images`"),
        (["bench", "quick", "--models", "vit"], "'vit'"),
        (["bench", "quick", "--samples", "0"], "`samples`"),
        (["bench", "quick", "--seed", "-1"], "`seed` to be at least 0"),
        (["train", "cnn", "--seed", "-1"], "`seed` to be at least 0"),
        (["show", "vade", "--out", "a.pdf"], "`--out` to end in .png, but got a.pdf"),
        (["certify", "mlp", "--sigma", "1", "--figure", "a.pdf"], "`--figure` to end in .png, but got a.pdf"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arguments[0] in ("audit", "bench"):
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["genrobust", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("Error: Expected")
    assert message in error


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a file of the user where a folder is wanted, into the working directory."""
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    return tmp_path / "taken"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bench", "quick", "--models", "cnn", "--samples", "1", "--out", "taken"], "taken/manifest.json"),
        (["bench", "quick", "--models", "cnn", "--samples", "1", "--out", "taken/run"], "taken/run"),
        (["train", "cnn", "--epochs", "1", "--out", "taken"], "taken/training.json"),
        (["results", "taken"], "taken/manifest.json"),
        (["report", "taken"], "taken/manifest.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_file_in_the_way_is_told_in_one_line(
    arguments: list[str],
    named: str,
    genrobust: Callable[..., Any],
    taken: Path,
) -> None:
    ran = genrobust(*arguments)
    assert ran.status == 2
    assert ran.errors == f"Error: Expected to read or write {named}, but a file is in the way\n"
    assert taken.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["audit", "cnn", "--images", "2", "--check", "answers", "--html", "taken/a.html"], "believable up"),
        (
            ["certify", "mlp", "--images", "2", "--sigma", "1", "--n", "20", "--figure", "taken/a.png"],
            "the smoothed classifier",
        ),
    ],
    ids=["audit", "certify"],
)
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.usefixtures("taken")
def test_a_page_that_cannot_be_written_costs_no_answer(
    arguments: list[str],
    answer: str,
    more: list[str],
    genrobust: Callable[..., Any],
) -> None:
    ran = genrobust(*arguments, *more)
    assert ran.status == 2
    assert ran.errors.splitlines()[-1] == "Error: Expected to read or write taken, but a file is in the way"
    if more:
        assert json.loads(ran.output)
    else:
        assert ran.output.startswith(answer)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, "permission is denied"),
        (errno.EROFS, "its disk is read-only"),
        (errno.ENOSPC, "the disk is full"),
        (errno.ENAMETOOLONG, "File name too long"),
    ],
)
def test_what_the_system_does_not_do_is_told_in_one_line(
    number: int, reason: str, genrobust: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")

    def failing(path: Path, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("genrobust.benchmarks.run.results.load_results", failing)
    ran = genrobust("report", "runs/mine")
    assert ran.status == 2
    assert ran.errors == f"Error: Expected to read or write runs/mine, but {reason}\n"


def test_the_package_is_a_command_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["genrobust", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("genrobust", run_name="__main__")
    assert not stop.value.code
    assert capsys.readouterr().out == f"genrobust {__version__}\n"


def test_a_package_that_is_missing_is_named_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["genrobust", "show", "deep-bayes"])
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "genrobust.pictures.drawing", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error == "Error: Expected matplotlib to be installed: pip install 'genrobust[all]'"
