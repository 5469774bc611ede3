"""The measurement of large reports, on small ones: time is no test."""

import json
from pathlib import Path

import pytest

from genrobust.benchmarks.run.results import load_results
from genrobust.benchmarks.speed.report import main, measure_report, simulate_run
from genrobust.benchmarks.statistics import summarise


def test_a_simulated_run_is_a_run(tmp_path: Path) -> None:
    rows = simulate_run(tmp_path, rows=500, models=3, batch_size=5)
    results = load_results(tmp_path)
    assert len(results.rows) == rows >= 500
    union = next(row for row in summarise(results).rows if row.key == "all-l2")
    accuracies = [union.accuracy(model).value for model in results.models]
    assert 0 <= min(accuracies) < max(accuracies) <= 1


def test_the_measurement_is_of_the_whole_road(tmp_path: Path) -> None:
    rows = simulate_run(tmp_path, rows=300, models=2)
    page = tmp_path / "page.html"
    result = measure_report(tmp_path, page)
    parts = [result[f"{part}_seconds"] for part in ("loading", "statistics", "page")]
    assert min(parts) > 0
    assert result["seconds"] == pytest.approx(sum(parts))
    assert result["rows"] == rows
    assert result["peak_mib"] >= result["peak_before_mib"] > 10
    assert page.read_text().count('class="line s') >= 4


@pytest.mark.slow
def test_the_command_measures_in_a_process_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    main(["--rows", "200", "--models", "2", "--json", str(out)])
    result = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert f"{result['rows']:,} rows" in printed
    assert f"peak {result['peak_mib']:.0f} MiB" in printed
