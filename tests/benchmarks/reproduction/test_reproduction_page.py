"""The page is read back, and the command writes it."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from genrobust import load_dataset, load_model
from genrobust.benchmarks.reproduction import PaperRecord, measured_run, render_reproduction
from genrobust.benchmarks.run.results import Results, load_results
from genrobust.benchmarks.run.runner import run_suite
from genrobust.benchmarks.suites.model import Suite
from genrobust.cli.main import main

Rows = list[dict[str, str]]


def tables(page: str) -> list[Rows]:
    """Reads the tables of a page; a cell is found by the title of its column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        head, rule, *rows = [[cell.strip() for cell in line] for line in lines]
        assert all(len(row) == len(head) for row in (rule, *rows))
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def with_columns(page: str, *titles: str) -> list[Rows]:
    return [rows for rows in tables(page) if rows and set(titles) <= rows[0].keys()]


def page_of(papers: Sequence[PaperRecord], *runs: Results) -> str:
    return render_reproduction([measured_run(results, papers) for results in runs], papers)


@pytest.fixture
def results(tiny_run: Path, tiny: Suite) -> Results:
    return load_results(tiny_run)


def test_the_summary_has_every_claim(results: Results, papers: Sequence[PaperRecord]) -> None:
    (rows,) = with_columns(page_of(papers, results), "claim")
    assert [(row["paper"], row["verdict"]) for row in rows] == [
        ("Nobody 2026", "reproduced"),
        ("Nobody 2026", "**not reproduced**"),
        ("Nobody 2026", "cannot be tested here"),
    ]
    assert rows[0]["checks"] == "paper's attacks: 1 reproduced"
    assert rows[2]["checks"] == "there are no faces"


def test_the_evidence_of_a_claim_names_its_run(results: Results, papers: Sequence[PaperRecord]) -> None:
    first, second = with_columns(page_of(papers, results), "claimed")
    assert (first[0]["suite"], first[0]["run"], first[0]["images"]) == ("tiny-table", "tiny", "30")
    assert first[0]["claimed"] == "accuracy, paper: 97.0\N{NO-BREAK SPACE}%"
    assert second[0]["under"].startswith("FGSM L\N{INFINITY}")


def test_every_item_has_a_run_a_command_or_a_reason(results: Results, papers: Sequence[PaperRecord]) -> None:
    (rows,) = with_columns(page_of(papers, results), "item")
    items = {row["item"]: row for row in rows}
    assert (items["Table 1"]["run"], items["Table 1"]["images"]) == ("tiny", "30")
    assert items["Table 1"]["numbers"] == "1 reproduced, 1 better, 1 not reproduced; a note"
    assert items["Table 1"]["command"] == "genrobust bench tiny.toml --samples 30"
    assert items["Table 2"]["run"] == "no run was given"
    assert items["Table 2"]["command"] == "genrobust bench eabs-table5 --scale paper"
    assert "needs training first: base-abs, a-abs" in items["Table 2"]["numbers"]
    assert items["Figure 1"]["command"] == "genrobust show deep-bayes"
    assert items["Figure 2"]["numbers"] == "cannot be tested here: there are no faces"


def test_the_table_of_a_run_has_the_numbers_of_its_summary(
    results: Results, papers: Sequence[PaperRecord]
) -> None:
    page = page_of(papers, results)
    (rows,) = with_columns(page, "ours by the paper's attack")
    run = measured_run(results, papers)
    assert len(rows) == len(run.numbers) == 3
    for row, judged in zip(rows, run.numbers, strict=True):
        value = judged.value
        assert row["paper"].startswith(f"{100 * value.paper:.1f}")
        assert row["ours by the paper's attack"].startswith(f"{100 * (value.measured or 0):.1f}")
        assert row["images"] == "30"
        assert row["verdict"].strip("*") == judged.verdict
    strongest = run.numbers[2].strongest
    assert strongest is not None
    assert rows[2]["ours by all attacks"].startswith(f"{100 * strongest.value:.0f}")
    assert [row["ours by all attacks"] for row in rows[:2]] == ["", ""]
    assert "- 30 images \\| in place of &lt;all&gt;." in page


def test_an_unfinished_run_says_so(
    tiny_run: Path, tiny: Suite, papers: Sequence[PaperRecord], tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    shutil.copytree(tiny_run, folder)
    for path in folder.rglob("*.parquet"):
        if "fgsm" in str(path):
            path.unlink()
    page = page_of(papers, load_results(folder, partial=True))
    (rows,) = with_columns(page, "ours by the paper's attack")
    assert rows[2]["verdict"] == "not measured"
    assert "unfinished, 4 cells missing" in page
    assert "**Unfinished.**" in page


def test_other_images_and_other_suites_keep_their_numbers_only(
    results: Results, papers: Sequence[PaperRecord]
) -> None:
    other = replace(results, suite=replace(results.suite, expected=(), dataset="mnist"))
    page = page_of(papers, other)
    assert "on mnist, not the paper's images" in page
    assert "not measured" in with_columns(page, "claim")[0][0]["verdict"]
    assert "The run has no number of the paper. These are ours." in page
    own = replace(results, suite=replace(results.suite, name="mine", paper="", expected=()))
    page = page_of(papers, own)
    assert "### mine, run tiny" in page
    assert "The run has no number of a paper. These are ours." in page


def test_no_run_is_a_page_without_numbers(tiny: Suite, papers: Sequence[PaperRecord]) -> None:
    assert page_of(papers).endswith("## Numbers\n\nNo run was given.\n")


def test_an_own_model_is_shown_with_its_call(
    papers: Sequence[PaperRecord], tmp_path: Path, tiny: Suite
) -> None:
    run_suite(
        replace(tiny, attacks=(), expected=()),
        models={"mine": load_model("mlp", dataset="digits")},
        dataset=load_dataset("digits", "test"),
        samples=4,
        out=tmp_path,
        show_progress=False,
    )
    assert "genrobust.evaluate" in page_of(papers, load_results(tmp_path))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["genrobust", "reproduction", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_the_command_writes_the_page(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.md"
    assert command(monkeypatch, str(tiny_run), str(tiny_run), "--out", str(out)) == 0
    assert "5 papers, 1 run" in capsys.readouterr().out
    page = out.read_text(encoding="utf-8")
    (claims,) = with_columns(page, "claim")
    assert len(claims) == 15
    assert {row["verdict"] for row in claims} == {"not measured"}
    assert "Section 4, FID" in page
    assert "### tiny-table, run tiny" in page
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


def test_a_folder_without_a_run_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.md"
    assert command(monkeypatch, str(tmp_path / "nothing"), "--out", str(out)) == 2
    assert "Error: Expected a run in" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(("weights", "status"), [("the same", 0), ("others", 1)])
def test_the_command_checks_weights(
    weights: str,
    status: int,
    tiny_run: Path,
    blank_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(tiny_run), "--out", str(tmp_path / "page.md"), "--check", "--samples", "40"]
    arguments += ["--folder", str(blank_weights)] if weights == "others" else []
    assert command(monkeypatch, *arguments) == status
    printed = capsys.readouterr().out
    assert printed.count("the same up to chance") == 2 - status
    assert printed.count("differs by more than chance") == status
