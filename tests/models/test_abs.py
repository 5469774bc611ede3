import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from genrobust import ABS, ABSConfig
from genrobust.inference import KLPrior
from genrobust.nets import architecture
from genrobust.randomness import isolated_rng

Make = Callable[..., Any]
CLASSES, PIXELS = 4, 48


def test_the_published_values() -> None:
    config = ABSConfig()
    assert config.architecture == architecture("abs-mnist")
    assert config.architecture.latent_dim == 8
    assert (config.beta, config.alpha, config.eta) == (1.0, 440.0, 3.9e-5)
    budget = config.inference
    assert (budget.candidates, budget.drop_least_likely, budget.encoder_proposal) == (8000, 0.1, False)
    assert (budget.steps, budget.learning_rate, budget.radius) == (50, 0.05, 5.0)
    assert float(ABS().temperature) == pytest.approx(784 / 440)


def test_every_class_has_its_own_vae_and_the_mean_alone_is_optimised(make_model: Make) -> None:
    model = make_model("abs")
    assert model.encoders.encoders == model.decoders.decoders == CLASSES
    assert isinstance(model.prior, KLPrior)
    assert not model.objective.variational
    assert model.class_balanced
    assert list(model.phases) == ["autoencoder"]
    assert {id(p) for p in model.phases["autoencoder"]} == {id(p) for p in model.parameters()}


def test_fresh_noise_changes_nothing_where_only_the_mean_is_optimised(make_model: Make, images: Make) -> None:
    model = make_model("abs")
    x = images(model, 3)
    assert torch.equal(model.with_randomness("fresh", seed=5)(x), model(x))


def test_the_score_is_equation_2(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64, beta=2.0).with_inference(steps=0)
    x = images(model, 3)
    z = model.search(x).mean
    cost = (x[:, None] - model.decoders(z)).square().sum((2, 3, 4))
    unit, prior = Normal(z, 1.0), Normal(torch.zeros_like(z), 1.0)
    loss = cost + 2.0 * kl_divergence(unit, prior).sum(2)
    constant = -0.5 * PIXELS * math.log(math.pi) - math.log(CLASSES)
    torch.testing.assert_close(model.class_scores(x), constant - loss)


@pytest.mark.parametrize(("alpha", "eta"), [(440.0, 3.9e-5), (20.0, 1e-3), (20.0, 0.0)])
def test_probabilities_are_those_of_the_paper(
    alpha: float, eta: float, make_model: Make, images: Make
) -> None:
    model = make_model("abs", dtype=torch.float64, alpha=alpha, eta=eta)
    x = images(model, 5)
    constant = -0.5 * PIXELS * math.log(math.pi) - math.log(CLASSES)
    per_pixel = (model.class_scores(x) - constant) / PIXELS
    weights = (alpha * per_pixel).exp() + eta
    expected = weights / weights.sum(1, keepdim=True)
    prediction = model.predict(x)
    torch.testing.assert_close(prediction.probabilities, expected)
    torch.testing.assert_close(model(x), alpha * per_pixel)
    assert torch.equal(prediction.labels, per_pixel.argmax(1))


def test_the_floor_lowers_confidence_and_leaves_the_logits(make_model: Make, images: Make) -> None:
    plain, floored = (make_model("abs", alpha=20.0, eta=eta) for eta in (0.0, 1e-2))
    x = images(plain, 5)
    assert torch.equal(plain(x), floored(x))
    confidence = [model.predict(x).probabilities.amax(1) for model in (plain, floored)]
    assert (confidence[1] < confidence[0]).all()
    far = torch.full((1, CLASSES), -1e5)
    assert torch.equal(floored.probabilities(far), torch.full((1, CLASSES), 1 / CLASSES))


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_loss_is_the_elbo_of_every_class(beta: float, make_model: Make) -> None:
    model = make_model("abs", beta=beta)
    x = torch.rand((6, CLASSES, *model.input_shape), generator=torch.Generator().manual_seed(1))
    y = torch.arange(CLASSES).repeat(6)
    with isolated_rng(0):
        loss = model.training_loss("autoencoder", x, y)
    with isolated_rng(0):
        noise = torch.randn(6, CLASSES, 2)
    mean, log_variance = model.encoders(x)
    deviation = (0.5 * log_variance).exp()
    cost = (x - model.decoders(mean + deviation * noise)).square().sum((2, 3, 4))
    kl = kl_divergence(Normal(mean, deviation), Normal(torch.zeros_like(mean), 1.0)).sum(2)
    torch.testing.assert_close(loss, (cost + beta * kl).mean())


def test_classes_do_not_share_a_gradient(make_model: Make) -> None:
    model = make_model("abs")
    x = torch.rand((6, CLASSES, *model.input_shape), generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    mean, _ = model.encoders(x)
    [gradient] = torch.autograd.grad(model.decoders(mean)[:, 1].sum(), x)
    assert gradient[:, 1].abs().max() > 0
    assert gradient[:, [0, 2, 3]].abs().max() == 0
    assert gradient[:, [0, 2, 3]].numel() == 3 * gradient[:, 1].numel()


def test_gradients_reach_every_parameter(make_model: Make) -> None:
    model = make_model("abs")
    x = torch.rand((24, CLASSES, *model.input_shape), generator=torch.Generator().manual_seed(1))
    model.set_parts_training(True)
    with isolated_rng(0):
        model.training_loss("autoencoder", x, torch.arange(CLASSES).repeat(24)).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
