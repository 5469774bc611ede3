import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from genrobust import certify
from genrobust.attacks import linf_pgd, loss_gradient
from genrobust.contract import fingerprint
from genrobust.gradients import Estimated
from genrobust.inference import KLPrior
from genrobust.models import ABS, ABSConfig
from genrobust.nets.architectures import architecture
from genrobust.randomness import isolated_rng
from genrobust.zoo import read_model, save_model

Make = Callable[..., Any]
CLASSES, PIXELS = 4, 48
BINARY = ABS().binarized()


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
    z = model.search(x)[0].mean
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


# Binary ABS.


def black_and_white(x: Tensor) -> Tensor:
    return (x >= 0.5).to(x)


def test_binary_abs_is_abs_of_black_and_white_images(make_model: Make, images: Make) -> None:
    model = make_model("abs")
    binary, x = model.binarized(), images(model, 5)
    x[0, 0, 0, 0] = 0.5  # is white
    read = black_and_white(x)
    assert torch.equal(binary(x), model(read))
    assert not torch.equal(model(x), model(read))
    assert torch.equal(binary.reconstruct(x), model.reconstruct(read))
    y = torch.arange(5) % CLASSES
    assert torch.equal(binary.encode(x, y), model.encode(read, y))
    assert torch.equal(binary.predict(x).labels, model.predict(read).labels)
    assert binary(x[:0]).shape == (0, CLASSES)
    with pytest.raises(ValueError, match=r"`x` in \[0, 1\]"):
        binary(x + 1)


def test_binary_abs_shares_the_weights_and_says_so_in_its_settings(make_model: Make, tmp_path: Path) -> None:
    model = make_model("abs")
    binary = model.binarized(class_scales=(1.0, 1.1, 0.9, 1.0))
    assert all(a is b for a, b in zip(binary.parameters(), model.parameters(), strict=True))
    assert not model.config.binary
    assert fingerprint(binary) != fingerprint(model) != fingerprint(model.binarized())
    assert binary.with_inference(steps=1).config.binary
    save_model(binary, tmp_path / "model.safetensors")
    stored = read_model(tmp_path / "model.safetensors")
    assert (stored.config.binary, stored.config.class_scales) == (True, (1.0, 1.1, 0.9, 1.0))


@pytest.mark.parametrize("gradient", ["envelope", "joint", "unrolled"])
def test_an_attacker_gets_the_gradient_in_the_image_that_is_read(
    gradient: str, make_model: Make, images: Make
) -> None:
    model = make_model("abs", dtype=torch.float64).with_gradient(gradient)
    x = images(model, 4)
    y = torch.arange(4) % CLASSES
    found, _ = loss_gradient(model.binarized(), x, y)
    expected, _ = loss_gradient(model, black_and_white(x), y)
    torch.testing.assert_close(found, expected)
    assert found.flatten(1).abs().amax(1).min() > 0


@pytest.mark.slow
def test_an_estimated_gradient_does_not_vanish_at_the_step(make_model: Make, images: Make) -> None:
    binary = make_model("abs", dtype=torch.float64).binarized()
    x, y = images(binary, 1), torch.tensor([0])
    exact, _ = loss_gradient(binary, x, y, loss="margin")
    estimate, _ = loss_gradient(binary.with_gradient(Estimated(pairs=200)), x, y, loss="margin")
    cosine = nn.functional.cosine_similarity(estimate.flatten(1), exact.flatten(1))
    assert cosine.min() > 0.7


def test_pgd_fools_binary_abs_where_the_ball_reaches_the_threshold(make_model: Make, images: Make) -> None:
    binary = make_model("abs").binarized()
    x = 0.4 + 0.2 * images(binary, 12)
    y = binary(x).argmax(1)
    generator = torch.Generator().manual_seed(0)
    attacked = linf_pgd(binary, x, y, epsilon=0.2, generator=generator, loss="margin")
    assert (binary(attacked).argmax(1) != y).float().mean() > 0.5


@given(
    pair=arrays(
        np.float64, (2, 3, 4, 4), elements=st.sampled_from([0.0, 0.2, np.nextafter(0.5, 0), 0.5, 0.7, 1.0])
    )
)
def test_the_nearest_image_that_is_read_alike(pair: np.ndarray[Any, Any]) -> None:
    x, to = torch.from_numpy(pair)[:, None]
    near = BINARY.nearest_alike(x, to)
    assert torch.equal(black_and_white(near), black_and_white(x))
    assert torch.equal(BINARY.nearest_alike(near, to), near)
    assert ((near - to).abs() <= (x - to).abs()).all()  # so that no norm is larger
    flipped = black_and_white(x) != black_and_white(to)
    assert torch.equal(near[~flipped], to[~flipped])
    assert ((near - 0.5).abs()[flipped] < 1e-15).all()


def test_what_is_no_image_stays_what_it_is() -> None:
    x = torch.tensor([float("nan"), -0.1, 1.1, 0.4]).reshape(1, 1, 2, 2)
    to = torch.full((1, 1, 2, 2), 0.3)
    near = BINARY.nearest_alike(x, to).flatten()
    assert near[0].isnan()
    assert near[1:].tolist() == pytest.approx([-0.1, 1.1, 0.3])
    assert torch.equal(ABS().nearest_alike(to + 0.1, to), to + 0.1)


def test_class_scales_multiply_the_losses_and_decide(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64)
    x = images(model, 6)
    scales = (1.0, 0.5, 2.0, 1.5)
    scaled = model.binarized(class_scales=scales)
    logits = model.binarized()(x) * torch.tensor(scales, dtype=torch.float64)
    torch.testing.assert_close(scaled(x), logits)
    assert torch.equal(scaled.predict(x).labels, logits.argmax(1))
    assert not torch.equal(logits.argmax(1), model.binarized()(x).argmax(1))


def test_no_radius_is_certified_for_images_that_are_not_read_as_they_are(
    make_model: Make, images: Make
) -> None:
    model = make_model("abs")
    x = images(model, 2)
    y = model(x).argmax(1)
    assert certify(model, x, y).radii.shape == (2,)
    for other in (model.binarized(), make_model("abs", class_scales=(1.0,) * CLASSES)):
        with pytest.raises(ValueError, match="ABS without `binary` and `class_scales`"):
            certify(other, x, y)


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.0, 1.0, 0.0)])
def test_impossible_scales(scales: tuple[float, ...], make_model: Make) -> None:
    with pytest.raises(ValueError, match=r"`class_scales`(\[\d\] to be above 0| for 4 classes, or none)"):
        make_model("abs").binarized(class_scales=scales)
