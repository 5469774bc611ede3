"""Attacks by several surrogate gradients, against known optima and against each gradient alone."""

from functools import partial
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from genrobust import Classifier
from genrobust.attack_view import attack_view
from genrobust.attacks import l2_multi_gradient, linf_multi_gradient, multi_gradient
from genrobust.attacks.multi_gradient import multi_gradient_queries
from genrobust.verification import counted_calls

SHAPE = (1, 3, 3)
ATTACKS = {"linf": linf_multi_gradient, "l2": l2_multi_gradient}


class Linear(Classifier):
    """Two classes by the sign of w x + b; the gradient may be masked on half of the images."""

    def __init__(self, *, shown: str = "", rejects: bool = False) -> None:
        super().__init__(input_shape=SHAPE, num_classes=2)
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(9, generator=generator))
        self.shown, self.rejects = shown, rejects

    @property
    def gradients(self) -> tuple[str, ...]:
        return ("even", "odd") if self.shown else ()

    def _with_gradient(self, gradient: Any) -> Self:
        return self._variant(shown=gradient)

    def margin(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight + 0.2

    def logits(self, x: Tensor) -> Tensor:
        margin = self.margin(x)
        if self.shown:  # by the brightness of the first pixel, one of the gradients vanishes
            bright = (x[:, 0, 0, 0] > 0.5).detach()
            margin = torch.where(bright == (self.shown == "even"), margin, margin.detach() + 0 * margin)
        columns = [margin, -margin]
        if self.rejects:
            columns.append(torch.where(x.amax((1, 2, 3)) > 0.9, 9.0, -9.0) + 0 * margin)
        return torch.stack(columns, 1)


def images(count: int = 8) -> tuple[Tensor, Tensor]:
    x = 0.4 + 0.2 * torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(2))
    return x, (Linear().margin(x) < 0).long()


def margins(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(y == 0, 2.0, -2.0) * Linear().margin(x).detach()


@pytest.mark.parametrize("schedule", ["fixed", "halving"])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_the_optimum_of_a_linear_model_is_reached(norm: str, dual: int, schedule: Any) -> None:
    x, y = images()
    epsilon = 0.1 if norm == "linf" else 0.3
    found = ATTACKS[norm](attack_view(Linear()), x, y, epsilon=epsilon, restarts=1, schedule=schedule)
    best = margins(x, y) - 2 * epsilon * Linear().weight.detach().norm(p=dual)
    gained = (margins(x, y) - margins(found, y)) / (margins(x, y) - best)
    assert gained.min() > 0.99
    assert gained.max() < 1 + 1e-4


@pytest.mark.parametrize("schedule", ["fixed", "halving"])
def test_two_masked_gradients_together_are_stronger_than_each_on_the_same_budget(schedule: Any) -> None:
    x, y = images(12)
    x[:6, 0, 0, 0], x[6:, 0, 0, 0] = 0.8, 0.2
    y = (Linear().margin(x) < 0).long()
    run = partial(multi_gradient, x=x, y=y, epsilon=0.1, norm="linf", restarts=1, schedule=schedule)
    with counted_calls() as calls:
        together = margins(run(attack_view(Linear(shown="even")), steps=10, trial=5), y)
    assert calls.gradients == 12 * (10 + 2 * 5)
    assert calls.queries == 12 * multi_gradient_queries(Linear(shown="even"), steps=10, trial=5, restarts=1)
    for name in ("even", "odd"):
        single = margins(run(attack_view(Only(Linear(shown=name))), steps=15, trial=5), y)
        assert (together <= single + 1e-5).all()
        assert (together < single - 0.1).any()


class Only(Classifier):
    """A model with one gradient."""

    def __init__(self, model: Linear) -> None:
        super().__init__(input_shape=SHAPE, num_classes=2)
        self.model = model

    def logits(self, x: Tensor) -> Tensor:
        return self.model.logits(x)


def test_a_rejection_is_no_success() -> None:
    x, y = images()
    found = linf_multi_gradient(attack_view(Linear(rejects=True)), x, y, epsilon=0.45)
    answers = Linear(rejects=True)(found)
    assert (answers.argmax(1) != 2).all()
    assert (answers.argmax(1) != y).any()


def test_only_images_that_resist_are_attacked_again() -> None:
    x, y = images()
    with counted_calls() as calls:
        linf_multi_gradient(attack_view(Linear()), x, y, epsilon=0.45, steps=4, trial=0, restarts=9)
    assert calls.queries == len(x) * 5


@pytest.mark.parametrize(
    "change", [{"steps": -1}, {"trial": -1}, {"restarts": 0}, {"schedule": "steep"}, {"epsilon": -1.0}]
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_settings_are_named(change: dict[str, Any]) -> None:
    x, y = images(2)
    with pytest.raises(ValueError, match="Expected"):
        linf_multi_gradient(Linear(), x, y, **{"epsilon": 0.1, **change})
