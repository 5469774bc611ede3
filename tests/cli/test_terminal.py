"""Every identifier is whole: at 80 columns, in a pipe, and in encodings that lack half of the characters."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from genrobust import __version__, list_models, load_model
from genrobust._console import spell
from genrobust.adapters import list_attacks
from genrobust.zoo import save_model

pytest.importorskip("foolbox")
pytest.importorskip("pyarrow")
from runs import make_run

from genrobust.benchmarks.run.results import Failure, record_failure

STYLE = re.compile(r"\x1b\[[0-9;]*m")
STREAMS = [("utf-8", 80), ("utf-8", None), ("cp1252", 80), ("cp1252", None), ("ascii", 80), ("ascii", None)]
HOSTILE = "[bold]runs[/] \x1b]0;mine\x07 [/5]"


def shipped_suites() -> Iterable[str]:
    from genrobust.benchmarks.suites.files import shipped_suites

    return shipped_suites()


def suites() -> list[tuple[str, ...]]:
    return [(name,) for name in shipped_suites()]


def attacks() -> list[tuple[str, ...]]:
    return [(row["name"], row["norm"], row["knowledge"]) for row in list_attacks(channels=1)]


TABLES: dict[str, Callable[[], list[tuple[str, ...]]]] = {
    "bench": suites,
    "models": list_models,  # type: ignore[dict-item]
    "attacks": attacks,
}


@pytest.mark.parametrize(("encoding", "columns"), STREAMS)
@pytest.mark.parametrize("command", TABLES)
def test_every_identifier_of_every_row_is_whole(
    command: str, encoding: str, columns: int | None, genrobust: Callable[..., object]
) -> None:
    ran = genrobust(command, encoding=encoding, columns=columns)
    assert ran.status == 0, ran.errors
    lines = [STYLE.sub("", line).split() for line in ran.output.splitlines()]
    for row in TABLES[command]():
        assert any(line[: len(row)] == list(row) for line in lines), row
    assert "\N{HORIZONTAL ELLIPSIS}" not in ran.output
    if columns is not None:
        assert max(len(STYLE.sub("", line)) for line in ran.output.splitlines()) <= columns


@pytest.mark.parametrize("columns", [80, None])
def test_a_model_is_one_line(columns: int | None, genrobust: Callable[..., object]) -> None:
    lines = genrobust("models", columns=columns).output.splitlines()
    assert len(lines) == len(list_models()) + (2 if columns else 1)


def test_no_color_is_heeded(genrobust: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    arguments = ("results", "nowhere")
    assert coloured.search(genrobust(*arguments, columns=80).errors)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(genrobust(*arguments, columns=80).errors)


def test_the_version_is_printed(genrobust: Callable[..., object]) -> None:
    assert genrobust("--version").output == f"genrobust {__version__}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_a_path_is_printed_whole_and_as_it_is(
    encoding: str, genrobust: Callable[..., object], tmp_path: Path
) -> None:
    folder = tmp_path / ("[old] " + "a-folder-whose-name-is-long-" * 5)
    ran = genrobust("results", str(folder), encoding=encoding)
    assert ran.status == 2
    assert str(folder) in ran.errors
    assert len(ran.errors.splitlines()) == 1


SUITE = """
dataset = "digits"
samples = 2
models = [{ name = "mlp", title = "MLP [x]" }]
threat_models = [{ norm = "linf", epsilon = 0.1 }]
[[attacks]]
key = "sign"
title = "signs [/5]"
norm = "linf"
kind = "fixed epsilon"
toolkit = "genrobust"
name = "RandFGSM"
"""


@pytest.mark.parametrize(("encoding", "columns"), STREAMS)
def test_a_finished_run_is_told_whole_in_every_encoding(
    encoding: str, columns: int | None, genrobust: Callable[..., object], tmp_path: Path
) -> None:
    suite, out = tmp_path / "mine.toml", tmp_path / ("[old] " + "a-folder-whose-name-is-long-" * 5)
    suite.write_text(SUITE)
    ran = genrobust("bench", str(suite), "--out", str(out), encoding=encoding, columns=columns)
    assert ran.status == 0, ran.errors
    lines = [STYLE.sub("", line) for line in ran.output.splitlines()]
    assert lines[0] == "weights: mlp shipped"
    assert f"the report is {out / 'report.html'}; rows, table and curves are beside it" in lines
    assert any(spell("L∞, ε = 0.1", encoding) in line for line in lines)
    assert any("signs [/5]" in line for line in lines)
    ran = genrobust("report", str(out), encoding=encoding, columns=columns)
    assert STYLE.sub("", ran.output) == f"the report is in {out / 'report.html'}\n"


def test_the_first_line_says_where_other_weights_come_from(
    genrobust: Callable[..., object], tmp_path: Path
) -> None:
    weights = tmp_path / "mine" / "mlp-digits" / "model.safetensors"
    save_model(load_model("mlp", dataset="digits"), weights)
    (tmp_path / "mine.toml").write_text(SUITE)
    arguments = (
        "bench",
        str(tmp_path / "mine.toml"),
        "--out",
        str(tmp_path / "run"),
        "--folder",
        str(tmp_path / "mine"),
    )
    ran = genrobust(*arguments)
    assert ran.status == 0, ran.errors
    assert ran.output.splitlines()[0] == f"weights: mlp from {weights}"


def test_brackets_in_answers_and_failures_are_text(genrobust: Callable[..., object], tmp_path: Path) -> None:
    out = make_run(tmp_path, left_out=lambda cell: cell.attack == "ddn" and cell.batch == 1)
    record_failure(out, Failure(cell="cnn/ddn/0001", error=f"no {HOSTILE}", traceback="", when="now"))
    ran = genrobust("results", str(out))
    assert ran.status == 0, ran.errors
    assert r"failed cnn/ddn/0001: no [bold]runs[/] \x1b]0;mine\x07 [/5]" in ran.output
    ran = genrobust("results", str(out), "--query", "select '[/5] ' || chr(27) || '[2J' as \"[/q]\"")
    assert ran.output == "[/q]\n[/5] \\x1b[2J\n"


def test_control_characters_and_markup_reach_no_terminal(
    genrobust: Callable[..., object], tmp_path: Path
) -> None:
    ran = genrobust("results", str(tmp_path / HOSTILE))
    assert ran.status == 2
    assert r"[bold]runs[/] \x1b]0;mine\x07 [/5]" in ran.errors
    assert "\x1b" not in ran.errors
    assert "\x07" not in ran.errors
