"""The numbers of a run as JSON for programs."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..._files import write_json
from ..run.results import Results
from ..statistics import Curve, Row, Summary, summarise

__all__ = ["numbers", "save_table"]

POINTS = 500  # points per curve


def numbers(results: Results, summary: Summary | None = None) -> dict[str, Any]:
    """Returns the numbers of a run as JSON values, with null for infinite ones."""
    summary = summary or summarise(results)
    suite, manifest = results.suite, results.manifest
    content = {
        "suite": suite.name,
        "title": suite.title,
        "paper": suite.paper,
        "scale": suite.scale,
        "reduced": list(suite.reduced),
        "dataset": suite.dataset,
        "samples": len(results.samples),
        "seed": manifest["seed"],
        "models": list(results.models),
        "missing": summary.missing,
        "failures": [{"cell": failure.cell, "error": failure.error} for failure in summary.failures],
        "rows": [line for row in summary.rows for line in _rows(row)],
        "mcnemar": [
            {"row": row.key, "models": [first, second], "p": p}
            for row in summary.rows
            for first, second, p in row.comparisons()
        ],
        "targeted": [asdict(entry) for entry in summary.targeted],
        "medians": [asdict(median) for median in summary.medians],
        "paper_values": [{**asdict(value), "verdict": value.verdict} for value in summary.paper],
        "claims": [asdict(health) for health in summary.claims],
        "costs": [asdict(cost) for cost in summary.costs],
        "curves": [_curve(curve.thinned(POINTS)) for curve in summary.curves],
        "versions": manifest["versions"],
    }
    return {name: _finite(value) for name, value in content.items()}


def save_table(results: Results, path: Path, summary: Summary | None = None) -> None:
    """Saves the numbers as JSON."""
    write_json(path, numbers(results, summary))


def _rows(row: Row) -> Iterator[dict[str, Any]]:
    for model in row.robust:
        accuracy, risk = row.accuracy(model), row.risk(model)
        yield {
            "row": row.key,
            "title": row.title,
            "norm": row.norm,
            "epsilon": row.epsilon,
            "model": model,
            "correct": accuracy.count,
            "total": accuracy.total,
            "accuracy": accuracy.value,
            "low": accuracy.low,
            "high": accuracy.high,
            "error": row.error(model).value,
            "rejection": row.rejection(model).value,
            "coverage": row.coverage(model).value,
            "risk": risk.value if risk else None,
        }


def _curve(curve: Curve) -> dict[str, Any]:
    columns = ("epsilons", "accuracy", "low", "high")
    return {
        "model": curve.model,
        "norm": curve.norm,
        "attacks": list(curve.attacks),
        **{name: getattr(curve, name).tolist() for name in columns},
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
