"""What may be registered as an attack, and how it is found again."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust import register_attack
from genrobust.attacks import ATTACKS, named_attack
from genrobust.attacks._source import source_digest


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    before = {**ATTACKS.items()}
    yield
    ATTACKS._entries = {name: entry for name, entry in ATTACKS._entries.items() if name in before}


def brighter(
    model: Any, x: Tensor, y: Tensor, *, epsilon: float, generator: Any, share: float = 1.0
) -> Tensor:
    return (x + share * epsilon).clamp(0, 1)


def test_a_function_stays_itself_and_is_found_by_name_and_by_itself() -> None:
    assert register_attack(norm="linf", knowledge="decision")(brighter) is brighter
    attack = named_attack("brighter")
    assert attack is named_attack(brighter)
    assert (attack.name, attack.norm, attack.knowledge, attack.targets) == (
        *("brighter", "linf", "decision"),
        "none",
    )
    assert attack.parameters == {"share": 1.0}
    assert attack.needs_epsilon


def test_a_function_that_is_defined_again_takes_its_place() -> None:
    def made(gain: float) -> Any:
        def mine(model: Any, x: Tensor, y: Tensor, *, epsilon: float, generator: Any) -> Tensor:
            return gain * x

        return mine

    first = register_attack("mine", norm="l2")(made(1.0))
    second = register_attack("mine", norm="l2")(made(2.0))
    assert named_attack("mine").function is second
    assert named_attack("mine").function is not first
    with pytest.raises(ValueError, match="'mine' is taken"):
        register_attack("mine", norm="l2")(brighter)


def test_a_run_is_bound_to_the_source_of_a_users_attack() -> None:
    register_attack("one", norm="linf")(brighter)

    @register_attack("two", norm="linf")
    def other(model: Any, x: Tensor, y: Tensor, *, epsilon: float, generator: Any) -> Tensor:
        return x

    digests = [named_attack(name).digest for name in ("one", "two", "one")]
    assert digests[0] == digests[2] != digests[1]
    assert named_attack("LinfPGD").digest is None


def test_what_is_typed_at_a_prompt_has_a_digest_too() -> None:
    scope: dict[str, Any] = {"__name__": "prompt"}
    for sign in "+-":
        exec(f"def typed(model, x, y, *, epsilon, generator): return x {sign} epsilon", scope)
        register_attack(norm="linf")(scope["typed"])
        scope[sign] = named_attack("typed").digest
    assert scope["+"] != scope["-"]


ATTACK = """
import torch
import numpy as np
STEP = {step}
HELD = torch.full((2,), {held})

class Mover:
    def move(self, x):
        return x {sign} STEP * HELD[0]

def helper(x):
    return Mover().move(x)

def attack(model, x, y, *, epsilon, generator, share={share}):
    return [helper(x) for _ in range({times})][-1]

def unrelated(x):
    return {other}
"""
FILLED = {"step": 1, "held": 1.0, "sign": "+", "share": 1.0, "times": 2, "other": 1}


def digest_of(**changes: Any) -> str:
    scope: dict[str, Any] = {"__name__": "users_file"}
    exec(ATTACK.format(**{**FILLED, **changes}), scope)
    return source_digest(scope["attack"])


def test_a_digest_covers_what_an_attack_uses() -> None:
    changes: list[dict[str, Any]] = [{"step": 2}, {"held": 2.0}, {"sign": "-"}, {"share": 2.0}, {"times": 3}]
    found = [digest_of(), *(digest_of(**change) for change in changes)]
    assert len(set(found)) == len(found)
    assert digest_of(other=2) == digest_of() == found[0]


def test_a_digest_covers_what_a_closure_and_a_method_hold() -> None:
    def scaled(gain: float) -> Any:
        def move(x: Tensor) -> Tensor:
            return gain * x

        return lambda x: move(x)

    class Holder:
        def __init__(self, gain: Any) -> None:
            self.gain = gain

        def attack(self, x: Tensor) -> Tensor:
            scaled: Tensor = self.gain * x
            return scaled

    assert source_digest(scaled(1.0)) == source_digest(scaled(1.0)) != source_digest(scaled(2.0))
    found = [source_digest(Holder(gain).attack) for gain in (torch.ones(1), torch.ones(1), torch.zeros(1))]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (lambda *images, **_: images, {}, "defined by `def`, but got a lambda"),
        (torch.rand_like, {}, "f\\(model, x, y|signature"),
        (brighter, {"norm": "l3"}, "`norm` out of .*, but got 'l3'"),
        (brighter, {"knowledge": "all"}, "`knowledge` out of .*, but got 'all'"),
        (brighter, {"targets": "some"}, "`targets` out of .*, but got 'some'"),
        (
            brighter,
            {"targets": "optional"},
            r"epsilon, generator, targeted\), but .* takes .*unexpected keyword",
        ),
        (brighter, {"name": "a b"}, "letters, digits"),
    ],
)
def test_what_cannot_be_an_attack(function: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_attack(**{"norm": "linf", **settings})(function)


def test_what_is_not_registered() -> None:
    with pytest.raises(ValueError, match=r"decorate it with @genrobust\.register_attack"):
        named_attack(brighter)
    with pytest.raises(ValueError, match="did you mean 'LinfPGD'"):
        named_attack("LinfPDG")


def test_declared_queries_take_the_parameters() -> None:
    register_attack("counted", norm="linf", queries=lambda _model, share: round(3 * share))(brighter)
    declared = named_attack("counted").queries
    assert declared is not None
    assert declared(None, share=2.0) == 6
    with pytest.raises(ValueError, match="`queries` to be a function of model, share"):
        register_attack("uncounted", norm="linf", queries=lambda _model, steps: steps)(brighter)
