"""`genrobust export`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")

from runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("export") / "run")


def test_the_files_are_named(run: Path, genrobust: Callable[..., Any], tmp_path: Path) -> None:
    for options, folder in (((), run / "exports" / "hf-eval"), (("--out", str(tmp_path)), tmp_path)):
        ran = genrobust("export", str(run), "--format", "hf-eval", *options)
        assert (ran.status, ran.errors) == (0, "")
        paths = [folder / model / ".eval_results" / "digits.yaml" for model in ("cnn", "eabs")]
        assert ran.output.splitlines() == [f"wrote {path}" for path in paths]
        assert all(path.is_file() for path in paths)


def test_options_reach_the_format(run: Path, genrobust: Callable[..., Any], tmp_path: Path) -> None:
    told = ("--out", str(tmp_path), "--owner", "my-lab", "--benchmark", "my-lab/digits")
    for form in ("every-eval-ever", "hf-eval"):
        assert genrobust("export", str(run), "--format", form, *told).status == 0
    assert len(list((tmp_path / "data" / "digits" / "my-lab" / "cnn").iterdir())) == 2
    assert 'id: "my-lab/digits"' in (tmp_path / "cnn" / ".eval_results" / "digits.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "croisant"), "did you mean 'croissant'?"),
        (("--format", "croissant"), "run it again with --keep-examples"),
        (("--format", "robustbench"), "run it again with --keep-examples"),
        (("--format", "hf-eval", "--benchmark", "../x"), "Expected `benchmark` to be a name"),
        ((), "--format"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    arguments: tuple[str, ...], message: str, run: Path, genrobust: Callable[..., Any]
) -> None:
    ran = genrobust("export", str(run), *arguments)
    assert ran.status == 2
    assert message in " ".join((ran.output + ran.errors).split())
    assert "Traceback" not in ran.errors


def test_a_folder_without_a_run(genrobust: Callable[..., Any], tmp_path: Path) -> None:
    ran = genrobust("export", str(tmp_path), "--format", "hf-eval")
    assert ran.status == 2
    assert len(ran.errors.splitlines()) == 1
    assert "Expected a run in" in ran.errors


def test_help_says_what_every_format_is(genrobust: Callable[..., Any]) -> None:
    ran = genrobust("export", "--help", columns=100)
    for words in ("every-eval-ever: write", "hf-eval: write", "robustbench: write", "croissant: write"):
        assert words in " ".join(ran.output.split())
