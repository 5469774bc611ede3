"""The gradient that an attack is shown: always the model's direction, and never too short to be used."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from genrobust import Classifier
from genrobust._shown import SHORTEST, with_shown_gradient
from genrobust.attack_view import attack_view
from genrobust.verification import verify, without_loss_gradient

Make = Callable[..., Any]


class Linear(Classifier):
    """Logits slope * W x + offset, whose gradients are known."""

    def __init__(
        self, *, slope: float = 1.0, margin: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(input_shape=(1, 2, 3), num_classes=3)
        weight = torch.randn((3, 6), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        self.weight = nn.Parameter(weight.to(dtype))
        self.register_buffer("offset", torch.tensor([margin, 0.0, -1.0], dtype=dtype))
        self.slope = slope

    offset: Tensor

    def logits(self, x: Tensor) -> Tensor:
        return self.slope * ((x - 0.5).flatten(1) @ self.weight.T) + self.offset


def pictures(count: int = 4, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand((count, 1, 2, 3), generator=torch.Generator().manual_seed(1), dtype=dtype)


def gradient(model: Callable[[Tensor], Tensor], x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(model(leaf)), leaf)
    return found.flatten(1)


def cross_entropy(logits: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")


def cosine(first: Tensor, second: Tensor) -> Tensor:
    unit = [rows.double() / rows.double().abs().amax(1, keepdim=True) for rows in (first, second)]
    return nn.functional.cosine_similarity(unit[0], unit[1], dim=1)


@pytest.mark.parametrize("margin", [18.0, 30.0, 60.0, 85.0, 95.0])
def test_a_saturated_cross_entropy_is_shown_with_its_direction(margin: float) -> None:
    x, model = pictures(), Linear(margin=margin, slope=0.1)
    shown = gradient(attack_view(model), x, cross_entropy)
    length = shown.norm(dim=1)
    assert ((length >= SHORTEST) & (length < 2 * SHORTEST)).all()
    exact = gradient(Linear(margin=margin, slope=0.1, dtype=torch.float64), x.double(), cross_entropy)
    assert (exact.norm(dim=1) < 1e-6).all(), "the gradient is not short: nothing is tested"
    # In single precision the softmax of the true class is 1, so that its own term of the gradient is gone.
    rivals = gradient(Linear(margin=margin, slope=0.1, dtype=torch.float64), x.double(), rivals_of_the_first)
    assert (torch.maximum(cosine(shown, exact), cosine(shown, rivals)) > 0.9999).all()


def rivals_of_the_first(logits: Tensor) -> Tensor:
    weights = logits.softmax(1).detach()[:, 1:]
    return (weights * logits[:, 1:]).sum()


@pytest.mark.parametrize("slope", [1e-3, 1e-12, 1e-30])
def test_what_a_model_flattens_inside_is_shown_too(slope: float) -> None:
    """Masked inside or saturated outside, and both at once, where the product underflows to zero."""
    x = pictures()
    for margin in (0.0, 80.0):
        model = Linear(margin=margin, slope=slope)
        shown = gradient(attack_view(model), x, cross_entropy)
        assert (shown.norm(dim=1) >= SHORTEST).all()
        weight = model.weight.detach()
        direction = weight[1] - weight[0] if margin == 0 else weight[1] + math.exp(-1) * weight[2]
        if margin:
            assert (cosine(shown, direction.expand_as(shown)) > 0.9999).all()
    plain = gradient(Linear(margin=80.0, slope=1e-30), x, cross_entropy)
    assert not plain.any()


@pytest.mark.parametrize("name", ["cnn", "abs", "eabs", "vade", "deep-bayes", "diffusion", "gmvae", "bnn"])
def test_longer_gradients_do_not_change_by_a_bit(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 3)
    for loss in (
        cross_entropy,
        lambda logits: logits[:, 1].sum(),
        lambda z: (1e-2 * (z[:, 0] - z[:, 1])).sum(),
    ):
        true, shown = (gradient(module, x, loss) for module in (model, attack_view(model)))
        assert (true.norm(dim=1) > SHORTEST).all(), "the gradient is short: nothing is tested"
        assert torch.equal(true, shown)


@given(
    exponent=st.integers(-148, 20),
    slope=st.integers(-40, 3),
    values=st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6),
)
def test_each_row_is_multiplied_by_a_power_of_two(exponent: int, slope: int, values: list[float]) -> None:
    """In double precision nothing underflows: the ratio is exact."""
    direction = torch.tensor(values, dtype=torch.float64)
    if not direction.norm() > 1e-3:
        return
    logits_scale, weight = 2.0**exponent, 2.0**slope * direction
    x = pictures(2, dtype=torch.float64)

    def model(images: Tensor) -> Tensor:
        return torch.stack([5 + images.flatten(1) @ weight, images.flatten(1)[:, 0]], 1)

    (shown, true) = (
        gradient(f, x, lambda logits: logits_scale * logits[:, 0].sum())
        for f in (lambda images: with_shown_gradient(model, images), model)
    )
    used = weight != 0
    ratio = (shown[:, used] / true[:, used]).unique()
    assert len(ratio) == 1
    assert math.frexp(float(ratio))[0] == 0.5
    assert not shown[:, ~used].any()
    length = true.norm(dim=1)
    assert torch.equal(length >= SHORTEST, (shown == true).all(1))
    assert (shown.norm(dim=1) >= SHORTEST).all()
    assert (shown.norm(dim=1) < 2 * SHORTEST)[length < SHORTEST].all()


def test_rows_are_told_apart() -> None:
    """One row is saturated, one is not, one has no gradient, and one is undefined."""
    margins = torch.tensor([40.0, 0.0, 500.0, math.nan])
    model = Linear()

    def shifted(images: Tensor) -> Tensor:
        return model(images) + margins[:, None] * torch.tensor([1.0, 0.0, 0.0])

    x = pictures()
    shown = gradient(lambda images: with_shown_gradient(shifted, images), x, cross_entropy)
    true = gradient(shifted, x, cross_entropy)
    assert SHORTEST <= float(shown[0].norm()) < 2 * SHORTEST
    assert torch.equal(shown[1], true[1])
    assert not shown[2].any()
    assert shown[3].isnan().all()


def test_gradients_of_several_backward_passes_over_one_forward() -> None:
    x = pictures().requires_grad_()
    logits = attack_view(Linear(margin=60.0))(x)
    first = logits[:, 1].sum()
    losses = (first, cross_entropy(logits), first, 1e-30 * first)
    found = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses]
    assert torch.equal(found[0], found[2])
    lengths = [float(gradients.flatten(1).norm(dim=1).min()) for gradients in found]
    assert lengths[0] > 0.1
    assert SHORTEST <= lengths[1] < 2 * SHORTEST
    assert SHORTEST <= lengths[3] < 2 * SHORTEST


def test_second_derivatives_go_through() -> None:
    x = pictures(dtype=torch.float64).requires_grad_()

    def squares(images: Tensor) -> Tensor:
        return torch.stack([images.flatten(1).pow(3).sum(1), 2 * images.flatten(1).sum(1)], 1)

    (slope,) = torch.autograd.grad(with_shown_gradient(squares, x)[:, 0].sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(curvature, 6 * x.detach())
    transformed = torch.func.grad(lambda images: with_shown_gradient(squares, images)[:, 0].sum())(x.detach())
    torch.testing.assert_close(transformed, 3 * x.detach().square())


def test_an_attack_may_write_into_logits() -> None:
    x = pictures().requires_grad_()
    logits = attack_view(Linear())(x)
    logits[:, 0] = 0
    (found,) = torch.autograd.grad(logits.sum(), x)
    expected = Linear().weight.detach()[1:].sum(0)
    torch.testing.assert_close(found.flatten(1), expected.expand(4, -1))


def test_weights_that_an_attack_trains_get_their_true_gradient() -> None:
    x, model = pictures(), Linear(margin=40.0)
    view = attack_view(model).train()
    cross_entropy(view(x.requires_grad_())).backward()
    weight = Linear(margin=40.0)
    cross_entropy(weight(x.detach())).backward()
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, weight.weight.grad)
    assert 0 < model.weight.grad.norm() < 1e-8


def test_flat_logits_keep_the_length_of_their_gradients() -> None:
    """DeepFool divides a difference of logits by the length of its gradient."""
    x = pictures()

    def flat(images: Tensor) -> Tensor:
        return 1e-7 * Linear()(images)

    first, second = (
        gradient(model, x, lambda logits: (logits[:, 0] - logits[:, 1]).sum())
        for model in (flat, lambda images: with_shown_gradient(flat, images))
    )
    assert torch.equal(first, second)
    assert (first.norm(dim=1) < 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_flag_is_about_the_gradient_that_an_attack_is_shown(dtype: torch.dtype) -> None:
    x, y = pictures(dtype=dtype), torch.zeros(4, dtype=torch.long)
    for margin, vanished in ((0.0, False), (40.0, False), (95.0, False), (800.0, True)):
        model = Linear(margin=margin, dtype=dtype)
        assert (without_loss_gradient(model, x, y) == vanished).all()
        assert (verify(model, x, y, x, norm="l2", epsilon=0.1).zero_gradient == vanished).all()
