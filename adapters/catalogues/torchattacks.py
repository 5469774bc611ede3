"""The attacks of torchattacks."""

from ..registry import Adapter

__all__ = ["TORCHATTACKS"]

TORCHATTACKS = Adapter(
    toolkit="torchattacks",
    title="torchattacks",
    distribution="torchattacks",
    package="torchattacks",
    attacks=(),
    implementation="genrobust.adapters._torchattacks",
)
