"""What ART takes for success, where it is silent, and what is true."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from victims import bright_images, craft_with, spread_decisions

from genrobust import attack_every_class, verify
from genrobust.contract import Classifier
from genrobust.randomness import isolated_rng

pytest.importorskip("art")
from art.attacks import evasion
from art.estimators.classification import (
    PyTorchClassifier,
    QueryEfficientGradientEstimationClassifier,
)
from art.utils import compute_success_array

from genrobust import wrap_for_art
from genrobust.adapters._art import craft, legacy_numpy, successes
from genrobust.adapters.catalogues.art import ART

Make = Callable[..., Any]


@pytest.fixture
def victim(make_model: Make) -> Any:
    model = make_model("cnn")
    spread_decisions(model)
    return model


def chosen(model: Any, count: int = 4) -> tuple[Tensor, Tensor]:
    """Images of all brightnesses and what the model decides about them."""
    x = bright_images(model)[torch.linspace(0, 59, count).long()]
    return x, model.predict(x).labels


class Planted(Classifier):
    """Its logits are the pixels, times 10, and shifted."""

    def __init__(self, *, rejects: bool = False, shift: float = 0.0) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=3 if rejects else 4)
        self.rejects = rejects
        self.scale, self.shift = nn.Parameter(torch.tensor(10.0)), shift

    def logits(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.scale + self.shift


# What ART takes for success.


@pytest.mark.parametrize("black_box", [False, True])
def test_rejection_is_no_success(black_box: bool) -> None:
    estimator = wrap_for_art(Planted(rejects=True), black_box=black_box)
    assert estimator.nb_classes == 4
    x_adv = np.eye(4, dtype=np.float32).reshape(4, 1, 2, 2)
    y = np.zeros(4, dtype=int)
    x_adv[0, 0, 1, 1] = np.nan
    with pytest.warns(UserWarning, match="points outside of"):
        found = successes(estimator, x_adv, y)
    assert found.tolist() == [False, True, True, False]
    assert successes(estimator, x_adv[1:], np.eye(4)[y[1:]]).tolist() == [True, True, False]
    clean = np.eye(4, dtype=np.float32)[[0] * 3].reshape(3, 1, 2, 2)
    assert compute_success_array(estimator, clean, np.eye(4)[y[1:]], x_adv[1:]).tolist() == [True] * 3


def test_success_needs_an_estimator_of_ours() -> None:
    bare = PyTorchClassifier(nn.Flatten(), nn.CrossEntropyLoss(), (1, 2, 2), 4, device_type="cpu")
    with pytest.raises(ValueError, match="estimator of `wrap_for_art`, but got PyTorchClassifier"):
        successes(bare, np.zeros((1, 1, 2, 2), dtype=np.float32), np.zeros(1, dtype=int))


def test_attacks_start_at_no_image_that_is_rejected() -> None:
    model = Planted(rejects=True)
    x = torch.tensor([[0.9, 0.0, 0.0, 0.5], [0.5, 0.0, 0.0, 0.6], [0.0, 0.9, 0.0, 0.0]]).reshape(3, 1, 2, 2)
    assert model.predict(x).labels.tolist() == [0, 3, 1]
    entry, estimator = ART.attack("HopSkipJump"), wrap_for_art(model)
    with isolated_rng(0):
        starts = craft_with(craft, entry, estimator, x, torch.tensor([0, 1, 1]), max_iter=0).images
    assert successes(estimator, starts.numpy(), np.array([0, 1, 1])).all()


class Wary(Classifier):
    """Two classes, by which of two pixels is brighter; it rejects when the first is dark."""

    rejects = True

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 1, 2), num_classes=2)
        self.scale = nn.Parameter(torch.tensor(4.0))

    def logits(self, x: Tensor) -> Tensor:
        first, second = x.flatten(1).unbind(1)
        return self.scale * torch.stack([first, second, 2.5 * (0.7 - first)], 1)


def test_every_class_in_turn_passes_a_rejection_that_an_untargeted_attack_runs_into() -> None:
    model, epsilon = Wary(), 0.5
    x, y = torch.tensor([0.9, 0.1]).reshape(1, 1, 1, 2), torch.tensor([0])
    estimator, pgd = wrap_for_art(model), ART.attack("ProjectedGradientDescent")
    settings: dict[str, Any] = {"epsilon": epsilon, "eps_step": 0.02, "max_iter": 60}
    blind = craft_with(craft, pgd, estimator, x, y, **settings).images
    assert compute_success_array(estimator, x.numpy(), y.numpy(), blind.numpy()).all()
    assert not successes(estimator, blind.numpy(), y.numpy()).any()
    assert verify(model, x, y, blind, norm="linf", epsilon=epsilon).rejected.all()

    def attack(target: Tensor) -> Tensor:
        return craft_with(craft, pgd, estimator, x, target, targeted=True, **settings).images

    best, found = attack_every_class(model, x, y, attack, norm="linf", epsilon=epsilon)
    assert found.success.all()
    assert successes(estimator, best.numpy(), y.numpy()).all()


# Where ART is silent.


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gradients_estimated_from_logits_move_nothing_and_verification_says_so(victim: Any) -> None:
    images, labels = chosen(victim)
    x, y = images.numpy(), labels.numpy()
    found = {}
    for output in ("logits", "probabilities"):
        estimated = QueryEfficientGradientEstimationClassifier(wrap_for_art(victim, output=output), 50, 0.05)
        attack = evasion.ProjectedGradientDescent(estimated, eps=0.4, eps_step=0.1, max_iter=8, verbose=False)
        with isolated_rng(0):
            x_adv = attack.generate(x, y)
        found[output] = verify(victim, images, labels, torch.from_numpy(x_adv), norm="linf", epsilon=0.4)
    assert found["logits"].unchanged.all()
    assert not found["logits"].success.any()
    assert not found["probabilities"].unchanged.any()
    assert found["probabilities"].success.any()


def test_newtonfool_runs_the_wrong_way_on_negative_logits() -> None:
    model = Planted(shift=-20.0)
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([2])
    x[0, 0, 1, 0] = 0.6
    clean = model.predict(x).probabilities[0, 2]
    own = {}
    for output in ("logits", "probabilities"):
        estimator = wrap_for_art(model, output=output)
        images = craft(ART.attack("NewtonFool"), estimator, x, y).images
        own[output] = model.predict(images).probabilities[0, 2]
    assert own["probabilities"] < clean < own["logits"]
    assert ART.attack("NewtonFool").options == {"output": "probabilities"}


@pytest.mark.skipif(hasattr(np, "mat"), reason="NumPy 1 has them")
def test_numpys_old_names_are_there_for_the_block_alone() -> None:
    names = ["mat", "asfarray"]
    assert not any(hasattr(np, name) for name in names)
    with legacy_numpy():
        there = [getattr(np, name) for name in names]
    assert [make([[1, 2]]).tolist() for make in there] == [[[1, 2]]] * len(names)
    assert not any(hasattr(np, name) for name in names)
    with pytest.raises(ZeroDivisionError), legacy_numpy():
        _ = 1 / 0
    assert not any(hasattr(np, name) for name in names)
