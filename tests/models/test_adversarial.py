"""Adversarial training: the attack by itself, and what the CNN and VaDE learn from."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust.attacks import fgsm, loss_gradient
from genrobust.models import Adversary, CNNConfig, VaDEConfig
from genrobust.randomness import isolated_rng

Make = Callable[..., Any]


class Linear(nn.Module):
    """Two classes; the loss rises along one direction, so that the best perturbation is known."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 16, generator=generator))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return x.flatten(1) @ self.weight.T

    def uphill(self, y: Tensor) -> Tensor:
        """The direction in which the loss rises, for every image."""
        return (self.weight[1 - y] - self.weight[y]).detach().reshape(-1, 1, 4, 4)


def interior_images(count: int = 6) -> tuple[Tensor, Tensor]:
    """Images that no perturbation below 0.4 per pixel takes to the bounds."""
    x = 0.4 + 0.2 * torch.rand((count, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    return x, torch.arange(count) % 2


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y, reduction="none")


def attacked(adversary: Adversary, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    with isolated_rng(seed):
        return adversary.attack(model, x, y)


def distances(norm: str, delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)


NORMS = pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 1.2)])


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 0.5)])
def test_the_attack_finds_the_best_perturbation_of_a_linear_classifier(norm: Any, epsilon: float) -> None:
    model, (x, y) = Linear(), interior_images()
    uphill = model.uphill(y)
    direction = (
        uphill.sign() if norm == "linf" else uphill / uphill.flatten(1).norm(dim=1)[:, None, None, None]
    )
    optimum = x + epsilon * direction
    assert optimum.min() > 0
    assert optimum.max() < 1
    best = losses(model, optimum, y)
    adversary = Adversary(norm=norm, epsilon=epsilon, steps=40)
    reached = losses(model, attacked(adversary, model, x, y), y)
    assert (reached <= best * (1 + 1e-5)).all()
    torch.testing.assert_close(reached, best, rtol=5e-3, atol=1e-3)
    assert (best > losses(model, x, y) + 0.5).all()


