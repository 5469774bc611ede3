"""The attacks of AutoAttack, RobustBench's judge."""

from typing import Any

from ..contract import Adapter, AttackEntry

__all__ = ["ROBUSTBENCH"]

_STOPS = "It stops at the first query that says fooled, and counts the column 'reject' as such."
_ON_THE_BOUNDARY = "Minimal norm: its examples lie on the boundary of the attacked variant, and fall easily."


def _entry(name: str, note: str, *, score: bool = False, **budget: Any) -> AttackEntry:
    return AttackEntry(
        name=name,
        norm="linf",
        knowledge="score" if score else "white",
        parameters={"norm": "linf", **budget},
        needs_epsilon=True,
        targeted=score,
        note=f"{note} {_STOPS}",
    )


ROBUSTBENCH = Adapter(
    toolkit="robustbench",
    title="RobustBench / AutoAttack",
    distribution="pyautoattack",
    package="pyautoattack",
    released="2024-12",
    maintained=False,
    alternatives={"autoattack": "autoattack"},
    attacks=(
        _entry("apgd-ce", "Blind where the softmax of a confident model saturates.", n_iter=20, n_restarts=1),
        _entry("apgd-dlr", "Needs 3 classes.", n_iter=20, n_restarts=1),
        _entry(
            "apgd-t",
            "Needs 4 classes. Chooses its targets itself: the likeliest classes.",
            n_iter=20,
            n_target_classes=3,
        ),
        _entry("fab", _ON_THE_BOUNDARY, n_iter=20, n_restarts=1),
        _entry("fab-t", f"{_ON_THE_BOUNDARY} Chooses its targets itself.", n_iter=20, n_target_classes=3),
        _entry(
            "square",
            "The only one that needs no gradient and can be told a target.",
            score=True,
            n_queries=500,
        ),
        _entry(
            "AutoAttack",
            "The attacks of a version in turn, each on what the others left; here with a reduced budget.",
            version="standard",
            n_iter=10,
            n_target_classes=2,
            n_queries=200,
        ),
    ),
    implementation="genrobust.adapters._robustbench",
)
