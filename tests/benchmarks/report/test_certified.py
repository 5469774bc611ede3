"""The figure of certificates shows the shares that they certify."""

import pytest
import torch

from genrobust.benchmarks.report.certified import draw_certified_accuracy
from genrobust.certificates import Certificate, certified_accuracy


def certificate(*radii: float) -> Certificate:
    return Certificate(torch.tensor(radii), torch.zeros(len(radii)))


def test_a_line_falls_where_a_radius_ends() -> None:
    found = {"one": certificate(0.0, 0.5, 0.25, 0.5), "other": certificate(0.0, 0.0)}
    panel = draw_certified_accuracy(found).axes[0]
    line, flat = panel.get_lines()
    assert [entry.get_text() for entry in panel.get_legend().get_texts()] == ["one", "other"]
    assert line.get_drawstyle() == "steps-post"
    assert line.get_xdata().tolist() == [0.0, 0.25, 0.5, 0.525]
    assert line.get_ydata().tolist() == [75.0, 50.0, 0.0, 0.0]
    assert flat.get_ydata().tolist() == [0.0, 0.0]
    for radius, share in zip(line.get_xdata(), line.get_ydata(), strict=True):
        assert 100 * float(certified_accuracy(found["one"], [float(radius)])) == share


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="at least one of `certificates`"):
        draw_certified_accuracy({})
    with pytest.raises(ValueError, match="at least one image"):
        draw_certified_accuracy({"none": certificate()})
