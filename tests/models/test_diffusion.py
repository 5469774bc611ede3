"""The diffusion classifier against Gaussian classes, whose denoisers and densities have closed forms."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust.eot import expectation
from genrobust.gradients import Estimated
from genrobust.models import DiffusionClassifier, DiffusionConfig
from genrobust.nets.denoisers import DenoiserArchitecture
from genrobust.randomness import isolated_rng

Make = Callable[..., Any]
SHAPE = (1, 4, 4)
STD = 0.4  # of every pixel of every class, and the `data_std`
FINE = {"levels": 400, "sigma_min": 0.01, "sigma_max": 30.0}


class GaussianDenoiser(nn.Module):
    """What the network of exact class-conditional denoisers for N(m_k, STD^2) would output."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.means = nn.Parameter(means)

    def forward(self, x: Tensor, log_sigma: Tensor, labels: Tensor) -> Tensor:
        sigma = log_sigma.exp()[:, None, None, None, None]
        total = sigma.square() + STD**2
        noisy = x[:, None] * total.sqrt()
        exact = (sigma.square() * self.means[labels] + STD**2 * noisy) / total
        return (exact - STD**2 / total * noisy) / (sigma * STD / total.sqrt())


def gaussian_model(**budget: Any) -> tuple[DiffusionClassifier, Tensor]:
    """A model of three classes with exact denoisers, and the classes' means."""
    generator = torch.Generator().manual_seed(0)
    means = 0.5 * torch.rand((3, *SHAPE), generator=generator)
    means[0] = 0
    heads = torch.cat([means, means[:1]]).double()
    config = DiffusionConfig(
        num_classes=3, architecture=DenoiserArchitecture(input_shape=SHAPE, patch=1), data_std=STD
    )
    model = DiffusionClassifier(config).double()
    model.denoiser = GaussianDenoiser(heads)
    return model.with_inference(**{**FINE, **budget}), means.double()


def check_mean(answer: Callable[[DiffusionClassifier, Tensor], Tensor], x: Tensor, expected: Tensor) -> None:
    """Compares the mean of an answer over many draws of levels and noise with its expectation."""
    model = gaussian_model(levels=60)[0].with_randomness("fresh", seed=1)
    with torch.no_grad():
        draws = answer(model, x.repeat(400, 1, 1, 1)).unflatten(0, (400, len(x)))
    error = draws.std(0) / math.sqrt(len(draws))
    assert (error < 0.3).all()
    assert ((draws.mean(0) - expected).abs() < 4.5 * error + 0.01).all()


def log_density(x: Tensor, means: Tensor, *, extra: float = 0.0) -> Tensor:
    std = math.sqrt(STD**2 + extra**2)
    return torch.distributions.Normal(means, std).log_prob(x[:, None]).flatten(2).sum(2)


@pytest.fixture
def x() -> Tensor:
    return torch.rand((5, *SHAPE), generator=torch.Generator().manual_seed(1)).double()


# The bound.


def test_scores_of_exact_denoisers_are_the_log_density_less_the_error_of_the_prior(x: Tensor) -> None:
    """The prior of the noisiest image is that of the first class, which is the only one of mean 0."""
    expected = log_density(x, gaussian_model()[1]) - math.log(3)
    check_mean(lambda model, x: model.class_scores(x), x, expected)


def test_scores_bound_the_log_density_on_average(x: Tensor) -> None:
    model, means = gaussian_model(sigma_min=0.3, sigma_max=2.0, levels=50)
    draws = torch.stack([model.with_randomness("fixed", seed=seed).class_scores(x) for seed in range(60)])
    error = draws.std(0) / math.sqrt(len(draws))
    gap = log_density(x, means) - math.log(3) - draws.mean(0)
    assert (gap > -4 * error).all()
    assert (gap[:, 0] < 5 * error[:, 0] + 0.05).all()  # exact where the prior is exact


def test_classifier_of_exact_denoisers_is_the_bayes_classifier() -> None:
    model, means = gaussian_model(levels=3000)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn((120, *SHAPE), generator=generator).double()
    images = (means.repeat(40, 1, 1, 1) + STD * noise).clamp(0, 1)
    bayes = log_density(images, means)
    top = bayes.topk(2).values
    clear = top[:, 0] - top[:, 1] > 1
    assert clear.sum() > 40
    assert torch.equal(model.predict(images).labels[clear], bayes.argmax(1)[clear])


def test_scores_of_noised_images_are_the_log_density_of_noised_images(x: Tensor) -> None:
    noisy = x + 0.7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).double()
    expected = log_density(noisy, gaussian_model()[1], extra=0.7) - math.log(3)
    check_mean(lambda model, x: model.noised_scores(x, sigma=0.7), noisy, expected)


def test_density_of_all_images_is_that_of_the_last_label(x: Tensor) -> None:
    model, _ = gaussian_model(levels=20)
    torch.testing.assert_close(model.log_density(x), model.class_scores(x)[:, 0] + math.log(3))


def test_other_weights_give_the_sums_of_weighted_errors(x: Tensor) -> None:
    model, _ = gaussian_model(levels=1, sigma_min=0.5, sigma_max=0.5000001)
    scores = {name: model.with_inference(weighting=name).class_scores(x) for name in ("inverse", "uniform")}
    torch.testing.assert_close(0.5 * (scores["inverse"] + math.log(3)), scores["uniform"] + math.log(3))


# Randomness, gradients, memory.