@NORMS
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("relative_step", [0.25, 3.0])
def test_every_query_stays_in_the_ball_and_in_range(
    norm: Any, epsilon: float, steps: int, relative_step: float
) -> None:
    model = Linear()
    x = torch.rand((40, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    x[0], x[1] = 0.0, 1.0
    y = torch.arange(40) % 2
    adversary = Adversary(norm=norm, epsilon=epsilon, steps=steps, relative_step=relative_step)
    perturbed = attacked(adversary, model, x, y)
    assert len(model.seen) == steps
    for query in (*model.seen, perturbed):
        assert distances(norm, query - x).max() <= epsilon * (1 + 1e-5)
        assert query.min() >= 0
        assert query.max() <= 1
    assert not perturbed.requires_grad
    assert model.weight.grad is None


@NORMS
def test_the_attack_raises_the_loss_of_a_network(
    norm: Any, epsilon: float, make_model: Make, images: Make
) -> None:
    model = make_model("cnn")
    x = images(model, 12)
    y = model(x).argmax(1)
    perturbed = attacked(Adversary(norm=norm, epsilon=epsilon), model, x, y)
    assert (losses(model, perturbed, y) > losses(model, x, y)).all()


@NORMS
def test_the_start_is_random(norm: Any, epsilon: float) -> None:
    model, (x, y) = Linear(), interior_images()
    adversary = Adversary(norm=norm, epsilon=epsilon, steps=1, relative_step=0.1)
    first, second, other = (attacked(adversary, model, x, y, seed) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    starts = model.seen[0]
    assert (distances(norm, starts - x) > 0).all()


def test_the_attack_works_where_gradients_are_disabled() -> None:
    model, (x, y) = Linear(), interior_images()
    expected = attacked(Adversary(), model, x, y)
    with torch.no_grad():
        assert torch.equal(attacked(Adversary(), model, x, y), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l1"}, "`norm` to be one of 'linf', 'l2', but got 'l1'"),
        ({"epsilon": 0.0}, "`epsilon` to be above 0, but got 0.0"),
        ({"epsilon": float("nan")}, "`epsilon` to be finite, but got nan"),
        ({"steps": 0}, "`steps` to be at least 1, but got 0"),
        ({"clean_share": 1.0}, "`clean_share` to be at least 0 and below 1, but got 1.0"),
        ({"loss": "mse"}, "`loss` to be one of 'cross-entropy', 'margin', but got 'mse'"),
    ],
    ids=["norm", "epsilon", "nan epsilon", "steps", "clean share", "loss"],
)
def test_impossible_adversary(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adversary(**settings)


def test_fgsm_is_one_signed_step_from_the_image() -> None:
    model, (x, y) = Linear(), interior_images()
    adversary = Adversary.fgsm(epsilon=0.3)
    first, second = (attacked(adversary, model, x, y, seed) for seed in (0, 1))
    assert torch.equal(first, second)
    assert torch.equal(first, fgsm(model, x, y, epsilon=0.3))
    torch.testing.assert_close(first, x + 0.3 * model.uphill(y).sign())
    assert torch.equal(model.seen[0], x)


def test_the_margin_moves_images_whose_cross_entropy_has_no_gradient() -> None:
    model, (x, y) = Linear(), interior_images()
    y = model(x).argmax(1)
    with torch.no_grad():
        model.weight.mul_(1e4)
    assert torch.equal(attacked(Adversary.fgsm(epsilon=0.3), model, x, y), x)
    moved = attacked(Adversary.fgsm(epsilon=0.3, loss="margin"), model, x, y)
    torch.testing.assert_close(moved, x + 0.3 * model.uphill(y).sign())


# The CNN.


def test_the_adversarial_loss_is_that_of_attacked_images(make_model: Make, images: Make) -> None:
    adversary = Adversary(epsilon=0.2, steps=5)
    clean, hardened = make_model("cnn"), make_model("cnn", adversary=adversary)
    x, y = images(clean, 8), torch.arange(8) % 4
    perturbed = attacked(adversary, clean, x, y)
    for model in (clean, hardened):
        model.set_parts_training(True)
    with isolated_rng(0):  # the attack draws its start, then dropout its mask
        torch.rand_like(x)
        expected = clean.training_loss("classifier", perturbed, y)
    with isolated_rng(0):
        loss = hardened.training_loss("classifier", x, y)
    torch.testing.assert_close(loss, expected)
    clean.set_parts_training(False)
    assert losses(clean, perturbed, y).mean() > losses(clean, x, y).mean()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_adversarial_loss_leaves_the_mode_of_the_parts(
    training: bool, make_model: Make, images: Make
) -> None:
    model = make_model("cnn", adversary=Adversary(steps=1))
    model.set_parts_training(training)
    x, y = images(model, 8), torch.arange(8) % 4
    with isolated_rng(0):
        model.training_loss("classifier", x, y)
    assert all(part.training == training for part in model.features)


def test_adversarial_training_does_not_attack_statistics(make_model: Make, images: Make) -> None:
    model = make_model("cnn", adversary=Adversary(steps=3))
    model.set_parts_training(True)
    x, y = images(model, 8), torch.arange(8) % 4
    with isolated_rng(0):
        model.training_loss("classifier", x, y)
    counts = [layer.num_batches_tracked for layer in model.features if isinstance(layer, nn.BatchNorm2d)]
    assert counts == [1, 1]


@pytest.mark.parametrize(("share", "attacked_rows"), [(0.0, 8), (0.25, 6), (0.5, 4)])
def test_a_share_of_the_images_stays_clean(
    share: float, attacked_rows: int, make_model: Make, images: Make
) -> None:
    model = make_model("cnn", adversary=Adversary(epsilon=0.2, steps=1, clean_share=share))
    x, y = images(model, 8), torch.arange(8) % 4
    with isolated_rng(0):
        moved = (model.training_images(x, y) != x).flatten(1).any(1)
    assert moved.tolist() == [True] * attacked_rows + [False] * (8 - attacked_rows)


def test_an_adversary_is_a_part_of_the_config() -> None:
    assert replace(CNNConfig(), adversary=Adversary()) != CNNConfig()
    assert replace(VaDEConfig(), adversary=Adversary()) != VaDEConfig()
    assert Adversary.fgsm(epsilon=0.3) != Adversary(epsilon=0.3, steps=1)


# VaDE.


def test_vade_learns_the_bound_of_attacked_images(make_model: Make, images: Make) -> None:
    adversary = Adversary.fgsm(epsilon=0.1, loss="margin")
    clean, hardened = make_model("vade"), make_model("vade", adversary=adversary)
    x, y = images(clean, 8), torch.arange(8) % 4
    proposed = clean.with_inference(candidates=0, steps=0)
    gradient, _ = loss_gradient(proposed, x, y, loss="margin")
    perturbed = torch.cat([(x + 0.1 * gradient.sign()).clamp(0, 1)[:4], x[4:]])
    for model in (clean, hardened):
        model.set_parts_training(True)
    with isolated_rng(0):
        expected = clean.training_loss("elbo", perturbed, y)
    with isolated_rng(0):
        loss = hardened.training_loss("elbo", x, y)
    torch.testing.assert_close(loss, expected)
    assert all(part.training for part in hardened.children())
    counts = {int(m.num_batches_tracked) for m in hardened.modules() if isinstance(m, nn.BatchNorm2d)}
    assert counts == {1}


def test_vade_is_attacked_without_refinement_and_through_the_encoder(make_model: Make, images: Make) -> None:
    model = make_model("vade", adversary=Adversary.fgsm(epsilon=0.1, loss="margin"))
    assert (model.attacked_variant().budget.candidates, model.attacked_variant().budget.steps) == (0, 0)
    x, y = images(model, 8), torch.arange(8) % 4

    def margin(images: Tensor) -> Tensor:
        scores = model.attacked_variant()(images).detach()
        own = nn.functional.one_hot(y, 4).bool()
        return scores.masked_fill(own, -torch.inf).amax(1) - scores[own]

    chosen = model.selection_images(x, y)
    assert model.selected_by == "robust accuracy"
    assert (margin(chosen) > margin(x)).all()
