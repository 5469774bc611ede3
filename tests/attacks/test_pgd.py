"""One PGD: the optimum of a linear model, and the same numbers as the attack of adversarial training."""

from typing import Any

import pytest
import torch
from planes import Plane, interior
from torch import Tensor

from genrobust.attacks import fgsm, l2_pgd, linf_pgd, loss_gradient, pgd
from genrobust.models import Adversary
from genrobust.randomness import isolated_rng


def unit(direction: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return direction.sign()
    return direction / direction.flatten(1).norm(dim=1)[:, None, None, None]


@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
@pytest.mark.parametrize(("attack", "norm", "epsilon"), [(linf_pgd, "linf", 0.2), (l2_pgd, "l2", 0.4)])
@pytest.mark.parametrize("targeted", [False, True])
def test_it_finds_the_optimum_of_a_linear_model(
    attack: Any, norm: str, epsilon: float, loss: str, targeted: bool
) -> None:
    model, (x, y) = Plane(), interior()
    generator = torch.Generator().manual_seed(0)
    found = attack(model, x, y, epsilon=epsilon, generator=generator, targeted=targeted, loss=loss, steps=200)
    sign = -1 if targeted else 1
    torch.testing.assert_close(found, x + sign * epsilon * unit(model.uphill(y), norm), atol=1e-6, rtol=0)


def test_fgsm_takes_one_signed_step() -> None:
    model, (x, y) = Plane(), interior()
    torch.testing.assert_close(fgsm(model, x, y, epsilon=0.3), x + 0.3 * model.uphill(y).sign())


def by_hand(adversary: Adversary, model: Plane, x: Tensor, y: Tensor) -> Tensor:
    """Madry's attack, written out."""
    if adversary.norm == "linf":
        start = adversary.epsilon * (2 * torch.rand_like(x) - 1)
    else:
        length = torch.rand_like(x[:, :1, :1, :1])
        start = adversary.epsilon * length * unit(torch.randn_like(x), "l2")

    def project(images: Tensor) -> Tensor:
        delta = images - x
        if adversary.norm == "linf":
            delta = delta.clamp(-adversary.epsilon, adversary.epsilon)
        else:
            length = delta.flatten(1).norm(dim=1)[:, None, None, None]
            delta = delta * (adversary.epsilon / length.clamp_min(adversary.epsilon))
        return (x + delta).clamp(0, 1)

    current = project(x + start)
    for _ in range(adversary.steps):
        gradient, _ = loss_gradient(model, current, y)
        step = adversary.relative_step * adversary.epsilon * unit(gradient, adversary.norm)
        current = project(current + step)
    return current


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_training_meets_the_same_images_as_ever(norm: Any) -> None:
    adversary, model = Adversary(norm=norm, epsilon=0.3, steps=3), Plane()
    x = torch.rand((8, 1, 4, 4), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = torch.arange(8) % 2
    with isolated_rng(5):
        expected = by_hand(adversary, model, x, y)
    with isolated_rng(5):
        assert torch.equal(adversary.attack(model, x, y), expected)


def test_an_image_is_left_as_soon_as_it_fools() -> None:
    model, (x, y) = Plane(), interior()
    decisions = model(x).argmax(1)
    settings: dict[str, Any] = {"epsilon": 2.0, "norm": "l2", "step_size": 0.05, "random_start": False}
    found = pgd(model, x, y, steps=30, until_fooled=True, **settings)
    assert (model(found).argmax(1) != y).all()
    wrong = decisions != y
    assert torch.equal(found[wrong], x[wrong])
    steps = ((found - x).flatten(1).norm(dim=1) / 0.05).round().int()
    for row in (~wrong).nonzero()[:, 0].tolist():
        shorter = pgd(model, x[row : row + 1], y[row : row + 1], steps=int(steps[row]) - 1, **settings)
        assert model(shorter).argmax(1) == y[row]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l1"}, "`norm` to be 'linf' or 'l2', but got 'l1'"),
        ({"epsilon": float("nan")}, "`epsilon` of at least 0, but got nan"),
        ({"steps": -1}, "`steps` and `step_size` of at least 0, but got -1"),
        ({"loss": "mse"}, r"`loss` out of \['cross-entropy', 'margin'\], but got 'mse'"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    given = {"epsilon": 0.1, "norm": "linf", "steps": 1, "step_size": 0.1, **settings}
    with pytest.raises(ValueError, match=message):
        pgd(Plane(), *interior(), **given)
