import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from genrobust.inference import (
    Codebook,
    DiscriminatorPrior,
    InferenceBudget,
    KLPrior,
    LatentObjective,
    Posterior,
    refine_with_adam,
)
from genrobust.likelihoods import gaussian_log_normalizer
from genrobust.nets import Architecture
from genrobust.nets.banks import DecoderBank, DiscriminatorBank
from genrobust.nets.fused import FusedDecoderBank
from genrobust.randomness import FixedNoise, FreshNoise, isolated_rng

Make = Callable[..., Any]
CLASSES = 4


def start_of(oracle: Any, x: Tensor, scale: float = 1.0) -> Posterior:
    generator = torch.Generator().manual_seed(3)
    shape = (len(x), oracle.objective.num_classes, oracle.objective.latent_dim)
    return oracle.objective.posterior(scale * torch.randn(shape, generator=generator).to(x.dtype))


def run_refine(oracle: Any, x: Tensor, start: Posterior, *, steps: int, **budget: Any) -> Posterior:
    noise = FixedNoise(0).stream()
    return refine_with_adam(oracle.objective, x, start, noise, budget=InferenceBudget(steps=steps, **budget))


def refine_fully(oracle: Any, x: Tensor) -> Posterior:
    """Lowers the rate, and takes the mean of many runs with their own noise, until noise hardly matters."""
    start, runs = start_of(oracle, x), 32
    found = Posterior(*(part.repeat(runs, 1, 1) for part in start.parameters))
    noise = FreshNoise(torch.Generator().manual_seed(0)).stream()
    for steps, rate in ((100, 0.1), (300, 0.02), (1000, 0.002)):
        budget = InferenceBudget(learning_rate=rate, steps=steps)
        found = refine_with_adam(oracle.objective, x.repeat(runs, 1, 1, 1), found, noise, budget=budget)
    return Posterior(*(part.unflatten(0, (runs, -1)).mean(0) for part in found.parameters))


