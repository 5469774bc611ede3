"""The speed benchmark runs and reports what it promises; no figure is asserted."""

import json
import subprocess
import sys
from pathlib import Path


def test_command_writes_every_figure(tmp_path: Path) -> None:
    report = tmp_path / "speed.json"
    command = [sys.executable, "-m", "genrobust.benchmarks.speed", "--quick", "--repeats", "1", "--json"]
    done = subprocess.run([*command, str(report)], capture_output=True, text=True, check=True)
    assert "decoder bank" in done.stdout
    results = json.loads(report.read_text())
    assert results["budget"] == {"candidates": 800, "steps": 5}
    assert [row["batch_size"] for row in results["inference"]] == [1, 16, 128]
    for row in results["inference"]:
        assert row["ms_per_image"] > row["search_ms_per_image"] > 0
        assert row["peak_mib"] > 0
    bank = results["bank"]
    assert bank["ratio"] == bank["loop_ms"] / bank["bank_ms"]
