"""The figure of a run: robust accuracy over the size of the perturbation, with one panel per norm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..._console import in_figure
from ..._files import write_atomically
from ..run.results import Results
from ..statistics import Curve, Row, Summary, summarise
from ..suites.model import Norm, ThreatModel
from .curves import right_end

__all__ = ["draw_figure", "save_figure"]

LineStyle: TypeAlias = Literal["-", "--", "-.", ":"]

# Okabe and Ito's palette suits every common colour blindness; line style and marker repeat the colour.
STYLES: tuple[tuple[str, LineStyle, str], ...] = (
    ("#000000", "-", "o"),
    ("#E69F00", "--", "s"),
    ("#0072B2", "-", "D"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "v"),
    ("#D55E00", "--", "P"),
    ("#56B4E9", "-.", "X"),
)
FONT_SIZE = 9
AXIS_TITLES: Mapping[Norm, str] = {
    "l0": r"$L_0$ perturbation $\epsilon$ (changed pixels)",
    "l1": r"$L_1$ perturbation $\epsilon$ (pixels in [0, 1])",
    "linf": r"$L_\infty$ perturbation $\epsilon$ (pixels in [0, 1])",
    "l2": r"$L_2$ perturbation $\epsilon$ (pixels in [0, 1])",
}


def draw_figure(results: Results, summary: Summary | None = None) -> Figure:
    """Draws the accuracy-distortion curves.

    A line shows the attacks that are known at every size of the perturbation. A marker shows the union of all
    attacks at the table's epsilon, with its 95 % interval.

    Raises:
        ValueError: If nothing was attacked.
    """
    summary = summary or summarise(results)
    norms = [norm for norm in results.suite.norms if any(row.norm == norm for row in summary.rows)]
    if not norms:
        raise ValueError("Expected a run with attacks, but got one of clean images")
    figure = Figure(figsize=(3.4 * len(norms), 2.9), layout=ConstrainedLayoutEngine(w_pad=0.08, wspace=0.04))
    panels = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    for panel, norm in zip(panels, norms, strict=True):
        _draw_panel(panel, results, summary, results.suite.threat_model(norm))
    panels[0].set_ylabel("robust accuracy (%)", fontsize=FONT_SIZE)
    figure.legend(
        handles=_legend(results),
        loc="outside lower center",
        ncols=len(results.models) + 1 if len(results.suite.norms) > 1 else 2,
        frameon=False,
        fontsize=FONT_SIZE,
    )
    return figure


def save_figure(results: Results, path: Path, summary: Summary | None = None) -> None:
    """Saves the figure as PNG."""
    figure = draw_figure(results, summary)
    with write_atomically(path) as part:
        figure.savefig(part, format="png", dpi=200)


def _draw_panel(panel: Axes, results: Results, summary: Summary, threat: ThreatModel) -> None:
    panel.axvline(threat.epsilon, color="0.75", linewidth=0.8, zorder=0)
    curves = [curve for curve in summary.curves if curve.norm == threat.norm]
    right = right_end(threat, curves)
    for curve in curves:
        _draw_curve(panel, curve, STYLES[results.models.index(curve.model) % len(STYLES)])
    for row in [row for row in summary.rows if row.norm == threat.norm][-1:]:  # the union, or the only attack
        _draw_points(panel, results.models, row, threat.epsilon, width=0.02 * right)
    attacks = ", ".join(curves[0].attacks) if curves else "none at every ε"
    panel.set_title(in_figure(f"lines: {attacks}"), fontsize=FONT_SIZE - 1, loc="left", color="0.3")
    panel.set_xlabel(AXIS_TITLES[threat.norm], fontsize=FONT_SIZE)
    panel.tick_params(labelsize=FONT_SIZE - 1)
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.set_xlim(0, right)
    panel.set_ylim(-3, 103)
    panel.set_yticks(range(0, 101, 20))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="0.92", linewidth=0.6)
    panel.set_axisbelow(True)


def _draw_curve(panel: Axes, curve: Curve, style: tuple[str, LineStyle, str]) -> None:
    color, line, marker = style
    panel.plot(
        curve.epsilons,
        100 * curve.accuracy,
        color=color,
        linestyle=line,
        linewidth=1.4,
        drawstyle="steps-post" if curve.exact else "default",
        marker=None if curve.exact else marker,
        markersize=3,
    )


def _draw_points(panel: Axes, models: tuple[str, ...], row: Row, epsilon: float, *, width: float) -> None:
    for index, model in enumerate(models):
        if model not in row.robust:
            continue
        color, _, marker = STYLES[index % len(STYLES)]
        accuracy = row.accuracy(model)
        panel.errorbar(
            epsilon + width * (index - (len(models) - 1) / 2),  # side by side, so that all markers show
            100 * accuracy.value,
            yerr=[[100 * (accuracy.value - accuracy.low)], [100 * (accuracy.high - accuracy.value)]],
            color=color,
            marker=marker,
            markersize=5.5,
            markerfacecolor="white",
            markeredgewidth=1.3,
            linewidth=1,
            clip_on=False,
            zorder=3,
        )


def _legend(results: Results) -> list[Line2D]:
    handles = []
    for index, model in enumerate(results.models):
        color, line, marker = STYLES[index % len(STYLES)]
        title = in_figure(results.suite.model(model).title)
        handles.append(Line2D([], [], color=color, linestyle=line, marker=marker, markersize=4, label=title))
    label = "all attacks at the table's ε, 95 % interval"
    if len(results.suite.norms) == 1:  # the figure has the width of a single panel
        label = "all attacks, 95 % interval"
    return [
        *handles,
        Line2D([], [], color="0.4", linestyle="none", marker="o", markerfacecolor="white", label=label),
    ]
