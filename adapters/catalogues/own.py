"""The attacks of this package, and those that users register."""

from ...attacks import ATTACKS, OwnAttack
from ..contract import Adapter, AttackEntry

__all__ = ["TOOLKIT", "own_adapter"]

TOOLKIT = "genrobust"


def own_adapter() -> Adapter:
    """Makes the adapter of all attacks that are registered now."""
    return Adapter(
        toolkit=TOOLKIT,
        title="genrobust",
        distribution="genrobust",
        package="genrobust",
        attacks=tuple(_entry(attack) for attack in ATTACKS.items().values()),
        implementation="genrobust.adapters._own",
        wrapper="attack_view",
    )


def _entry(attack: OwnAttack) -> AttackEntry:
    return AttackEntry(
        name=attack.name,
        norm=attack.norm,
        knowledge=attack.knowledge,
        parameters=attack.parameters,
        needs_epsilon=attack.needs_epsilon,
        targeted=attack.targets != "none",
        asks_for=attack.asks_for,
        weak=attack.weak,
        note=attack.note,
        every_class=attack.targets == "always",
        queries=attack.queries,
    )
