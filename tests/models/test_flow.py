"""The flow against its Jacobian, an integral, finite differences and its own samples."""

import math
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from genrobust.models import ConditionalFlow, FlowConfig
from genrobust.randomness import isolated_rng

pytestmark = pytest.mark.skipif(find_spec("zuko") is None, reason="zuko is not installed")

Make = Callable[..., Any]


def moved(config: FlowConfig, *, seed: int = 0, size: float = 0.3) -> ConditionalFlow:
    """A flow that is no longer the identity that training starts from."""
    with isolated_rng(seed):
        model = ConditionalFlow(config).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(size * torch.randn_like(parameter))
    return model


SMALL = FlowConfig(num_classes=3, input_shape=(1, 4, 2), patch=2, couplings=4, hidden=5, levels=32)


def latent(model: ConditionalFlow, x: Tensor, label: int) -> Tensor:
    """The noise z of an image, computed from the definition in the class."""
    levels = model.config.levels
    v = ((levels - 1) * x + 0.5) / levels
    logits = torch.logit(v) / (0.5 * math.log(2 * levels - 1))
    maps = nn.functional.pixel_unshuffle(logits, model.config.patch).flatten(1)
    z: Tensor = model._flow(torch.full((len(x),), label))(maps)
    return z


def test_log_density_is_the_base_and_the_jacobian_of_autograd(images: Make) -> None:
    model = moved(SMALL)
    x = images(model, 4)
    for row, image in enumerate(x):
        for label in range(3):
            z = latent(model, image[None], label)
            jacobian = torch.autograd.functional.jacobian(
                lambda pixels, label=label: latent(model, pixels.reshape(1, 1, 4, 2), label)[0],
                image.flatten(),
            )
            base = Normal(model.means[label], (0.5 * model.log_variances[label]).exp())
            expected = base.log_prob(z[0]).sum() + torch.linalg.slogdet(jacobian).logabsdet
            found = model.log_likelihood(x, torch.full((4, 1), label))[row, 0]
            torch.testing.assert_close(found, expected)


def test_scores_are_log_densities_and_the_prior(images: Make) -> None:
    model = moved(SMALL)
    x = images(model, 4)
    expected = model.log_likelihood(x, torch.arange(3).expand(4, -1)) - math.log(3)
    torch.testing.assert_close(model.class_scores(x), expected)


def test_the_density_of_two_pixels_integrates_to_1() -> None:
    config = FlowConfig(num_classes=2, input_shape=(2, 1, 1), patch=1, couplings=4, hidden=6, levels=64)
    model = moved(config, size=0.2)
    half, count = 0.5 / (config.levels - 1), 300
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count * (1 + 2 * half) - half
    x = torch.cartesian_prod(middles, middles)[:, :, None, None]
    with torch.no_grad():
        density = model.log_likelihood(x, torch.arange(2).expand(len(x), -1)).exp()
    integral = density.sum(0) * ((1 + 2 * half) / count) ** 2
    torch.testing.assert_close(integral, torch.ones(2).double(), rtol=0, atol=0.02)


def test_gradients_are_those_of_finite_differences(images: Make) -> None:
    model = moved(SMALL)
    x = images(model, 2).clamp(0.01, 0.99).requires_grad_()
    assert torch.autograd.gradcheck(model.class_scores, (x,))


def test_the_patches_come_back(images: Make) -> None:
    model = moved(SMALL, size=0.1)
    z = latent(model, images(model, 3), 1)
    logits = model._flow(torch.full((3,), 1)).inv(z).unflatten(1, model.config.map_shape)
    v = (0.5 * math.log(63) * nn.functional.pixel_shuffle(logits, 2)).sigmoid()
    torch.testing.assert_close((32 * v - 0.5) / 31, images(model, 3))


def test_samples_are_on_the_levels_and_as_frequent_as_the_density_says() -> None:
    config = FlowConfig(num_classes=2, input_shape=(2, 1, 1), patch=1, couplings=2, hidden=4, levels=3)
    model = moved(config)
    samples = model.sample(4000, generator=torch.Generator().manual_seed(1))
    assert set(samples.unique().tolist()) <= {0.0, 0.5, 1.0}
    middles = (torch.arange(240, dtype=torch.float64) + 0.5) / 240 * 1.5 - 0.25
    x = torch.cartesian_prod(middles, middles)[:, :, None, None]
    with torch.no_grad():
        mass = model.log_likelihood(x, torch.arange(2).expand(len(x), -1)).exp() * (1.5 / 240) ** 2
    bins = mass.T.reshape(2, 3, 80, 3, 80).sum((2, 4))
    for label in range(2):
        level = (2 * samples[label, :, :, 0, 0]).round().long()
        counts = (3 * level[:, 0] + level[:, 1]).bincount(minlength=9).double()
        expected = 4000 * bins[label].flatten() / bins[label].sum()
        chi_square = ((counts - expected).square() / expected.clamp_min(1e-9)).sum()
        assert chi_square < 40  # 8 degrees of freedom: exceeded by one in 300,000


def test_the_noise_of_training_stays_within_half_a_level(images: Make) -> None:
    model = moved(SMALL)
    x = torch.zeros(200, 1, 4, 2)
    noisy = model.training_images(x)
    assert noisy.abs().max() < 0.5 / 31
    assert noisy.std() == pytest.approx(1 / 31 / math.sqrt(12), rel=0.1)


def test_training_maximises_the_likelihood_of_the_class_and_of_all_where_it_is_hidden(images: Make) -> None:
    model = moved(SMALL)
    x, y = images(model, 4), torch.tensor([2, -1, 0, -1])
    with isolated_rng(3):
        loss = model.training_loss("likelihood", x, y)
        assert loss.requires_grad
    with isolated_rng(3):
        noisy = model.training_images(x)
    scores = model.log_likelihood(noisy, torch.arange(3).expand(4, -1))
    hidden = scores.logsumexp(1) - math.log(3)
    expected = -(scores[0, 2] + hidden[1] + scores[2, 0] + hidden[3]) / 4 / 8
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match="`phase` to be 'likelihood', but got 'elbo'"):
        model.training_loss("elbo", x, y)


def test_every_parameter_learns_and_few_steps_raise_the_likelihood() -> None:
    with isolated_rng(0):
        model = ConditionalFlow(SMALL)
        x = torch.rand(60, 1, 4, 2) * 0.2 + torch.arange(3).repeat(20)[:, None, None, None] * 0.4
        y = torch.arange(3).repeat(20)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = model.training_loss("likelihood", x, y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert (model(x).argmax(1) == y).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch": 3}, "`patch` to divide images of 28 x 28, but got 3"),
        ({"patch": 1}, "`patch` above 1 for images of one channel, but got 1"),
        ({"levels": 2**13}, "`levels` up to 4096, but got 8192"),
        ({"couplings": 0}, "`couplings` to be at least 1"),
    ],
    ids=str,
)
def test_configs_that_fit_nothing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowConfig(**fields)


def test_chunks_change_nothing(images: Make) -> None:
    model = moved(SMALL)
    x = images(model, 5)
    torch.testing.assert_close(model.with_inference(max_bytes=1)(x), model(x))


def test_importing_zuko_leaves_the_checks_of_torch_on() -> None:
    code = (
        "import torch\nfrom genrobust.models import ConditionalFlow\nConditionalFlow()\n"
        "print(torch.distributions.Distribution._validate_args)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{__debug__}\n"