def test_shared_strata_make_expectations_steadier(x: Tensor) -> None:
    model, _ = gaussian_model(levels=2, sigma_min=0.1, sigma_max=3.0)
    draws = 8

    def spread(answer: Callable[[Any, torch.Generator], Tensor]) -> float:
        found = [answer(model, torch.Generator().manual_seed(seed)) for seed in range(80)]
        return float(torch.stack(found).detach().var(0).mean())

    shared = spread(lambda model, g: expectation(model, draws, generator=g).class_scores(x))
    apart = spread(
        lambda model, g: torch.stack(
            [model.with_randomness("fresh", generator=g).class_scores(x) for _ in range(draws)]
        ).mean(0)
    )
    assert shared < apart


def test_chunks_change_neither_scores_nor_gradients(make_model: Make, images: Make) -> None:
    model = make_model("diffusion", dtype=torch.float64)
    x = images(model, 5).requires_grad_()
    found = []
    for max_bytes in (2**27, 1, 8 * 7 * model.config.architecture.activations(4)):
        scores = model.with_inference(max_bytes=max_bytes).class_scores(x)
        found.append((scores, torch.autograd.grad(scores[:, 1].sum(), x)[0]))
    for scores, gradient in found[1:]:
        torch.testing.assert_close(scores, found[0][0])
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-5, atol=1e-8)


def test_gradient_by_finite_differences(make_model: Make, images: Make) -> None:
    model = make_model("diffusion", dtype=torch.float64)
    x = images(model, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model.class_scores(x), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: model.log_density(x), x, fast_mode=True)


@pytest.mark.slow
def test_estimated_gradient_points_as_the_exact_one(make_model: Make, images: Make) -> None:
    model = make_model("diffusion", dtype=torch.float64)
    slopes = []
    for gradient in ("exact", Estimated(pairs=600)):
        x = images(model, 1).requires_grad_()
        scores = model.with_gradient(gradient).class_scores(x)
        slopes.append(torch.autograd.grad(scores[0, 0], x)[0].flatten())
    assert torch.nn.functional.cosine_similarity(*slopes, dim=0) > 0.9


# Training and samples.


def test_training_loss_by_hand(make_model: Make, images: Make) -> None:
    model = make_model("diffusion", dtype=torch.float64)
    x, y = images(model, 3), torch.tensor([2, -1, 0])
    with isolated_rng(5):
        loss = model.training_loss("denoiser", x, y)
    with isolated_rng(5):
        sigma = (-0.8 + torch.randn(3)).exp().double()
        noisy = x + sigma[:, None, None, None] * torch.randn_like(x)
    expected = 0.0
    for row, label in enumerate((2, 4, 0)):
        denoised = model.denoise(noisy[row : row + 1], sigma[row : row + 1], denoiser=model.trained)[0]
        weight = (sigma[row] ** 2 + 0.16) / (sigma[row] * 0.4) ** 2
        expected += sum(weight * (denoised[k] - x[row]).square().mean() for k in (label, 4)) / 6
    torch.testing.assert_close(loss, expected)


def test_averaged_weights_follow_the_trained_ones(make_model: Make, images: Make) -> None:
    model = make_model("diffusion")
    start = model.denoiser.first.weight.clone()
    with torch.no_grad():
        model.trained.first.weight.add_(1)
    model.training_loss("denoiser", images(model, 2), torch.tensor([0, 1]))
    torch.testing.assert_close(model.denoiser.first.weight, start + 10 / 11)
    assert not any(parameter.requires_grad for parameter in model.denoiser.parameters())


def test_unlabelled_images_teach_the_last_label_alone(make_model: Make, images: Make) -> None:
    model = make_model("diffusion")
    with torch.no_grad():
        for block in model.trained.inside:
            block.second.weight.normal_()  # which starts as 0
    loss = model.training_loss("denoiser", images(model, 4), torch.full((4,), -1))
    loss.backward()
    slope = model.trained.labels.weight.grad.abs().sum(1)
    assert (slope[:4] == 0).all()
    assert slope[4] > 0


def test_labels_that_are_asked_for_are_those_of_all(make_model: Make, images: Make) -> None:
    model = make_model("diffusion", dtype=torch.float64)
    x, sigma = images(model, 3), torch.tensor([0.1, 0.5, 2.0]).double()
    every = model.denoise(x, sigma)
    assert every.shape == (3, 5, *model.input_shape)
    asked = torch.tensor([[0, 4], [3, 3], [4, 1]])
    torch.testing.assert_close(model.denoise(x, sigma, labels=asked), every[torch.arange(3)[:, None], asked])


def test_samples_of_exact_denoisers_have_the_classes_moments() -> None:
    model, means = gaussian_model()
    samples = model.sample(400, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(means, STD)
    points = expected.sample((20_000,)).clamp(0, 1)
    torch.testing.assert_close(samples.mean(1), points.mean(0), rtol=0, atol=0.08)
    torch.testing.assert_close(samples.std(1), points.std(0), rtol=0, atol=0.06)


# Errors.


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_noise_levels_that_are_none(sigma: float, make_model: Make, images: Make) -> None:
    model = make_model("diffusion")
    with pytest.raises(ValueError, match="`sigma` above 0"):
        model.noised_scores(images(model, 1), sigma=sigma)


def test_levels_in_the_wrong_order(make_model: Make) -> None:
    with pytest.raises(ValueError, match=r"`sigma_min` below `sigma_max`, but got 3\.0 and 0\.5"):
        make_model("diffusion").with_inference(sigma_min=3.0, sigma_max=0.5)
