"""The curves of a run as SVG, with the colours of the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from ..._brief import one_line
from ..run.results import Results
from ..statistics import Curve, Row, Summary
from ..suites.model import Norm, ThreatModel
from .words import NORM_TITLES, NOTHING, percent

__all__ = ["Panel", "mark", "panels", "right_end", "style"]

WIDTH, HEIGHT = 480, 330
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 46
POINTS = 240  # points per curve: more than a screen shows
STYLES = 7  # number of line styles in the page's style sheet
UNITS = {"l0": "changed pixels"}
MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "M-3.6 -3.6h7.2v7.2h-7.2z",
    "M0 -5L5 0L0 5L-5 0z",
    "M0 -4.6L4.4 3.4H-4.4z",
    "M0 4.6L4.4 -3.4H-4.4z",
    "M-4.5 -1.5h3v-3h3v3h3v3h-3v3h-3v-3h-3z",
    "M-4 -4L4 4M4 -4L-4 4",
)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The curves of one norm.

    Attributes:
        norm: Norm of the perturbation.
        title: Title for readers.
        attacks: A sentence that explains the lines.
        union: A sentence that explains the markers.
        svg: The drawing.
        text: The alt text of the drawing.
        heads: Heads of the table with the same numbers: the models.
        rows: Rows of that table: epsilon, and accuracy with its interval per model.
    """

    norm: Norm
    title: str
    attacks: str
    union: str
    svg: Markup
    text: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class _Scale:
    right: float

    def x(self, epsilon: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(epsilon / self.right, 1.0)

    def y(self, share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)


def mark(index: int) -> Markup:
    """Returns the outline of a model's marker."""
    return Markup(MARKS[_turned(index)])


def style(index: int) -> str:
    """Returns the style classes of a model's line, for its colour and its dashes."""
    return f"s{index % STYLES} d{_turned(index)}"


def _turned(index: int) -> int:
    """Pairs the colours with other dashes and markers once every colour is used."""
    return (index + index // STYLES) % STYLES


def right_end(threat: ThreatModel, curves: Sequence[Curve]) -> float:
    """Returns the epsilon at which a panel ends."""
    if threat.curve_epsilons:
        return max(threat.epsilons)
    return threat.epsilon * (2 if any(curve.exact for curve in curves) else 1.2)


def panels(results: Results, summary: Summary) -> list[Panel]:
    """Draws accuracy against epsilon, a panel per norm.

    Lines show the attacks that are known at every epsilon. Their band is the 95 % Wilson interval. A marker
    shows the union of all attacks at the table's epsilon.
    """
    drawn = []
    for threat in results.suite.threat_models:
        rows = [row for row in summary.rows if row.norm == threat.norm]
        curves = [curve for curve in summary.curves if curve.norm == threat.norm]
        if rows:
            drawn.append(_panel(results, threat, rows[-1], curves))
    return drawn


def _panel(results: Results, threat: ThreatModel, row: Row, curves: Sequence[Curve]) -> Panel:
    scale = _Scale(right=right_end(threat, curves))
    numbers = {model: index for index, model in enumerate(results.models)}
    parts = [*_axes(scale, threat)]
    parts += [_band(scale, curve, numbers[curve.model]) for curve in curves]
    parts += [_line(scale, curve, numbers[curve.model]) for curve in curves]
    shown = [model for model in results.models if model in row.robust]
    for index, model in enumerate(shown):
        offset = 7 * (index - (len(shown) - 1) / 2)  # side by side, so that no marker hides another
        parts += _point(scale, row, model, numbers[model], threat.epsilon, offset)
    attacks = list(dict.fromkeys(attack for curve in curves for attack in curve.attacks))
    titles = {model: results.suite.model(model).title for model in results.models}
    values = ", ".join(
        f"{titles[model]} {percent(row.accuracy(model).value, row.accuracy(model).total)}" for model in shown
    )
    return Panel(
        norm=threat.norm,
        title=NORM_TITLES[threat.norm],
        attacks=f"Lines: {', '.join(attacks)}." if attacks else "No attack is known at every ε.",
        union=f"{row.title} at ε = {threat.epsilon:g}",
        svg=Markup("".join(parts)),
        text=f"Accuracy against the size of the {NORM_TITLES[threat.norm]} perturbation. "
        f"Under {row.title} at ε = {threat.epsilon:g}: {values}.",
        heads=tuple(titles[curve.model] for curve in curves),
        rows=tuple(_numbers(threat, curves)) if curves else (),
    )


def _axes(scale: _Scale, threat: ThreatModel) -> Iterator[str]:
    bottom, right = scale.y(0), WIDTH - RIGHT
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = scale.y(share)
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f}</text>'
    for tick in MaxNLocator(6).tick_values(0, scale.right):
        if 0 <= tick <= scale.right * 1.0001:
            x = scale.x(float(tick))
            yield f'<text class="tick" x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{tick:g}</text>'
    x = scale.x(threat.epsilon)
    yield f'<line class="table-epsilon" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom:.1f}"/>'
    unit = UNITS.get(threat.norm, "pixels in [0, 1]")
    middle = (LEFT + right) / 2
    label = f"{NORM_TITLES[threat.norm]} perturbation ε, {unit}"
    yield f'<text class="axis" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>'
    y = (TOP + bottom) / 2
    yield (
        f'<text class="axis" transform="translate(12 {y:.1f}) rotate(-90)" text-anchor="middle">'
        "accuracy, %</text>"
    )


def _visible(scale: _Scale, curve: Curve) -> Curve:
    """Drops the points to the right of the panel, except for the accuracy at its edge."""
    inside = curve.epsilons <= scale.right
    columns = {name: getattr(curve, name)[inside] for name in ("epsilons", "accuracy", "low", "high")}
    if curve.exact:
        columns["epsilons"] = np.append(columns["epsilons"], scale.right)
        columns |= {name: np.append(columns[name], columns[name][-1]) for name in ("accuracy", "low", "high")}
    return Curve(
        model=curve.model, norm=curve.norm, attacks=curve.attacks, exact=curve.exact, **columns
    ).thinned(POINTS)


def _path(
    scale: _Scale, epsilons: Float[np.ndarray, " points"], shares: Float[np.ndarray, " points"], *, step: bool
) -> list[str]:
    points: list[str] = []
    before = None
    for epsilon, share in zip(epsilons, shares, strict=True):
        x, y = f"{scale.x(float(epsilon)):.1f}", f"{scale.y(float(share)):.1f}"
        if step and before is not None:
            points.append(f"{x},{before}")
        points.append(f"{x},{y}")
        before = y
    return points


def _band(scale: _Scale, curve: Curve, number: int) -> str:
    seen = _visible(scale, curve)
    high = _path(scale, seen.epsilons, seen.high, step=curve.exact)
    low = _path(scale, seen.epsilons, seen.low, step=curve.exact)
    return f'<polygon class="band {style(number)}" points="{" ".join([*high, *reversed(low)])}"/>'


def _line(scale: _Scale, curve: Curve, number: int) -> str:
    seen = _visible(scale, curve)
    points = _path(scale, seen.epsilons, seen.accuracy, step=curve.exact)
    return f'<polyline class="line {style(number)}" points="{" ".join(points)}"/>'


def _point(scale: _Scale, row: Row, model: str, number: int, epsilon: float, offset: float) -> Iterator[str]:
    share = row.accuracy(model)
    x, y = min(scale.x(epsilon) + offset, WIDTH - RIGHT), scale.y(share.value)
    low, high = scale.y(share.low), scale.y(share.high)
    yield f'<line class="error {style(number)}" x1="{x:.1f}" x2="{x:.1f}" y1="{high:.1f}" y2="{low:.1f}"/>'
    yield f'<path class="mark {style(number)}" transform="translate({x:.1f} {y:.1f})" d="{mark(number)}"/>'


def _numbers(threat: ThreatModel, curves: Sequence[Curve]) -> Iterator[tuple[str, ...]]:
    for epsilon in (0.0, *threat.epsilons):
        cells = [f"{epsilon:g}"]
        for curve in curves:
            at = int(np.searchsorted(curve.epsilons, epsilon, side="right")) - 1
            total = 1000 if len(curve.epsilons) > 500 else 100
            cells.append(percent(float(curve.accuracy[at]), total) if at >= 0 else NOTHING)
        yield tuple(cells)
