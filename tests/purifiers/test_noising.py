"""Purification by noise, against a Gaussian whose denoiser has a closed form."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust import Purified
from genrobust.capabilities import Denoises
from genrobust.contract import ImageModule
from genrobust.purifiers import DiffusionPurifier, NoisingBudget

Make = Callable[..., Any]
SHAPE = (1, 8, 8)
MEAN, STD = 0.5, 0.1


class GaussianDenoiser(Denoises, ImageModule):
    """The exact denoiser of independent pixels from N(MEAN, STD^2)."""

    def overall(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma.square()[:, None, None, None]
        return (variance * MEAN + STD**2 * noisy) / (variance + STD**2)


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
def test_much_noise_gives_new_images_of_the_distribution(churn: float) -> None:
    budget = NoisingBudget(sigma=10.0, sigma_min=0.01, steps=60, churn=churn)
    purifier = DiffusionPurifier(GaussianDenoiser(input_shape=SHAPE), inference=budget)
    fresh = purifier.with_randomness("fresh", seed=1)
    images = fresh(torch.zeros(300, *SHAPE))
    assert abs(float(images.mean()) - MEAN) < 0.01
    assert abs(float(images.std()) - STD) < 0.012


def test_little_noise_keeps_the_image() -> None:
    budget = NoisingBudget(sigma=0.002, sigma_min=0.001, steps=2)
    purifier = DiffusionPurifier(GaussianDenoiser(input_shape=SHAPE), inference=budget)
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(purifier(x), x, rtol=0, atol=0.01)


def test_the_gradient_through_the_steps_is_that_of_finite_differences(make_model: Make, images: Make) -> None:
    model = make_model("diffusion", dtype=torch.float64)
    purifier = DiffusionPurifier(model, inference=NoisingBudget(steps=3))
    x = (0.2 * images(model, 2) + 0.4).requires_grad_()
    inside = (purifier(x) > 0) & (purifier(x) < 1)  # the edge of the box has no derivative
    assert torch.autograd.gradcheck(lambda x: purifier(x)[inside], x, fast_mode=True)


def test_bpda_is_the_identity_backwards(make_model: Make, images: Make) -> None:
    purifier = DiffusionPurifier(make_model("diffusion"), inference=NoisingBudget(steps=2))
    model = Purified(purifier, make_model("diffusion"), gradient="bpda")
    x = images(model, 2).requires_grad_()
    [slope] = torch.autograd.grad(model(x)[:, 0].sum(), x)
    at = purifier(x).detach().requires_grad_()
    [expected] = torch.autograd.grad(model.classifier(at)[:, 0].sum(), at)
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma": 0.01}, "`sigma_min` below `sigma`, but got 0.05 and 0.01"),
        ({"churn": 1.5}, r"`churn` .* but got 1.5"),
        ({"steps": 0}, "`steps` .* at least 1, but got 0"),
    ],
)
def test_budgets_that_are_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoisingBudget(**fields)


def test_models_that_do_not_denoise(make_model: Make) -> None:
    with pytest.raises(TypeError, match="`model` to be a model that denoises, but got MLP"):
        DiffusionPurifier(make_model("mlp"))
