"""Our own attacks are an adapter's like any other: listed, run, targeted, stopped by no rejection."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from planes import Plane, interior
from torch import Tensor
from victims import craft_with

from genrobust import Classifier, register_attack
from genrobust.adapters import list_attacks, registered
from genrobust.adapters._own import accepts, craft, wrap
from genrobust.attacks import ATTACKS
from genrobust.randomness import isolated_rng


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    before = {**ATTACKS.items()}
    yield
    ATTACKS._entries = {name: entry for name, entry in ATTACKS._entries.items() if name in before}


def entry(name: str) -> Any:
    return registered()["genrobust"].attack(name)


def test_every_attack_is_listed_with_the_call_that_shows_it_the_model() -> None:
    rows = {row["name"]: row for row in list_attacks("genrobust")}
    assert rows.keys() >= {
        *("Fooling", "IteratedFGSM", "L2PGD", "LatentDescent", "LinfPGD"),
        *("LinfThreshold", "RandFGSM", "SinglePixel", "Threshold", "VrIGSM"),
    }
    assert all(row["runs"] for row in rows.values())
    assert {row["wrapper"] for row in rows.values()} == {"attack_view(model)"}
    assert rows["Threshold"]["reason"].startswith("Needs a model with detectors of distance and latent.")
    assert rows["VrIGSM"]["parameters"]["copies"] == 20


@pytest.mark.parametrize("name", ["LinfPGD", "L2PGD", "VrIGSM", "RandFGSM", "IteratedFGSM", "SinglePixel"])
def test_attacks_run_repeat_and_fool(name: str) -> None:
    model, (x, y) = Plane(), interior()
    y = model(x).argmax(1)
    epsilon = {"linf": 0.3, "l2": 1.0, "l0": None}[entry(name).norm]
    images = []
    for seed in (0, 0):
        with isolated_rng(seed):
            found = craft_with(craft, entry(name), wrap(model), x, y, epsilon=epsilon)
        images.append(found.images)
    assert torch.equal(*images)
    assert images[0].shape == x.shape
    if name != "SinglePixel":
        assert (model(images[0]).argmax(1) != y).all()


def test_one_parameter_leaves_the_functions_other_defaults() -> None:
    model, (x, y) = Plane(), interior()
    short = craft_with(craft, entry("VrIGSM"), wrap(model), x, y, epsilon=0.3, steps=1, relative_step=0.5)
    torch.testing.assert_close(short.images, x + 0.15 * model.uphill(y).sign())
    assert set(accepts("VrIGSM")) == {"steps", "copies", "noise", "relative_step"}


class Wary(Plane):
    """Rejects what is near its plane, up to a score of 1."""

    rejects = True

    def logits(self, x: Tensor) -> Tensor:
        answers = super().logits(x)
        return torch.cat([answers, torch.ones_like(answers[:, :1])], 1)


@pytest.mark.parametrize("name", ["LinfPGD", "IteratedFGSM"])
def test_a_rejection_is_no_success_and_does_not_stop_an_attack(name: str) -> None:
    model, (x, _) = Wary(), interior()
    y = super(Wary, model).logits(x).argmax(1)
    found = craft(entry(name), wrap(model), x, y, epsilon=0.4)
    assert found.claimed is not None
    assert found.claimed.all()
    assert torch.equal(model.predict(found.images).labels, 1 - y)
    short = craft(entry(name), wrap(model), x, y, epsilon=0.001)
    assert not short.claimed.any()
    assert torch.equal(short.images, x)


def test_a_class_can_be_named() -> None:
    model, (x, _) = Plane(), interior()
    goal = 1 - model(x).argmax(1)
    for name in ("LinfPGD", "IteratedFGSM"):
        found = craft(entry(name), wrap(model), x, goal, epsilon=0.3, targeted=True)
        assert torch.equal(model(found.images).argmax(1), goal)


def wide(model: Classifier, x: Tensor, y: Tensor, *, epsilon: float, generator: torch.Generator) -> Tensor:
    return x[:, :, :2]


def silent(model: Classifier, x: Tensor, y: Tensor, *, epsilon: float, generator: torch.Generator) -> Any:
    return None


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (wide, {"epsilon": 0.1}, r"images of shape \(6, 1, 4, 4\), but got \(6, 1, 2, 4\)"),
        (silent, {"epsilon": 0.1}, "but got NoneType"),
        (wide, {}, "an `epsilon` for it"),
        (wide, {"epsilon": 0.1, "targeted": True}, "`targeted` of False for it"),
    ],
)
def test_what_an_attack_must_return_and_gets(
    function: Callable[..., Tensor], settings: dict[str, Any], message: str
) -> None:
    register_attack("it", norm="linf")(function)
    with pytest.raises(ValueError, match=message):
        craft(entry("it"), wrap(Plane()), *interior(), **settings)


def test_an_attack_cannot_change_the_clean_images() -> None:
    @register_attack("it", norm="linf")
    def careless(model: Any, x: Tensor, y: Tensor, *, epsilon: float, generator: Any) -> Tensor:
        return x.add_(0.1)

    x, y = interior()
    kept = x.clone()
    craft(entry("it"), wrap(Plane()), x, y, epsilon=0.1)
    assert torch.equal(x, kept)
