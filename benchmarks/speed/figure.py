"""The figure of the speed benchmark: time against batch size, classes and candidates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...storage import write_atomically

__all__ = ["save_figure"]


def save_figure(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG atomically."""
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    batches, classes, candidates = figure.subplots(1, 3)
    rows = results["against_reference"]
    for name in dict.fromkeys((row["model"], row["device"]) for row in rows):
        own = [row for row in rows if (row["model"], row["device"]) == name]
        _line(batches, own, "batch_size", "ms_per_image", f"{name[0]}, {name[1]}", "o-")
        _line(batches, own, "batch_size", "reference_ms_per_image", f"{name[0]}, {name[1]}, plain", "s--")
    for label, style in (("all", "o-"), ("leading", "^-")):
        own = [row for row in results["classes"] if row["refined"] == label]
        _line(classes, own, "classes", "ms_per_image", f"{label} classes refined", style)
    own = results["candidates"]
    _line(candidates, own, "candidates", "ms_per_image", "all", "o-")
    _line(candidates, own, "candidates", "search_ms_per_image", "search", "s--")
    titles = ("images a batch", "classes", "candidates a class")
    for panel, title in zip((batches, classes, candidates), titles, strict=True):
        panel.set(xscale="log", yscale="log", xlabel=title)
        panel.legend(fontsize=7, frameon=False)
    batches.set_ylabel("milliseconds an image")
    with write_atomically(path) as part:
        figure.savefig(part, format="png", dpi=200)


def _line(
    panel: Axes, rows: Sequence[Mapping[str, Any]], across: str, value: str, label: str, style: str
) -> None:
    panel.plot([row[across] for row in rows], [row[value] for row in rows], style, label=label, markersize=4)
