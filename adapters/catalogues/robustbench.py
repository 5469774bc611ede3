"""The attacks of AutoAttack, RobustBench's judge."""

from typing import Any

from ..registry import Adapter, AttackEntry

__all__ = ["ROBUSTBENCH"]

_STOPS = "It stops at the first query that says fooled, and counts the column 'reject' as such."


def _entry(name: str, note: str, **settings: Any) -> AttackEntry:
    return AttackEntry(name=name, norm="linf", needs_epsilon=True, note=f"{note} {_STOPS}", **settings)


ROBUSTBENCH = Adapter(
    toolkit="robustbench",
    title="RobustBench / AutoAttack",
    distribution="pyautoattack",
    package="pyautoattack",
    attacks=(
        _entry(
            "apgd-ce",
            "Blind where the softmax of a confident model saturates.",
            knowledge="white",
            parameters={"norm": "linf", "n_iter": 20, "n_restarts": 1},
        ),
        _entry(
            "apgd-dlr",
            "Needs 3 classes.",
            knowledge="white",
            parameters={"norm": "linf", "n_iter": 20, "n_restarts": 1},
        ),
        _entry(
            "apgd-t",
            "Needs 4 classes. Chooses its targets itself: the likeliest classes.",
            knowledge="white",
            parameters={"norm": "linf", "n_iter": 20, "n_target_classes": 3},
        ),
        _entry(
            "fab",
            "Minimal norm: its examples lie on the boundary of the attacked variant, and fall easily.",
            knowledge="white",
            parameters={"norm": "linf", "n_iter": 20, "n_restarts": 1},
        ),
        _entry(
            "fab-t",
            "Minimal norm: its examples lie on the boundary of the attacked variant, and fall easily. Chooses"
            " its targets itself.",
            knowledge="white",
            parameters={"norm": "linf", "n_iter": 20, "n_target_classes": 3},
        ),
        _entry(
            "square",
            "The only one that needs no gradient and can be told a target.",
            knowledge="score",
            targeted=True,
            parameters={"norm": "linf", "n_queries": 500},
        ),
        _entry(
            "AutoAttack",
            "The attacks of a version in turn, each on what the others left; here with a reduced budget.",
            knowledge="white",
            parameters={
                "norm": "linf",
                "version": "standard",
                "n_iter": 10,
                "n_target_classes": 2,
                "n_queries": 200,
            },
        ),
    ),
    implementation="genrobust.adapters._robustbench",
)
