"""The PixelCNN against all images of tiny worlds, finite differences and its own samples."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust.models import PixelCNN, PixelCNNConfig
from genrobust.randomness import isolated_rng

Make = Callable[..., Any]
WORLD = PixelCNNConfig(
    num_classes=3, input_shape=(1, 2, 2), hidden=6, layers=2, reach=2, mixtures=3, levels=2, least_scale=0.05
)


def moved(config: PixelCNNConfig, *, seed: int = 0, size: float = 0.4) -> PixelCNN:
    with isolated_rng(seed):
        model = PixelCNN(config).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(size * torch.randn_like(parameter))
    return model


def every_image(config: PixelCNNConfig) -> Tensor:
    grid = torch.linspace(0, 1, config.levels, dtype=torch.float64).tolist()
    pixels = list(itertools.product(grid, repeat=math.prod(config.input_shape)))
    return torch.tensor(pixels, dtype=torch.float64).reshape(-1, *config.input_shape)


def classes(model: PixelCNN, x: Tensor) -> Tensor:
    return torch.arange(model.num_classes).expand(len(x), -1)


WORLDS = {
    "binary": WORLD,
    "binary, squares": PixelCNNConfig(
        num_classes=2, input_shape=(1, 2, 4), patch=2, hidden=5, layers=1, mixtures=2, levels=2
    ),
    "five levels": PixelCNNConfig(num_classes=2, input_shape=(1, 2, 2), hidden=4, layers=1, levels=5),
    "colour": PixelCNNConfig(
        num_classes=2, input_shape=(3, 1, 2), hidden=4, layers=1, mixtures=2, levels=3, reach=1
    ),
}


@pytest.mark.parametrize("config", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_probabilities_sum_to_1_over_all_images(config: PixelCNNConfig, seed: int) -> None:
    model = moved(config, seed=seed)
    x = every_image(config)
    with torch.no_grad():
        total = model.log_likelihood(x, classes(model, x)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)


def test_probabilities_of_single_precision_sum_to_1() -> None:
    model = moved(WORLD).float()
    x = every_image(WORLD).float()
    with torch.no_grad():
        total = model.log_likelihood(x, classes(model, x)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-4)


def test_scores_are_log_probabilities_and_the_prior() -> None:
    model = moved(WORLD)
    x = every_image(WORLD)
    expected = torch.stack([model.log_likelihood(x, torch.full((16, 1), k))[:, 0] for k in range(3)], 1)
    torch.testing.assert_close(model.class_scores(x), expected - math.log(3))


def outputs(model: PixelCNN, x: Tensor) -> Tensor:
    return model._outputs(x, torch.zeros((len(x), 1), dtype=torch.long))


@pytest.mark.parametrize("reach", [1, 3])
def test_a_pixel_is_predicted_from_the_pixels_before_it_alone(reach: int) -> None:
    config = PixelCNNConfig(num_classes=2, input_shape=(2, 5, 6), hidden=5, layers=3, reach=reach, levels=9)
    model = moved(config)
    x = torch.rand((1, 2, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = outputs(model, x).flatten(2)
    seen = torch.zeros(30, 30, dtype=torch.bool)
    for place in range(30):
        changed = x.clone().flatten(2)
        changed[:, :, place] = 1 - changed[:, :, place]
        after = outputs(model, changed.unflatten(2, (5, 6))).flatten(2)
        seen[place] = (after != before).any(1)[0]
        assert not seen[place, : place + 1].any()
        assert seen[place, place + 1 :].any() == (place < 29)
    # The two stacks leave no blind spot: every pixel is read by one of the next row, where that is near.
    assert seen[0, 6:8].all()
    assert seen[5, 6 + 4]


def test_the_distribution_of_a_pixel_is_the_mixture_of_the_paper() -> None:
    """For levels far from the edges, the mass is that of equation 2 of Salimans et al. 2017."""
    model = moved(PixelCNNConfig(num_classes=2, input_shape=(1, 1, 1), hidden=3, layers=1, mixtures=2))
    with torch.no_grad():
        model.output.bias.copy_(torch.tensor([0.3, 0.0, -60.0, -0.2, 0.1, -60.0]))
        model.output.weight.zero_()
    least = math.log(0.25 / 255)
    scale = math.exp(least + math.log1p(math.exp(-60 - least - 2)))
    weights = torch.tensor([0.3, -0.2]).double().softmax(0)
    means = torch.tensor([0.5, 0.5 + 1.5 * math.tanh(0.1 / 3)]).double()
    for level in (127, 128, 140):
        x = torch.full((1, 1, 1, 1), level / 255, dtype=torch.float64)
        high, low = ((x[0, 0, 0, 0] + sign / 510 - means) / scale for sign in (1, -1))
        expected = (weights * (high.sigmoid() - low.sigmoid())).sum()
        found = model.log_likelihood(x, torch.zeros((1, 1), dtype=torch.long)).exp()[0, 0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", WORLDS)
def test_gradients_are_those_of_finite_differences_on_and_off_the_grid(name: str) -> None:
    config = WORLDS[name]
    model = moved(config)
    off = torch.rand(
        (2, *config.input_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for x in (off, every_image(config)[[0, -1]]):
        assert torch.autograd.gradcheck(model.log_likelihood, (x.requires_grad_(), classes(model, x)))


def test_the_score_is_smooth_across_the_outermost_bins() -> None:
    model = moved(PixelCNNConfig(num_classes=2, input_shape=(1, 1, 1), hidden=3, layers=1, mixtures=2))
    x = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None, None, None]
    scores = model.class_scores(x)
    assert scores.isfinite().all()
    assert scores.diff(dim=0).abs().max() < 0.5


def test_masses_far_out_stay_finite() -> None:
    model = PixelCNN(PixelCNNConfig(num_classes=2, input_shape=(1, 1, 1), hidden=3, layers=1))
    means, scales = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([-7.0, -7.0, -7.0])
    grid = torch.linspace(0, 1, 256)[:, None]
    masses = model._log_mass(grid, means, scales)
    assert masses.isfinite().all()
    torch.testing.assert_close(masses.exp().sum(0), torch.ones(3), rtol=0, atol=1e-3)
    assert masses[0, 0] > masses[1, 0] + 1
    assert masses[-1, 2] > masses[-2, 2] + 1


@pytest.mark.parametrize("raw", [20.0, 100.0, 1e4])
def test_a_wide_distribution_is_uniform_and_learns(raw: float) -> None:
    """Training asked for log-scales of 88 and more, whose `exp` is infinite."""
    model = PixelCNN(PixelCNNConfig(num_classes=2, input_shape=(1, 1, 1), hidden=3, layers=1, mixtures=1))
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.tensor([0.0, 0.0, raw]))
    x = torch.linspace(0, 1, 256)[:, None, None, None]
    scores = model.log_likelihood(x, torch.zeros((256, 1), dtype=torch.long))
    torch.testing.assert_close(scores.exp(), torch.full((256, 1), 1 / 256), rtol=1e-3, atol=0)
    scores.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["binary", "binary, squares", "colour"])
def test_samples_are_as_frequent_as_the_probabilities_say(name: str) -> None:
    config = WORLDS[name]
    model, count = moved(config), 3000
    samples = model.sample(count, generator=torch.Generator().manual_seed(2))
    assert samples.shape == (config.num_classes, count, *config.input_shape)
    x = every_image(config)
    with torch.no_grad():
        probabilities = model.log_likelihood(x, classes(model, x)).exp()
    for label in range(config.num_classes):
        distances = torch.cdist(samples[label].flatten(1), x.flatten(1))
        assert distances.amin(1).max() < 1e-6
        counts = distances.argmin(1).bincount(minlength=len(x)).double()
        expected = count * probabilities[:, label]
        rare = expected < 5
        pairs = [(counts[~rare], expected[~rare]), (counts[rare].sum(), expected[rare].sum())]
        chi_square = sum(float(((n - m).square() / m.clamp_min(1)).sum()) for n, m in pairs)
        freedom = int((~rare).sum())
        assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 10


def test_a_trained_world_is_the_world() -> None:
    """Trained on one distribution per class, the samples and the probabilities are those of the data."""
    patterns = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]]).float().reshape(3, 1, 2, 2)
    with isolated_rng(0):
        model = PixelCNN(WORLD)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        y = torch.arange(3).repeat(40)
        for _ in range(150):
            flip = torch.rand(120, 1, 1, 1) < 0.25  # one in four is the negative
            x = torch.where(flip, 1 - patterns[y], patterns[y])
            optimizer.zero_grad()
            model.training_loss("likelihood", x, y).backward()
            optimizer.step()
    samples = model.sample(1000, generator=torch.Generator().manual_seed(3))
    for label in range(3):
        own = (samples[label] == patterns[label]).all(-1).all(-1).float().mean()
        negative = (samples[label] == 1 - patterns[label]).all(-1).all(-1).float().mean()
        assert float(own) == pytest.approx(0.75, abs=0.08)
        assert float(negative) == pytest.approx(0.25, abs=0.08)
    assert (model(patterns).argmax(1) == torch.arange(3)).all()


def test_every_parameter_learns(images: Make) -> None:
    model = PixelCNN(replace(WORLDS["colour"], input_shape=(3, 3, 2)))
    model.training_loss("likelihood", images(model, 6), torch.tensor([0, 1, 0, 1, -1, -1])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_hidden_class_counts_as_the_mean_of_all() -> None:
    model = moved(WORLD)
    x = every_image(WORLD)[[3, 5]]
    scores = model.log_likelihood(x, classes(model, x))
    hidden = scores[1].exp().mean().log()
    loss = model.training_loss("likelihood", x, torch.tensor([2, -1]))
    torch.testing.assert_close(loss, -(scores[0, 2] + hidden) / 2 / 4)


def test_chunks_change_nothing(images: Make) -> None:
    model = moved(WORLD)
    x = images(model, 5)
    torch.testing.assert_close(model.with_inference(max_bytes=1)(x), model(x))


def test_squares_have_to_tile_the_image() -> None:
    with pytest.raises(ValueError, match="`patch` to divide images of 28 x 28, but got 3"):
        PixelCNNConfig(patch=3)
