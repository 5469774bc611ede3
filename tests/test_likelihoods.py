import math

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from genrobust.likelihoods import (
    bernoulli_log_likelihood,
    gaussian_log_likelihood,
    gaussian_log_normalizer,
    kl_between_normals,
    kl_to_standard_normal,
    log_mean_exp,
    normal_log_density,
    squared_error,
)

draws_of_scores = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=12)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_squared_error_is_summed_over_pixels_for_every_class() -> None:
    x, reconstruction = random(3, 1, 2, 4, 4), random(3, 5, 2, 4, 4, seed=1)
    cost = squared_error(x, reconstruction)
    assert cost.shape == (3, 5)
    for i in range(3):
        for k in range(5):
            distance = torch.linalg.vector_norm(x[i, 0] - reconstruction[i, k])
            torch.testing.assert_close(cost[i, k], distance**2)


def test_shapes_in_annotations_are_checked_at_run_time() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="reconstruction"):
        squared_error(random(3, 1, 2, 4, 4), random(3, 2, 4, 4))


@pytest.mark.parametrize("variance", [0.5, 0.04, 3.0])
def test_gaussian_log_likelihood(variance: float) -> None:
    x, reconstruction = random(4, 1, 3, 2, 2), random(4, 2, 3, 2, 2, seed=1)
    observation = Independent(Normal(reconstruction, math.sqrt(variance)), 3)
    log_normalizer = gaussian_log_normalizer(12, variance=variance)
    log_likelihood = log_normalizer - squared_error(x, reconstruction) / (2 * variance)
    torch.testing.assert_close(log_likelihood, observation.log_prob(x))


def test_the_default_variance_makes_the_squared_error_a_negative_log_likelihood() -> None:
    x, reconstruction = random(4, 1, 1, 5, 5), random(4, 1, 1, 5, 5, seed=1)
    observation = Independent(Normal(reconstruction, math.sqrt(0.5)), 3)
    log_likelihood = gaussian_log_normalizer(25) - squared_error(x, reconstruction)
    torch.testing.assert_close(log_likelihood, observation.log_prob(x))


def test_kl_divergence_of_a_diagonal_gaussian() -> None:
    mean, log_variance = random(3, 4, 6), random(3, 4, 6, seed=1)
    posterior = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), 1.0), 1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), kl_divergence(posterior, prior))


def test_kl_divergence_without_a_variance_is_of_unit_variance() -> None:
    mean = random(3, 4, 6)
    torch.testing.assert_close(
        kl_to_standard_normal(mean), kl_to_standard_normal(mean, torch.zeros_like(mean))
    )
    torch.testing.assert_close(kl_to_standard_normal(mean), mean.norm(dim=-1) ** 2 / 2)


def test_kl_divergence_of_the_prior_is_zero() -> None:
    zeros = torch.zeros(2, 5)
    assert torch.equal(kl_to_standard_normal(zeros, zeros), torch.zeros(2))


def test_log_mean_exp_is_the_logarithm_of_the_mean_of_exponentials() -> None:
    scores = random(7, 3, 2)
    torch.testing.assert_close(log_mean_exp(scores), scores.exp().mean(0).log())


@given(draws_of_scores)
def test_log_mean_exp_lies_between_mean_and_maximum(values: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    averaged = float(log_mean_exp(scores))
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= averaged <= max(values) + slack
    assert averaged >= sum(values) / len(values) - slack  # Jensen
    assert averaged >= max(values) - math.log(len(values)) - slack


@given(draws_of_scores, st.floats(-1e4, 1e4))
def test_log_mean_exp_shifts_with_its_scores(values: list[float], shift: float) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(
        log_mean_exp(scores + shift), log_mean_exp(scores) + shift, rtol=1e-9, atol=1e-9
    )


@given(draws_of_scores, st.randoms(use_true_random=False))
def test_log_mean_exp_ignores_the_order_of_draws(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (torch.tensor(v, dtype=torch.float64) for v in (values, shuffled))
    torch.testing.assert_close(log_mean_exp(first), log_mean_exp(second), rtol=1e-12, atol=1e-9)


@given(st.floats(-1e4, 1e4), st.integers(1, 9))
def test_log_mean_exp_of_equal_draws_is_the_draw(value: float, draws: int) -> None:
    scores = torch.full((draws, 2), value, dtype=torch.float64)
    torch.testing.assert_close(log_mean_exp(scores), scores[0], rtol=1e-12, atol=1e-12)


def test_log_mean_exp_does_not_overflow_where_exponentials_do() -> None:
    averaged = log_mean_exp(torch.tensor([[-1e4, 1e4], [-1e4, 1e4 - 1000]]))
    torch.testing.assert_close(averaged, torch.tensor([-1e4, 1e4 - math.log(2)]))


@pytest.mark.parametrize("variance", [0.5, 0.04, 3.0])
def test_gaussian_log_likelihood_of_broadcast_images(variance: float) -> None:
    x, mean = random(4, 1, 1, 3, 2, 2), random(4, 2, 5, 3, 2, 2, seed=1)
    expected = Independent(Normal(mean, math.sqrt(variance)), 3).log_prob(x)
    torch.testing.assert_close(gaussian_log_likelihood(x, mean, variance=variance), expected)


def test_bernoulli_log_likelihood() -> None:
    x, logits = random(4, 1, 1, 3, 2, 2).sigmoid().round(), 5 * random(4, 2, 5, 3, 2, 2, seed=1)
    expected = Independent(Bernoulli(logits=logits), 3).log_prob(x.expand_as(logits))
    torch.testing.assert_close(bernoulli_log_likelihood(x, logits), expected)
    certain = torch.full((1, 2, 2), 300.0)
    assert bernoulli_log_likelihood(torch.zeros(1, 2, 2), certain) == -1200


def test_normal_log_density() -> None:
    z, mean, log_variance = random(4, 1, 3), random(1, 5, 3, seed=1), random(4, 5, 3, seed=2)
    expected = Independent(Normal(mean, (log_variance / 2).exp()), 1).log_prob(z)
    torch.testing.assert_close(normal_log_density(z, mean, log_variance), expected)


def test_kl_between_normals() -> None:
    moments = [random(4, 5, 3, seed=seed) for seed in range(4)]
    mean, log_variance, prior_mean, prior_log_variance = moments
    expected = kl_divergence(
        Normal(mean, (log_variance / 2).exp()), Normal(prior_mean, (prior_log_variance / 2).exp())
    )
    torch.testing.assert_close(kl_between_normals(*moments), expected.sum(2))
    zeros = torch.zeros(1, 1, 3, dtype=torch.float64)
    standard = kl_between_normals(mean, log_variance, zeros, zeros)
    torch.testing.assert_close(standard, kl_to_standard_normal(mean, log_variance))
