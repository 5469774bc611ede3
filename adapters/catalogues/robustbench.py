"""The attacks of AutoAttack, RobustBench's judge."""

from ..registry import Adapter

__all__ = ["ROBUSTBENCH"]

ROBUSTBENCH = Adapter(
    toolkit="robustbench",
    title="RobustBench / AutoAttack",
    distribution="pyautoattack",
    package="pyautoattack",
    attacks=(),
    implementation="genrobust.adapters._robustbench",
)
