"""The attacks of ART."""

from ..registry import Adapter

__all__ = ["ART"]

ART = Adapter(
    toolkit="art",
    title="ART",
    distribution="adversarial-robustness-toolbox",
    package="art",
    attacks=(),
    implementation="genrobust.adapters._art",
)
