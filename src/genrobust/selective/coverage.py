"""The risk of a selective classifier among the accepted images, over their share."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._brief import one_line

__all__ = ["RiskCoverage", "risk_coverage"]


@final
@dataclass(frozen=True)
class RiskCoverage:
    """The risk-coverage curve, with a point for every threshold that changes the accepted images.

    Attributes:
        coverage: Share of accepted images, rising to 1.
        risk: Share of wrong decisions among the accepted images.
    """

    coverage: Float[Tensor, " points"]
    risk: Float[Tensor, " points"]

    __repr__ = one_line

    @property
    def area(self) -> float:
        """Area under the curve, a step function. It is the mean risk over coverages; lower is better."""
        widths = self.coverage.diff(prepend=self.coverage.new_zeros(1))
        return float((widths * self.risk).sum())


def risk_coverage(margins: Float[Tensor, " images"], wrong: Bool[Tensor, " images"]) -> RiskCoverage:
    """Computes the curve of accepting images in the order of their margins, the least suspicious first.

    Args:
        margins: The values to threshold, such as `SelectiveClassifier.margins`. Images with equal margins are
            accepted together.
        wrong: Whether the label among the K classes is wrong.

    Raises:
        ValueError: If there are no images.
    """
    if not len(margins):
        raise ValueError("Expected at least one image, but got none")
    values, order = margins.sort()
    accepted = torch.arange(1, len(values) + 1, device=margins.device)
    last = torch.ones_like(wrong)
    last[:-1] = values.diff() > 0
    risk = wrong[order].double().cumsum(0) / accepted
    return RiskCoverage((accepted.double() / len(values))[last], risk[last])
