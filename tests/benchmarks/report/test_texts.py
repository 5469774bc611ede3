"""Markdown, LaTeX and JSON of the same numbers."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import SMALL, make_run
from typer.testing import CliRunner

from genrobust.benchmarks.report import describe, render, write_report
from genrobust.benchmarks.report.figure import draw_figure, save_figure
from genrobust.benchmarks.run.cells import Cell
from genrobust.benchmarks.run.results import Failure, load_results, record_failure
from genrobust.benchmarks.suites.files import load_suite, shipped_suites
from genrobust.benchmarks.suites.model import CLEAN, Expected, SuiteModel
from genrobust.cli.main import app

HOSTILE = r"<script>alert(1)</script> & 50% of $x_1^2$ \input{passwd} | `a` *b* [c](d) ~#{}"

SUITE = replace(
    SMALL,
    title="Table 1",
    paper="Ju & Wagner 2020",
    reduced=("20 images instead of 1,000.",),
    expected=(
        Expected(model="eabs", attack="ddn", value=0.906, images=1000),
        Expected(model="cnn", attack="all", norm="l2", value=0.5),
        Expected(model="cnn", attack="ddn", value=1.1, quantity="median_distance"),
    ),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), SUITE, samples=20)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    suite = replace(
        SUITE,
        title=HOSTILE,
        paper=HOSTILE,
        reduced=(HOSTILE,),
        models=(SuiteModel(name="cnn", title=HOSTILE), SUITE.models[1]),
        attacks=tuple(replace(attack, title=HOSTILE) for attack in SUITE.attacks),
    )
    return make_run(tmp_path_factory.mktemp("hostile"), suite, samples=8)


def text(run: Path, form: str) -> str:
    return render([describe(load_results(run, partial=True))], form)


def test_markdown_has_the_numbers(run: Path) -> None:
    lines = text(run, "markdown").splitlines()
    assert lines[0] == "# Table 1"
    content = json.loads(text(run, "json"))
    share = next(r for r in content["rows"] if (r["row"], r["model"]) == ("all-l2", "cnn"))
    (row,) = [line for line in lines if line.startswith("| **all attacks** |")][1:]
    assert f"{100 * share['accuracy']:.0f}\N{NO-BREAK SPACE}%" in row
    assert "paper 50.0" in row
    assert "20 images instead of 1,000." in "\n".join(lines)
    assert "    genrobust bench digits --scale small --samples 20 --seed 0" in lines


def test_a_failed_cell_is_named_with_its_error(tmp_path: Path) -> None:
    folder = make_run(tmp_path, SUITE, left_out=lambda cell: cell.attack == "ddn" and cell.batch == 1)
    cell = "cnn/ddn/0001"
    record_failure(folder, Failure(cell=cell, error="ValueError: <no> steps", traceback="", when="now"))
    written = text(folder, "markdown")
    assert (
        "**Unfinished.** This run is not finished: 2 cells missing, 1 of them because of an error" in written
    )
    assert "**2 cells missing, 1 failed**" in written
    assert "Errors: cnn/ddn/0001: ValueError: &lt;no&gt; steps." in written
    assert json.loads(text(folder, "json"))["failures"] == [{"cell": cell, "error": "ValueError: <no> steps"}]
    assert "ValueError: &lt;no&gt; steps" in text(folder, "html")


def test_the_page_says_where_attacks_changed_no_image(tmp_path: Path) -> None:
    def idle(cell: Cell, columns: dict[str, Any]) -> None:
        if cell.attack != CLEAN:
            columns |= {name: np.zeros(len(columns["sample"])) for name in ("distance_linf", "distance_l2")}
            columns["success"] = np.zeros(len(columns["sample"]), bool)

    document = describe(load_results(make_run(tmp_path, SUITE, samples=8, change=idle)))
    (flag,) = [flag for flag in document.flags if "clean image" in flag.title]
    assert flag.raised
    assert flag.title in render([document], "html")


def test_how_to_do_it_again(run: Path) -> None:
    results = load_results(run)
    fewer = replace(results, models=("eabs",))
    assert describe(fewer).command.endswith("--models eabs")
    kept = replace(results, manifest={**results.manifest, "command": "genrobust bench mine.toml"})
    assert describe(kept).command == "genrobust bench mine.toml"
    own = replace(results, suite=replace(SUITE, models=SUITE.models[:1], expected=()))
    assert describe(own).command == (
        "genrobust.evaluate({'cnn': cnn, 'eabs': eabs}, 'digits', scale='small', samples=20, seed=0)"
    )


def test_a_figure_reads_no_mathematics_and_no_control_characters(tmp_path: Path) -> None:
    title = "$\\textsc{ours}$ costs $5\x1b]0;"
    suite = replace(
        SUITE,
        models=(SuiteModel(name="cnn", title=title), SUITE.models[1]),
        attacks=tuple(replace(attack, title=title) for attack in SUITE.attacks),
    )
    results = load_results(make_run(tmp_path, suite, samples=8))
    save_figure(results, tmp_path / "curves.png")
    figure = draw_figure(results)
    shown = "\\$\\textsc{ours}\\$ costs \\$5\\x1b]0;"
    assert figure.legends[0].get_texts()[0].get_text() == shown
    assert figure.axes[0].get_title("left").startswith(f"lines: {shown}")


def test_every_markdown_table_is_rectangular(hostile: Path) -> None:
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text(hostile, "markdown"), re.MULTILINE)
    assert len(tables) >= 6
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


def test_markdown_makes_nothing_of_what_a_suite_says(hostile: Path) -> None:
    written = text(hostile, "markdown")
    assert "<script>" not in written
    assert r"\[c\](d)" in written
    assert r"\`a\` \*b\*" in written


def test_json_is_strict_and_says_null_where_nothing_broke_a_model(run: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads(text(run, "json"), parse_constant=refuse)
    assert {entry["verdict"] for entry in content["paper_values"]} <= {"within", "differs"}
    assert {row["row"] for row in content["rows"]} >= {"clean", "all-linf", "all-l2"}
    assert all(
        row["accuracy"] + row["error"] + row["rejection"] == pytest.approx(1) for row in content["rows"]
    )
    assert content["missing"] == 0


def test_latex_is_balanced_and_escaped(hostile: Path) -> None:
    written = text(hostile, "latex")
    body = "\n".join(line for line in written.splitlines() if not line.startswith("%"))
    assert r"\input" not in body
    assert r"\textbackslash{}input\{passwd\}" in body
    plain = re.sub(r"\\[\\{}$&#_%]", "", body)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert "%" not in plain
    assert "#" not in plain
    for name in ("table", "tabular"):
        assert body.count(rf"\begin{{{name}}}") == body.count(rf"\end{{{name}}}") >= 6
    assert not re.search(r"[^\x00-\x7f]", body), "characters that LaTeX may not know"


def test_every_latex_row_has_a_cell_per_column(hostile: Path) -> None:
    for columns, content in re.findall(
        r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}(.*?)\\end\{tabular\}", text(hostile, "latex"), re.DOTALL
    ):
        rows = [line for line in content.splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 2
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}


def test_latex_compiles(hostile: Path, tmp_path: Path) -> None:
    compiler = shutil.which("pdflatex")
    if compiler is None:
        pytest.skip("there is no pdflatex")
    document = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "report.tex").write_text(f"{document}\n{text(hostile, 'latex')}\n\\end{{document}}\n")
    command = [compiler, "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Overfull" not in done.stdout


def test_the_command_writes_every_format(run: Path, hostile: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    for form, sign in (("html", "<!DOCTYPE html>"), ("markdown", "# Table 1"), ("latex", r"\toprule")):
        out = tmp_path / form
        done = runner.invoke(app, ["report", str(run), str(hostile), "--out", str(out), "--format", form])
        assert done.exit_code == 0, done.output
        assert sign in out.read_text()
    printed = runner.invoke(app, ["report", str(run), "--format", "json"])
    assert json.loads(printed.output)["suite"] == "digits"
    assert runner.invoke(app, ["report", str(run)]).exit_code == 0
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--format", "htlm"], "did you mean 'html'"), (["elsewhere"], "Expected a run in elsewhere")],
)
def test_the_command_says_what_is_wrong(run: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["report", str(run), *arguments])
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)


def test_clean_images_alone_make_a_report_without_curves(tmp_path: Path) -> None:
    suite = replace(SUITE, attacks=(), expected=(Expected(model="cnn", attack="clean", value=0.99),))
    results = load_results(make_run(tmp_path, suite))
    assert [path.name for path in write_report(results)] == ["table.json", "report.html"]
    with pytest.raises(ValueError, match="Expected a run with attacks"):
        draw_figure(results)
    assert "Attacks: none" in text(tmp_path, "markdown")


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_suites())
def test_every_shipped_suite_can_be_reported(name: str, tmp_path: Path) -> None:
    results = load_results(make_run(tmp_path, load_suite(name), samples=3))
    written = {path.name for path in write_report(results)}
    assert {"table.json", "report.html"} <= written
    document = describe(results)
    # Nothing is rejected in a run that nobody has run, so that nothing is reclassified.
    measured = [value for value in document.summary.paper if value.quantity != "reclassified"]
    assert {value.verdict for value in measured} <= {"within", "differs"}
    for form in ("markdown", "latex"):
        assert len(render([document], form)) > 1000
