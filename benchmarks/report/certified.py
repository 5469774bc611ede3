"""The figure of certificates: the share of images whose decision is certified, over the L2 radius."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..._console import in_figure
from ..._files import write_atomically
from ...certificates import Certificate, SmoothingCertificate, certified_accuracy
from ..statistics import wilson_interval
from .figure import AXIS_TITLES, FONT_SIZE, STYLES, LineStyle

__all__ = ["draw_certified_accuracy", "save_certified_accuracy"]


def draw_certified_accuracy(certificates: Mapping[str, Certificate | SmoothingCertificate]) -> Figure:
    """Draws certified accuracy against the radius, a line for each certificate, with its 95 % interval.

    Args:
        certificates: What `certify` returned, by the name that the legend gives it.

    Raises:
        ValueError: If there is no certificate, or one without images.
    """
    if not certificates:
        raise ValueError("Expected at least one of `certificates`, but got none")
    figure = Figure(figsize=(4.2, 2.9), layout="constrained")
    panel = figure.subplots()
    right = max(max(found.radii.tolist(), default=0.0) for found in certificates.values()) or 1.0
    for index, (name, found) in enumerate(certificates.items()):
        _draw(panel, found, STYLES[index % len(STYLES)], name=name, right=1.05 * right)
    panel.set_ylabel("certified accuracy (%)", fontsize=FONT_SIZE)
    panel.set_xlabel(AXIS_TITLES["l2"], fontsize=FONT_SIZE)
    panel.tick_params(labelsize=FONT_SIZE - 1)
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.set_xlim(0, 1.05 * right)
    panel.set_ylim(-3, 103)
    panel.set_yticks(range(0, 101, 20))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="0.92", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.legend(frameon=False, fontsize=FONT_SIZE - 1)
    return figure


def save_certified_accuracy(
    certificates: Mapping[str, Certificate | SmoothingCertificate], path: Path
) -> None:
    """Saves the figure as PNG."""
    figure = draw_certified_accuracy(certificates)
    with write_atomically(path) as part:
        figure.savefig(part, format="png", dpi=200)


def _draw(
    panel: Axes,
    found: Certificate | SmoothingCertificate,
    style: tuple[str, LineStyle, str],
    *,
    name: str,
    right: float,
) -> None:
    color, line, _ = style
    radii = np.unique([0.0, *found.radii.tolist(), right])  # the share falls at the images' own radii
    shares: Float[np.ndarray, " radii"] = certified_accuracy(found, radii.tolist()).cpu().numpy()
    low, high = wilson_interval(shares, len(found.radii))
    panel.fill_between(radii, 100 * low, 100 * high, step="post", color=color, alpha=0.15, linewidth=0)
    panel.plot(
        radii,
        100 * shares,
        color=color,
        linestyle=line,
        linewidth=1.4,
        drawstyle="steps-post",
        label=in_figure(name),
    )
