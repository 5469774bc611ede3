"""The attacks of AdverTorch."""

from ..registry import Adapter

__all__ = ["ADVERTORCH"]

ADVERTORCH = Adapter(
    toolkit="advertorch",
    title="AdverTorch",
    distribution="advertorch",
    package="advertorch",
    attacks=(),
    implementation="genrobust.adapters._advertorch",
)
