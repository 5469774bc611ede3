"""The figure of the speed benchmark: time over batch size, classes and candidates, and memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..._files import write_atomically

__all__ = ["save_figure"]

Rows = Sequence[Mapping[str, Any]]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
REFINED = {"all": "every class refined", "leading": "the two leading classes refined"}


def save_figure(results: Mapping[str, Any], path: Path) -> None:
    """Draws the figure and writes it as PNG, atomically."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    (batches, memory), (classes, candidates) = figure.subplots(2, 2)
    _draw_batches(batches, results["against_reference"])
    _draw_memory(memory, results["peak"])
    _draw_classes(classes, results["classes"])
    _draw_candidates(candidates, results["candidates"])
    budget = results["budget"]
    figure.suptitle(
        f"Latent inference: {budget['candidates']} candidates, at most {budget['steps']} steps, "
        f"{results['threads']} CPU thread{'s' if results['threads'] > 1 else ''}",
        fontsize=11,
    )
    with write_atomically(path) as part:
        figure.savefig(part, format="png", dpi=160)


def _draw_batches(panel: Axes, rows: Rows) -> None:
    names = dict.fromkeys((row["model"], row["device"]) for row in rows)
    for colour, (model, device) in zip(COLOURS, names, strict=False):
        own = [row for row in rows if (row["model"], row["device"]) == (model, device)]
        _line(panel, own, "batch_size", "ms_per_image", f"{model}, {device}", "o-", colour)
        plain = f"{model}, {device}, plain reference"
        _line(panel, own, "batch_size", "reference_ms_per_image", plain, "s--", colour)
        for row in own:
            at = (row["batch_size"], row["ms_per_image"])
            below: dict[str, Any] = {"xytext": (0, -13), "textcoords": "offset points", "ha": "center"}
            panel.annotate(f"{row['ratio']:.0f}x", at, **below, fontsize=8, color=colour)
    panel.set_title("numbers: times faster than the plain reference", fontsize=9)
    _finish(panel, "images a batch", [row["batch_size"] for row in rows])


def _draw_classes(panel: Axes, rows: Rows) -> None:
    for colour, device in zip(COLOURS, dict.fromkeys(row["device"] for row in rows), strict=False):
        for (kind, label), style in zip(REFINED.items(), ("o--", "^-"), strict=True):
            own = [row for row in rows if (row["refined"], row["device"]) == (kind, device)]
            _line(panel, own, "classes", "ms_per_image", f"{device}, {label}", style, colour)
    _finish(panel, "classes", [row["classes"] for row in rows])


def _draw_candidates(panel: Axes, rows: Rows) -> None:
    for colour, device in zip(COLOURS, dict.fromkeys(row["device"] for row in rows), strict=False):
        own = [row for row in rows if row["device"] == device]
        _line(panel, own, "candidates", "ms_per_image", f"{device}, search and refinement", "o-", colour)
        _line(panel, own, "candidates", "search_ms_per_image", f"{device}, search", "s--", colour)
    _finish(panel, "candidates a class", [row["candidates"] for row in rows])


def _draw_memory(panel: Axes, rows: Rows) -> None:
    labels = [f"{row['model']}{'' if row['fast'] else ', plain reference'}" for row in rows]
    colours = [COLOURS[0] if row["fast"] else "#999999" for row in rows]
    bars = panel.barh(labels, [row["peak_mib"] for row in rows], color=colours)
    imports = [row["imports_mib"] for row in rows]
    panel.barh(labels, imports, color="#00000033", label="before the first image")
    panel.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    panel.margins(x=0.15)
    panel.invert_yaxis()
    panel.set_xlabel("peak memory of the process, MiB")
    panel.legend(fontsize=8, frameon=False)


def _line(panel: Axes, rows: Rows, across: str, value: str, label: str, style: str, colour: str) -> None:
    points = [row[across] for row in rows], [row[value] for row in rows]
    panel.plot(*points, style, label=label, color=colour, markersize=4)


def _finish(panel: Axes, title: str, ticks: Sequence[int]) -> None:
    panel.set(xscale="log", yscale="log", xlabel=title, ylabel="milliseconds an image")
    panel.set_xticks(sorted(set(ticks)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    panel.margins(x=0.08, y=0.15)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, edgecolor="none", framealpha=0.8)
