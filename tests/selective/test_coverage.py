"""The risk-coverage curve against a case by hand."""

import pytest
import torch

from genrobust.selective import risk_coverage


def test_a_curve_by_hand() -> None:
    margins = torch.tensor([0.3, -1.0, 2.0, -0.5, 0.0])
    wrong = torch.tensor([False, False, True, True, False])
    curve = risk_coverage(margins, wrong)
    assert curve.coverage.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert curve.risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4, 2 / 5])
    assert curve.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)


def test_images_of_equal_margin_are_accepted_together() -> None:
    curve = risk_coverage(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([True, False, False, False]))
    assert curve.coverage.tolist() == [0.5, 1.0]
    assert curve.risk.tolist() == [0.0, 0.25]
    assert curve.area == pytest.approx(0.125)


@pytest.mark.parametrize(("wrong", "expected"), [(torch.zeros(7), 0.0), (torch.ones(7), 1.0)])
def test_the_area_of_the_best_and_the_worst(wrong: torch.Tensor, expected: float) -> None:
    assert risk_coverage(torch.arange(7.0), wrong.bool()).area == pytest.approx(expected)


def test_the_area_of_margins_that_say_nothing_is_the_error() -> None:
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(20_000, generator=generator) < 0.2
    assert risk_coverage(torch.randn(20_000, generator=generator), wrong).area == pytest.approx(0.2, abs=0.02)


def test_no_images() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        risk_coverage(torch.zeros(0), torch.zeros(0).bool())
