"""The attacks of Foolbox."""

from ..registry import Adapter

__all__ = ["FOOLBOX"]

FOOLBOX = Adapter(
    toolkit="foolbox",
    title="Foolbox",
    distribution="foolbox",
    package="foolbox",
    attacks=(),
    implementation="genrobust.adapters._foolbox",
)
