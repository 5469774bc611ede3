import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from genrobust.benchmarks.report import render_table, write_report
from genrobust.benchmarks.report.document import describe
from genrobust.benchmarks.report.figure import draw_figure
from genrobust.benchmarks.run.identity import identity
from genrobust.benchmarks.run.results import Results
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import Suite, ThreatModel

DIGITS = load_suite("digits")


@pytest.fixture
def suite() -> Suite:
    return replace(
        DIGITS,
        attacks=tuple(DIGITS.attack(key) for key in ("fgsm", "pgd-linf", "ddn")),
        threat_models=(
            ThreatModel(norm="linf", epsilon=0.2, curve_epsilons=(0.1, 0.2, 0.3)),
            ThreatModel(norm="l2", epsilon=1.5),
        ),
    )


@pytest.fixture
def results(suite: Suite, make_results: Callable[..., Results], tmp_path: Path) -> Results:
    """The CNN always falls, E-ABS does so for every fourth sample, and one claim against it is false."""
    rows: list[Any] = []
    for model, falls in (("cnn", 1), ("eabs", 4)):
        for sample in range(16):
            hit = sample % falls == 0
            rows += [
                (model, "clean", sample, True, False, 0.0),
                (model, "fgsm", sample, True, hit, 0.2),
                (model, "pgd-linf", sample, True, hit or sample == 1, 0.2),
                (model, "ddn", sample, True, True, 0.1 * sample if falls == 1 else 1.2 + 0.1 * sample),
            ]
    made = make_results(suite, rows)
    return replace(made, folder=tmp_path, manifest={**made.manifest, "versions": {"torch": "x"}})


def test_the_report_names_the_weights_of_every_part_of_a_wrapper(
    results: Results, make_model: Callable[..., Any]
) -> None:
    plain, purified = make_model("cnn"), make_model("purified")
    models = {"cnn": identity(plain), "eabs": identity(purified)}
    told = dict(describe(replace(results, manifest={**results.manifest, "models": models})).environment)
    hashes = {
        name: f"sha256 {part.settings()['weights'][:16]}… on cpu"
        for name, part in (
            ("cnn", plain),
            ("eabs, purifier", purified.purifier),
            ("eabs, classifier", purified.classifier),
        )
    }
    found = {name.removeprefix("weights of "): value for name, value in told.items() if "weights" in name}
    assert found == hashes


def shown(results: Results, width: int = 100) -> str:
    output = StringIO()
    Console(file=output, width=width).print(render_table(results))
    return output.getvalue()


def test_the_table_shows_every_row_and_note(results: Results) -> None:
    lines = shown(results).splitlines()
    text = "\n".join(lines)

    def line(start: str) -> str:
        return next(line for line in lines if line.strip().startswith(start))

    assert "digits: digits, 16 test images, seed 0" in text
    assert line("accuracy under").split()[-2:] == ["CNN", "E-ABS"]
    assert line("clean").count("100 %") == 2
    assert "75 %*  51-90" in line("FGSM")
    assert "69 %*  44-86" in line("PGD")
    assert "L∞, ε = 0.2" in text
    assert "L2, ε = 1.5" in text
    assert line("all attacks").split()[2:4] == ["0", "%"]
    assert "McNemar's p, E-ABS against CNN: clean 1, all attacks L∞ 0.00098" in " ".join(text.split())
    assert "not confirm: CNN 0 of 48, E-ABS 23 of 48" in " ".join(text.split())


def test_one_model_needs_no_comparison(results: Results) -> None:
    assert "McNemar" not in shown(replace(results, models=("eabs",)))


def test_the_report_is_written(results: Results) -> None:
    table, page, figure = write_report(results)
    content = json.loads(table.read_text())
    rows = {(row["row"], row["model"]): row for row in content["rows"]}
    assert rows["fgsm", "eabs"]["accuracy"] == 0.75
    assert rows["all-linf", "cnn"]["correct"] == 0
    assert rows["clean", "cnn"]["low"] == pytest.approx(0.806, abs=1e-3)
    assert {entry["row"] for entry in content["mcnemar"]} == {"clean", "fgsm", "pgd-linf", "all-linf", "ddn"}
    assert {curve["norm"] for curve in content["curves"]} == {"linf", "l2"}
    assert page.read_text().count("<svg") >= 2
    image = imread(figure)
    assert image.shape[0] > 400
    assert image[..., :3].std() > 0.05
    assert {path.name for path in results.folder.iterdir()} == {"table.json", "curves.png", "report.html"}


def test_the_figure_has_a_panel_per_norm_and_a_line_per_model(results: Results) -> None:
    figure = draw_figure(results)
    assert len(figure.axes) == 2
    for panel, norm in zip(figure.axes, ("infty", "_2"), strict=True):
        assert norm in panel.get_xlabel()
        lines = [np.asarray(line.get_ydata()) for line in panel.get_lines()]
        curves = [line for line in lines if len(line) > 2]
        assert len(curves) == 2
        assert all((np.diff(curve) <= 0).all() for curve in curves)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["CNN", "E-ABS"]
