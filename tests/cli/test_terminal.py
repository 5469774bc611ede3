"""Every identifier is whole: at 80 columns, in a pipe, and in encodings that lack half of the characters."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from genrobust import __version__, list_models
from genrobust.adapters import list_attacks

pytest.importorskip("foolbox")
pytest.importorskip("pyarrow")

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


def test_control_characters_and_markup_reach_no_terminal(
    genrobust: Callable[..., object], tmp_path: Path
) -> None:
    ran = genrobust("results", str(tmp_path / HOSTILE))
    assert ran.status == 2
    assert r"[bold]runs[/] \x1b]0;mine\x07 [/5]" in ran.errors
    assert "\x1b" not in ran.errors
    assert "\x07" not in ran.errors