# The oracle: a linear decoder bank, whose best latents are known in closed form.


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_refinement_reaches_the_best_mean(
    beta: float, dtype: torch.dtype, linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle, x = linear_gaussian(beta=beta, dtype=dtype), linear_images.to(dtype)
    start = start_of(oracle, x)
    found = run_refine(oracle, x, start, steps=200, learning_rate=0.05)
    best = oracle.expected_objective(x, oracle.optimal_mean(x))
    reached = oracle.expected_objective(x, found.mean)
    assert ((reached - best) / best).abs().max() < 1e-3
    assert (oracle.expected_objective(x, start.mean) / best).mean() > 1.2
    assert (found.mean - oracle.optimal_mean(x)).abs().max() < 0.02
    assert found.log_variance is None


def test_the_closed_form_mean_is_the_optimum(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian(beta=2.0)
    mean = oracle.optimal_mean(linear_images).requires_grad_()
    loss = oracle.objective.at(linear_images, Posterior(mean), FixedNoise(0).stream())
    [gradient] = torch.autograd.grad(loss.sum(), mean)
    assert gradient.abs().max() < 1e-12
    torch.testing.assert_close(loss, oracle.expected_objective(linear_images, mean))


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_refinement_reaches_the_best_mean_and_variance(
    beta: float, linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle = linear_gaussian(beta=beta, variational=True)
    found = refine_fully(oracle, linear_images)
    assert found.log_variance is not None
    mean, variance = oracle.optimal_mean(linear_images), oracle.optimal_variance()
    best = oracle.expected_objective(linear_images, mean, variance)
    reached = oracle.expected_objective(linear_images, found.mean, found.log_variance.exp())
    assert ((reached - best) / best).abs().max() < 1e-3
    unit = oracle.expected_objective(linear_images, mean, torch.ones_like(variance))
    assert ((unit - best) / best).min() > 5e-3


def test_one_draw_is_an_unbiased_estimate_of_the_objective(
    linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle, draws = linear_gaussian(variational=True), 20_000
    mean, variance = oracle.optimal_mean(linear_images[:1]), 0.3 + oracle.optimal_variance()
    posterior = Posterior(mean.expand(draws, -1, -1), variance.log().expand(draws, -1, -1))
    noise = FreshNoise(torch.Generator().manual_seed(0)).stream()
    losses = oracle.objective.at(linear_images[:1].expand(draws, -1, -1, -1), posterior, noise)
    expected = oracle.expected_objective(linear_images[:1], mean, variance)[0]
    error = losses.std(0) / math.sqrt(draws)
    assert ((losses.mean(0) - expected).abs() < 5 * error).all()
    assert (error < 0.02 * expected).all()


def test_the_objective_is_the_exact_evidence_where_the_posterior_is_diagonal(
    linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle = linear_gaussian(orthogonal=True, variational=True)
    evidence = oracle.log_evidence(linear_images)
    mean, variance = oracle.optimal_mean(linear_images), oracle.optimal_variance()
    elbo = gaussian_log_normalizer(16) - oracle.expected_objective(linear_images, mean, variance)
    torch.testing.assert_close(elbo, evidence)

    found = refine_fully(oracle, linear_images)
    assert found.log_variance is not None
    reached = oracle.expected_objective(linear_images, found.mean, found.log_variance.exp())
    gap = evidence - (gaussian_log_normalizer(16) - reached)
    assert gap.min() > -1e-9
    assert (gap / reached).max() < 1e-3


def test_the_objective_bounds_the_evidence(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian(variational=True)
    evidence = oracle.log_evidence(linear_images)
    mean, variance = oracle.optimal_mean(linear_images), oracle.optimal_variance()
    tightest = gaussian_log_normalizer(16) - oracle.expected_objective(linear_images, mean, variance)
    assert (tightest < evidence).all()
    start = start_of(oracle, linear_images)
    assert start.log_variance is not None
    looser = oracle.expected_objective(linear_images, start.mean, start.log_variance.exp())
    assert (gaussian_log_normalizer(16) - looser < tightest).all()


def test_refinement_leaves_its_start_and_the_weights_alone(
    linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle = linear_gaussian(variational=True)
    start = start_of(oracle, linear_images)
    before = [parameter.clone() for parameter in start.parameters]
    found = run_refine(oracle, linear_images, start, steps=3)
    assert all(map(torch.equal, start.parameters, before))
    assert not any(parameter.requires_grad for parameter in (*start.parameters, *found.parameters))
    assert all(weight.grad is None for weight in oracle.decoders.parameters())


def test_no_step_gives_the_start(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian(variational=True)
    start = start_of(oracle, linear_images)
    found = run_refine(oracle, linear_images, start, steps=0)
    assert all(map(torch.equal, start.parameters, found.parameters))


def test_refinement_takes_the_steps_of_torch_adam(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian(variational=True)
    start = start_of(oracle, linear_images)
    leaves = [parameter.clone().requires_grad_() for parameter in start.parameters]
    optimizer = torch.optim.Adam(leaves, lr=0.07)
    noise = FixedNoise(0).stream()
    for _ in range(7):
        optimizer.zero_grad()
        oracle.objective.at(linear_images, Posterior(*leaves), noise).sum().backward()
        optimizer.step()
    found = run_refine(oracle, linear_images, start, steps=7, learning_rate=0.07)
    for ours, theirs in zip(found.parameters, leaves, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)


# The radius.


@given(seed=st.integers(0, 2**31), radius=st.floats(0.01, 10))
def test_candidates_are_projected_onto_the_radius(linear_gaussian: Make, seed: int, radius: float) -> None:
    oracle, like = linear_gaussian(), torch.zeros(1, dtype=torch.float64)
    budget = InferenceBudget(candidates=50, encoder_proposal=False, seed=seed)
    free = Codebook(oracle.objective, budget, like=like).means
    kept = Codebook(oracle.objective, replace(budget, radius=radius), like=like).means
    norm = free.norm(dim=1)
    assert (kept.norm(dim=1) <= radius * (1 + 1e-6)).all()
    assert torch.equal(kept.sign(), free.sign())
    direction = free / norm[:, None]
    torch.testing.assert_close(kept, norm.clamp_max(radius)[:, None] * direction, rtol=1e-5, atol=1e-6)


@given(radius=st.floats(0.01, 2), scale=st.floats(0, 10))
def test_refined_means_stay_within_the_radius(
    linear_gaussian: Make, linear_images: Tensor, radius: float, scale: float
) -> None:
    oracle = linear_gaussian()
    start = start_of(oracle, linear_images, scale)
    free = run_refine(oracle, linear_images, start, steps=1)
    kept = run_refine(oracle, linear_images, start, steps=1, radius=radius)
    assert (kept.mean.norm(dim=-1) <= radius * (1 + 1e-9)).all()
    assert torch.equal(kept.mean.sign(), free.mean.sign())
    norm = free.mean.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(kept.mean, norm.clamp_max(radius) * free.mean / norm)


def test_the_radius_does_not_bound_the_variance(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian(variational=True)
    start = start_of(oracle, linear_images)
    free = run_refine(oracle, linear_images, start, steps=1)
    kept = run_refine(oracle, linear_images, start, steps=1, radius=0.01)
    assert free.log_variance is not None
    assert kept.log_variance is not None
    assert torch.equal(kept.log_variance, free.log_variance)


# The codebook.


def tiny_objective(
    arch: Architecture, *, variational: bool, adversarial: bool, dtype: torch.dtype = torch.float64
) -> LatentObjective:
    with isolated_rng(0):
        decoders = DecoderBank(arch, decoders=CLASSES).eval()
        for layer in decoders.modules():
            if isinstance(layer, nn.ConvTranspose2d):
                layer.weight.data.mul_(3)
        discriminators = DiscriminatorBank(arch, discriminators=1)
    prior = DiscriminatorPrior(discriminators) if adversarial else KLPrior()
    return LatentObjective(
        decoders=decoders.to(dtype),
        prior=prior.to(dtype),
        beta=1.5,
        num_classes=CLASSES,
        latent_dim=arch.latent_dim,
        variational=variational,
    )


def brute_force(objective: LatentObjective, codebook: Codebook, x: Tensor) -> Tensor:
    """Every candidate's objective for every image and class, one candidate at a time, shape (C, B, K)."""
    losses = []
    for index, mean in enumerate(codebook.means):
        shape = (len(x), objective.num_classes, -1)
        lucky = objective.variational and codebook._noise is not None
        z = mean + codebook._noise[index] if lucky else mean
        images = objective.decoders(z.expand(shape))
        cost = (x[:, None] - images).square().sum((2, 3, 4))
        prior = objective.prior(objective.posterior(mean.expand(shape)), z.expand(shape))
        losses.append(cost + objective.beta * prior)
    return torch.stack(losses).detach()


def count_decodings(objective: LatentObjective, sizes: list[int]) -> Any:
    return objective.decoders.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))


CACHED_BYTES, STREAMED_BYTES = 10**6, 10**5  # for 90 candidates of 4 x 64 pixels in float64: 184,320 bytes


@pytest.mark.parametrize("max_bytes", [2**30, CACHED_BYTES, STREAMED_BYTES, 1])
@pytest.mark.parametrize("variational", [False, True], ids=["mean", "variational"])
@pytest.mark.parametrize("adversarial", [False, True], ids=["kl", "discriminator"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"drop_least_likely": 0.1}, {"radius": 1.0}, {"search": "distributions"}],
    ids=["all", "likely", "radius", "distributions"],
)
def test_the_search_finds_what_brute_force_finds(
    max_bytes: int,
    variational: bool,
    adversarial: bool,
    settings: dict[str, Any],
    architectures: dict[str, Architecture],
) -> None:
    arch = architectures["eabs"]
    objective = tiny_objective(arch, variational=variational, adversarial=adversarial)
    x = torch.rand((6, *arch.input_shape), generator=torch.Generator().manual_seed(1)).double()
    budget = InferenceBudget(candidates=90, encoder_proposal=False, max_bytes=max_bytes, **settings)
    codebook = Codebook(objective, budget, like=x)
    losses = brute_force(objective, codebook, x)
    expected, index = losses.min(0)
    sizes: list[int] = []
    with count_decodings(objective, sizes):
        [(posterior, loss)] = codebook.search(x)
    assert bool(sizes) == (max_bytes < CACHED_BYTES)
    assert torch.equal(posterior.mean, codebook.means[index])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    if variational:
        assert torch.equal(posterior.log_variance, torch.zeros_like(posterior.mean))
    else:
        assert posterior.log_variance is None
    assert index.unique().numel() > 2


@pytest.mark.parametrize("max_bytes", [2**30, CACHED_BYTES // 2, STREAMED_BYTES])
def test_the_search_in_single_precision(max_bytes: int, architectures: dict[str, Architecture]) -> None:
    arch = architectures["eabs"]
    objective = tiny_objective(arch, variational=True, adversarial=True, dtype=torch.float32)
    x = torch.rand((6, *arch.input_shape), generator=torch.Generator().manual_seed(1))
    budget = InferenceBudget(candidates=90, encoder_proposal=False, max_bytes=max_bytes)
    codebook = Codebook(objective, budget, like=x)
    expected, index = brute_force(objective, codebook, x).min(0)
    [(posterior, loss)] = codebook.search(x)
    assert torch.equal(posterior.mean, codebook.means[index])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_bytes", [2**30, CACHED_BYTES // 2, STREAMED_BYTES, 1])
def test_the_search_finds_the_best_few_in_order(
    max_bytes: int, architectures: dict[str, Architecture]
) -> None:
    arch = architectures["eabs"]
    objective = tiny_objective(arch, variational=False, adversarial=False)
    x = torch.rand((6, *arch.input_shape), generator=torch.Generator().manual_seed(1)).double()
    budget = InferenceBudget(candidates=1000, encoder_proposal=False, max_bytes=max_bytes)
    codebook = Codebook(objective, budget, like=x)
    every = brute_force(objective, codebook, x).sort(0).values
    found = torch.stack([loss for _, loss in codebook.search(x, count=4)])
    torch.testing.assert_close(found[0], every[0], rtol=1e-5, atol=1e-5)
    assert (found.diff(dim=0) >= 0).all()
    # Two of the best in one group of 32 are seldom.
    assert (found <= every[8] + 1e-5).all()


def test_fewer_candidates_than_asked_for_are_found_once_each(architectures: dict[str, Architecture]) -> None:
    arch = architectures["eabs"]
    objective = tiny_objective(arch, variational=False, adversarial=False)
    x = torch.rand((2, *arch.input_shape), generator=torch.Generator().manual_seed(1)).double()
    codebook = Codebook(objective, InferenceBudget(candidates=2, encoder_proposal=False), like=x)
    assert len(codebook.search(x, count=4)) <= 2


def test_a_cached_codebook_of_several_tiles_decodes_nothing_when_searched(
    architectures: dict[str, Architecture],
) -> None:
    objective = tiny_objective(architectures["eabs"], variational=False, adversarial=False)
    x = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(1)).double()
    sizes: list[int] = []
    with count_decodings(objective, sizes):
        budget = InferenceBudget(candidates=90, encoder_proposal=False, max_bytes=CACHED_BYTES)
        codebook = Codebook(objective, budget, like=x)
        assert len(sizes) > 1
        sizes.clear()
        codebook.search(x)
        assert not sizes


@pytest.mark.parametrize(("share", "kept"), [(0.0, 90), (0.1, 81), (0.25, 68), (0.999, 1)])
def test_the_least_likely_candidates_are_dropped(share: float, kept: int, linear_gaussian: Make) -> None:
    oracle, like = linear_gaussian(), torch.zeros(1, dtype=torch.float64)
    budget = InferenceBudget(candidates=90, encoder_proposal=False)
    every = Codebook(oracle.objective, budget, like=like).means
    likely = Codebook(oracle.objective, replace(budget, drop_least_likely=share), like=like).means
    norms = every.norm(dim=1).sort().values
    assert len(likely) == kept
    torch.testing.assert_close(likely.norm(dim=1).sort().values, norms[:kept])


def test_candidates_are_prior_draws_that_their_seed_decides(linear_gaussian: Make) -> None:
    oracle, like = linear_gaussian(), torch.zeros(1, dtype=torch.float64)
    budget = InferenceBudget(candidates=8000, encoder_proposal=False)
    means = Codebook(oracle.objective, budget, like=like).means
    assert means.shape == (8000, 2)
    assert means.mean(0).abs().max() < 0.05
    torch.testing.assert_close(means.T.cov(), torch.eye(2).double(), rtol=0, atol=0.08)
    assert torch.equal(Codebook(oracle.objective, budget, like=like).means, means)
    other = Codebook(oracle.objective, replace(budget, seed=1), like=like).means
    assert not torch.equal(other, means)


# Whole models: what the size of a chunk or of a batch may not change.


@pytest.mark.parametrize("name", ["abs", "eabs"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=["double", "single"]
)
@pytest.mark.parametrize("max_bytes", [1, 20_000, 200_000])
def test_chunks_do_not_change_the_scores(
    name: str, dtype: torch.dtype, tolerance: float, max_bytes: int, make_model: Make, images: Make
) -> None:
    model = make_model(name, dtype=dtype)
    x = images(model, 9).requires_grad_()
    scores = model.class_scores(x)
    chunked = model.with_inference(max_bytes=max_bytes).class_scores(x)
    torch.testing.assert_close(chunked, scores, rtol=0, atol=tolerance)
    assert torch.equal(chunked.argmax(1), scores.argmax(1))
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradients = [torch.autograd.grad((weights * s).sum(), x)[0] for s in (scores, chunked)]
    torch.testing.assert_close(*gradients, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["abs", "eabs"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=["double", "single"]
)
def test_a_row_does_not_depend_on_the_rows_beside_it(
    name: str, dtype: torch.dtype, tolerance: float, make_model: Make, images: Make
) -> None:
    model = make_model(name, dtype=dtype)
    x = images(model, 11)
    scores = model.class_scores(x)
    alone = torch.cat([model.class_scores(row[None]) for row in x])
    torch.testing.assert_close(alone, scores, rtol=0, atol=tolerance)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    permuted = model.class_scores(x[order])
    torch.testing.assert_close(permuted, scores[order], rtol=0, atol=tolerance)
    larger = model.class_scores(torch.cat([images(model, 20, seed=1), x]))[20:]
    torch.testing.assert_close(larger, scores, rtol=0, atol=tolerance)
    for other in (alone, larger):
        assert torch.equal(other.argmax(1), scores.argmax(1))


@pytest.mark.parametrize("name", ["abs", "eabs"])
def test_batches_past_one_search_are_the_same(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name, dtype=torch.float64).with_inference(steps=1)
    x = images(model, 520)  # one search takes 512 rows
    torch.testing.assert_close(model.class_scores(x)[500:], model.class_scores(x[500:]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["abs", "eabs"])
@pytest.mark.parametrize("max_bytes", [10_000, 100_000])
def test_no_decoding_exceeds_the_memory_bound(
    name: str, max_bytes: int, make_model: Make, images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(name).with_inference(max_bytes=max_bytes)
    latents: list[int] = []
    decode = FusedDecoderBank.forward

    def counted(bank: FusedDecoderBank, z: Tensor) -> Tensor:
        latents.append(z[..., 0].numel())
        return decode(bank, z)

    monkeypatch.setattr(FusedDecoderBank, "forward", counted)  # of selections of decoders too
    model(images(model, 40).requires_grad_())
    most = max_bytes // (model.decoders.activations * model.num_classes * 4) * model.num_classes
    assert 0.9 * most < max(latents) <= most


def test_the_encoder_proposal_is_taken_where_it_is_better(make_model: Make, images: Make) -> None:
    model = make_model("eabs", variational=False).with_inference(steps=0, candidates=2)
    x = images(model, 40)
    [with_proposal] = model.search(x)
    [without] = model.with_inference(encoder_proposal=False).search(x)
    [alone] = model.with_inference(candidates=0).search(x)
    taken = (with_proposal.mean == alone.mean).all(2)
    assert 0 < taken.float().mean() < 1
    assert torch.equal(with_proposal.mean, torch.where(taken[..., None], alone.mean, without.mean))
    noise = FixedNoise(0).stream()
    best = model.objective.at(x, with_proposal, noise)
    for other in (without, alone):
        assert (best <= model.objective.at(x, other, noise) + 1e-4).all()


def test_the_encoder_alone_starts_at_its_output(make_model: Make, images: Make) -> None:
    model = make_model("eabs").with_inference(candidates=0, steps=0)
    x = images(model, 3)
    mean, log_variance = model.encoders(x[:, None])
    [start] = model.search(x)
    torch.testing.assert_close(start.mean, mean.expand(-1, CLASSES, -1))
    torch.testing.assert_close(start.log_variance, log_variance.expand(-1, CLASSES, -1))


def test_more_candidates_and_more_steps_explain_images_better(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64)
    x = images(model, 10)

    def mean_score(**budget: Any) -> float:
        return float(model.with_inference(**budget).class_scores(x).mean())

    coarse = mean_score(candidates=2, steps=0, drop_least_likely=0.0)
    searched = mean_score(candidates=200, steps=0, drop_least_likely=0.0)
    assert coarse < searched < mean_score(candidates=200, steps=30, drop_least_likely=0.0)


# The budget.


def test_the_default_budget_is_the_published_one() -> None:
    budget = InferenceBudget()
    assert (budget.candidates, budget.steps, budget.encoder_proposal) == (8000, 50, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": -1}, "`candidates` to be at least 0, but got -1"),
        ({"steps": -1}, "`steps` to be at least 0, but got -1"),
        (
            {"candidates": 0, "encoder_proposal": False},
            "`candidates` above 0 when `encoder_proposal` is off",
        ),
        ({"drop_least_likely": 1.0}, "`drop_least_likely` to be at least 0 and below 1, but got 1.0"),
        ({"drop_least_likely": -0.1}, "`drop_least_likely` to be at least 0 and below 1, but got -0.1"),
        ({"drop_least_likely": math.nan}, "`drop_least_likely` to be finite, but got nan"),
        ({"learning_rate": 0.0}, "`learning_rate` to be above 0, but got 0.0"),
        ({"learning_rate": math.nan}, "`learning_rate` to be finite, but got nan"),
        ({"max_bytes": 0}, "`max_bytes` to be at least 1, but got 0"),
        ({"radius": 0.0}, "`radius` to be above 0, but got 0.0"),
        ({"radius": -1.0}, "`radius` to be above 0, but got -1.0"),
        ({"radius": math.nan}, "`radius` to be finite, but got nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(f"{k}={v}" for k, v in value.items()),
)
def test_impossible_budget(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InferenceBudget(**settings)
