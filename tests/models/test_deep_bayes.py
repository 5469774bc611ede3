"""Against closed forms: the linear-Gaussian model, where evidence and posterior are known."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from genrobust import verify
from genrobust.attack_view import attack_view
from genrobust.eot import expectation
from genrobust.gradients import Estimated
from genrobust.models import DeepBayes, DeepBayesConfig
from genrobust.models._amortized import SamplingBudget
from genrobust.nets.conditionals import GRAPHS, ConditionalArchitecture, Graph
from genrobust.randomness import isolated_rng
from genrobust.verification import fresh_variant
from genrobust.verification.doors import _CODEBOOK_SEED, _NOISE_SEED

ARCH = ConditionalArchitecture(input_shape=(1, 6, 5), latent_dim=3, channels=(4, 4), hidden=(8,))
CLASSES, PIXELS = 3, 16

each_graph = pytest.mark.parametrize("name", GRAPHS)


def small(name: str = "GF", *, dtype: torch.dtype = torch.float64, **config: Any) -> DeepBayes:
    with isolated_rng(0):
        model = DeepBayes(
            DeepBayesConfig(num_classes=CLASSES, architecture=ARCH, graph=GRAPHS[name], **config)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
    return model.to(dtype).with_inference(samples=4)


def pictures(count: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand((count, 1, 6, 5), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def normal_noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The linear-Gaussian oracle: x = A_k z + b_k + noise, z ~ N(0, I), A_k with orthogonal columns.


@dataclass(frozen=True)
class IdentityGaussian:
    """An observation model whose mean is what the decoder puts out."""

    variance: float

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs

    def log_likelihood(self, x: Tensor, outputs: Tensor) -> Tensor:
        return Normal(outputs, math.sqrt(self.variance)).log_prob(x).flatten(-3).sum(-1)


class LinearDecoder(nn.Module):
    def __init__(self, matrices: Tensor, offsets: Tensor) -> None:
        super().__init__()
        self.matrices, self.offsets = matrices, offsets

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        pixels = torch.einsum("knd,bksd->bksn", self.matrices, values["z"]) + self.offsets[:, None]
        return pixels.unflatten(3, (1, 4, 4))


class LinearEncoder(nn.Module):
    """The exact posterior, shifted and widened on request."""

    def __init__(
        self, matrices: Tensor, offsets: Tensor, variance: float, shift: float, widen: float
    ) -> None:
        super().__init__()
        self.matrices, self.offsets, self.variance = matrices, offsets, variance
        self.shift, self.widen = shift, widen

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        residual = values["x"].flatten(1)[:, None] - self.offsets
        precision = 1 + self.matrices.square().sum(1) / self.variance
        mean = torch.einsum("knd,bkn->bkd", self.matrices, residual) / self.variance / precision
        log_variance = (-precision.log() + self.widen).expand_as(mean)
        return torch.cat([mean + self.shift, log_variance], dim=2)[:, :, None]


@dataclass(frozen=True)
class Oracle:
    model: DeepBayes
    evidence: Tensor
    x: Tensor


def oracle(*, shift: float = 0.0, widen: float = 0.0, variance: float = 0.3, images: int = 5) -> Oracle:
    matrices = torch.linalg.qr(normal_noise(CLASSES, PIXELS, 2, seed=2)).Q * torch.tensor([0.7, 1.6])
    offsets = torch.rand(CLASSES, PIXELS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    arch = ConditionalArchitecture(input_shape=(1, 4, 4), latent_dim=2, channels=(), hidden=(2,))
    model = DeepBayes(DeepBayesConfig(num_classes=CLASSES, architecture=arch)).double()
    model.decoder = LinearDecoder(matrices, offsets)  # type: ignore[assignment]
    model.encoder = LinearEncoder(matrices, offsets, variance, shift, widen)  # type: ignore[assignment]
    model.observation = IdentityGaussian(variance)
    model.register_parameter("anchor", nn.Parameter(torch.zeros((), dtype=torch.float64)))
    x = torch.rand((images, 1, 4, 4), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    covariance = matrices @ matrices.mT + variance * torch.eye(PIXELS, dtype=torch.float64)
    marginal = MultivariateNormal(offsets, covariance)
    return Oracle(model, marginal.log_prob(x.flatten(1)[:, None]) - math.log(CLASSES), x)


@pytest.mark.parametrize("budget", [{"samples": 1}, {"samples": 7}, {"posterior_mean": True}])
def test_with_the_exact_posterior_every_sample_gives_the_exact_evidence(budget: Any) -> None:
    known = oracle()
    scores = known.model.with_inference(**budget).class_scores(known.x)
    torch.testing.assert_close(scores, known.evidence)
    posterior = known.evidence.softmax(1)
    torch.testing.assert_close(known.model.predict(known.x).probabilities, posterior)


def test_the_bound_rises_with_the_samples_to_the_exact_log_likelihood() -> None:
    known = oracle(shift=0.3, widen=0.8, images=2)
    x = known.x.repeat(1000, 1, 1, 1)
    gaps = []
    for samples in (1, 3, 10, 100):
        model = known.model.with_inference(samples=samples).with_randomness("fresh", seed=samples)
        scores = model.class_scores(x).unflatten(0, (1000, 2)).mean(0)
        gaps.append((known.evidence - scores).mean())
    assert gaps[0] > 1.5 * gaps[1] > 1.5**2 * gaps[2] > 1.5**3 * gaps[3] > 0
    assert gaps[3] < 0.01


def test_one_sample_gives_the_elbo_in_expectation() -> None:
    known = oracle(shift=0.3, widen=0.8, images=2)
    classes, noise = torch.eye(CLASSES, dtype=torch.float64)[None, :, None], normal_noise(2, CLASSES, 4000, 2)
    weights = known.model.log_weights(known.x, classes, noise).mean(2)
    bound = known.model.elbo(known.x, classes, noise).mean(2)
    torch.testing.assert_close(weights, bound, rtol=0, atol=0.1)
    mean, log_variance = known.model.encoder({"x": known.x}).chunk(2, -1)
    exact, _ = oracle(images=2).model.encoder({"x": known.x}).chunk(2, -1)
    true_variance = (log_variance - 0.8).exp()
    gap = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(exact, true_variance.sqrt()))
    torch.testing.assert_close(bound, known.evidence - gap.sum((2, 3)), rtol=0, atol=0.1)


def test_expectation_over_fresh_draws_approaches_the_evidence() -> None:
    known = oracle(shift=0.3, widen=0.8)
    averaged = expectation(known.model.with_inference(samples=10), 200)
    torch.testing.assert_close(averaged.class_scores(known.x), known.evidence, rtol=0, atol=0.1)


# Every graph, against a plain loop over images, classes and samples.


def log_weight(model: DeepBayes, x: Tensor, k: int, noise: Tensor) -> Tensor:
    """Give log p(x, z, y = k) / q(z | x, y = k) of one image, with torch's distributions."""
    y = nn.functional.one_hot(torch.tensor(k), CLASSES).double().reshape(1, 1, 1, CLASSES)
    mean, log_variance = model.encoder({"x": x, "y": y}).flatten().chunk(2)
    proposal = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    z = mean + (log_variance / 2).exp() * noise
    values = {"x": x, "y": y, "z": z.reshape(1, 1, 1, -1)}
    if model.prior is None:
        prior_mean, prior_log_variance = torch.zeros_like(z), torch.zeros_like(z)
    else:
        prior_mean, prior_log_variance = model.prior(values).flatten().chunk(2)
    total = Independent(Normal(prior_mean, (prior_log_variance / 2).exp()), 1).log_prob(
        z
    ) - proposal.log_prob(z)
    if model.decoder is not None:
        outputs = model.decoder(values).flatten()
        if model.config.likelihood == "bernoulli":
            total = total - nn.functional.binary_cross_entropy_with_logits(
                outputs, x.flatten(), reduction="sum"
            )
        else:
            deviation = math.sqrt(model.config.variance)
            total = total + Normal(outputs.sigmoid(), deviation).log_prob(x.flatten()).sum()
    if model.label is None:
        return total - math.log(CLASSES)
    return total + model.label(values).flatten().log_softmax(0)[k]


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@each_graph
def test_scores_are_those_of_a_plain_loop(name: str, likelihood: Any) -> None:
    model = small(name, likelihood=likelihood, variance=0.1)
    x = pictures(2)
    noise = model.noise.stream().normal((1, CLASSES, 4, 3), like=x)[0]
    with torch.no_grad():
        weights = [
            log_weight(model, x[i : i + 1], k, noise[k, s])
            for i in range(2)
            for k in range(CLASSES)
            for s in range(4)
        ]
    expected = torch.stack(weights).unflatten(0, (2, CLASSES, 4)).exp().mean(2).log()
    torch.testing.assert_close(model.class_scores(x), expected)


@each_graph
def test_the_loss_is_the_negative_elbo(name: str) -> None:
    model = small(name)
    x, y = pictures(4), torch.tensor([0, 2, 1, 2])
    with isolated_rng(5):
        loss = model.training_loss("elbo", x, y)
    with isolated_rng(5):
        noise = torch.randn(4, 1, 1, 3).double()
    expected = []
    for i in range(4):
        weight = log_weight(model, x[i : i + 1], int(y[i]), noise[i].flatten())
        one_hot = nn.functional.one_hot(y[i], CLASSES).double().reshape(1, 1, 1, CLASSES)
        values = {"x": x[i : i + 1], "y": one_hot}
        mean, log_variance = model.encoder(values).flatten().chunk(2)
        moments = torch.zeros(6).double() if model.prior is None else model.prior(values).flatten()
        prior_mean, prior_log_variance = moments.chunk(2)
        q = Normal(mean, (log_variance / 2).exp())
        p = Normal(prior_mean, (prior_log_variance / 2).exp())
        z = mean + q.scale * noise[i].flatten()
        sampled_divergence = (q.log_prob(z) - p.log_prob(z)).sum()
        expected.append(weight + sampled_divergence - kl_divergence(q, p).sum())
    torch.testing.assert_close(loss, -torch.stack(expected).mean())
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


# Gradients.


@each_graph
def test_the_gradient_is_the_true_one(name: str) -> None:
    model = small(name)
    assert torch.autograd.gradcheck(model.class_scores, pictures(2).requires_grad_(), eps=1e-7)


def test_several_backward_passes_over_one_forward() -> None:
    for model in (small(), small().with_inference(max_bytes=1)):
        x = pictures(2).requires_grad_()
        scores = model.class_scores(x)
        jacobian = [torch.autograd.grad(scores[:, k].sum(), x, retain_graph=True)[0] for k in range(CLASSES)]
        again = torch.autograd.grad(scores.sum(), x)[0]
        torch.testing.assert_close(torch.stack(jacobian).sum(0), again)


def test_the_estimated_gradient_points_where_the_exact_one_does() -> None:
    model = small()
    x = pictures(3).requires_grad_()
    exact = torch.autograd.grad(model(x)[:, 0].sum(), x)[0].flatten(1)
    for gradient in ("estimated", Estimated(pairs=200, sigma=1e-3)):
        variant = model.with_gradient(gradient)
        assert torch.equal(variant(x), model(x))
        estimate = torch.autograd.grad(variant(x)[:, 0].sum(), x)[0].flatten(1)
        assert (nn.functional.cosine_similarity(exact, estimate) > 0.7).all()
    assert variant.with_gradient("exact").gradient is None


# Memory.


@each_graph
@pytest.mark.parametrize("max_bytes", [1, 60_000, 200_000])
def test_chunks_change_nothing(name: str, max_bytes: int) -> None:
    model = small(name)
    x, y = pictures(5).requires_grad_(), pictures(5).requires_grad_()
    whole, chunked = model.class_scores(x), model.with_inference(max_bytes=max_bytes).class_scores(y)
    torch.testing.assert_close(chunked, whole)
    whole.square().sum().backward()
    chunked.square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad)


@each_graph
def test_an_attack_goes_through_chunks(name: str) -> None:
    # The view holds the weights while it answers, and lets them go before the backward pass.
    model = small(name)
    gradients = []
    for variant in (model, model.with_inference(max_bytes=60_000)):
        x = pictures(5).requires_grad_()
        attack_view(variant)(x).square().sum().backward()
        gradients.append(x.grad)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("fraction", [0.5, 3, 40])
def test_no_chunk_is_above_the_bound(fraction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), pictures(5)
    triple = ARCH.activations * 8
    rows = []
    plain = DeepBayes.log_weights

    def watched(self: DeepBayes, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        rows.append(noise.shape[0] * noise.shape[1] * noise.shape[2])
        return plain(self, x, y, noise)

    monkeypatch.setattr(DeepBayes, "log_weights", watched)
    with torch.no_grad():
        model.with_inference(max_bytes=int(fraction * triple)).class_scores(x)
    assert sum(rows) == 5 * CLASSES * 4
    assert max(rows) <= max(fraction, CLASSES)


# Randomness.


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    model, x = small(), pictures(5)
    torch.testing.assert_close(model(x)[2:4], model(x[2:4]))
    assert torch.equal(model(x), model(x))


def test_fresh_noise_differs_between_calls_and_rows() -> None:
    model = small().with_randomness("fresh", seed=1)
    x = pictures(1).expand(2, -1, -1, -1)
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(small().with_randomness("fresh", seed=1)(x), first)


def test_the_seed_of_the_budget_chooses_the_fixed_noise() -> None:
    model, x = small(), pictures(2)
    assert not torch.equal(model.with_inference(seed=1)(x), model(x))
    assert not torch.equal(model.with_randomness("fixed", seed=1)(x), model(x))
    assert torch.equal(model.with_inference(seed=0)(x), model(x))


def test_the_posterior_mean_is_a_model_without_randomness() -> None:
    model, x = small(), pictures(3)
    certain = model.with_inference(posterior_mean=True)
    assert model.randomized
    assert not certain.randomized
    assert torch.equal(certain.with_randomness("fresh")(x), certain(x))
    with pytest.raises(ValueError, match="draws no noise"):
        attack_view(certain, eot=2)
    assert certain.with_inference(posterior_mean=False).randomized
    assert not DeepBayes(DeepBayesConfig(inference=SamplingBudget(posterior_mean=True))).randomized


def test_no_underflow_where_an_image_is_impossible() -> None:
    model = small(variance=1e-6, dtype=torch.float32)
    x = pictures(3, dtype=torch.float32).requires_grad_()
    scores = model.class_scores(x)
    assert (scores < -1e5).all()
    assert scores.isfinite().all()
    scores.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_attacks_average_fresh_draws_and_verdicts_use_others() -> None:
    model, x = small(dtype=torch.float32), pictures(6, dtype=torch.float32)
    view = attack_view(model, eot=5, seed=3)
    fresh = model.with_randomness("fresh", seed=3)
    draws = fresh.class_scores(x.repeat(5, 1, 1, 1)).unflatten(0, (5, 6))
    torch.testing.assert_close(view(x), draws.logsumexp(0) - math.log(5))
    y = model.predict(x).labels
    verdict = verify(model, x, y, (x + 0.3).clamp(0, 1), norm="linf", epsilon=0.3)
    judge = fresh_variant(model, seed=_NOISE_SEED, codebook_seed=_CODEBOOK_SEED)
    assert torch.equal(verdict.prediction, judge.predict((x + 0.3).clamp(0, 1)).labels)
    assert not verdict.zero_gradient.any()


# Samples and latents.


@pytest.mark.parametrize("name", ["GF", "GFY"])
def test_samples_are_decoded_draws_of_the_prior(name: str) -> None:
    model = small(name)
    drawn = model.sample(5, generator=torch.Generator().manual_seed(2))
    noise = torch.randn((1, CLASSES, 5, 3), generator=torch.Generator().manual_seed(2)).double()
    one_hot = torch.eye(CLASSES, dtype=torch.float64)[None, :, None]
    if model.prior is not None:
        mean, log_variance = model.prior({"y": one_hot}).chunk(2, -1)
        noise = mean + (0.5 * log_variance).exp() * noise
    assert drawn.shape == (CLASSES, 5, 1, 6, 5)
    torch.testing.assert_close(drawn, model.decode(noise)[0])


def test_a_graph_whose_latent_comes_of_the_image_draws_nothing() -> None:
    with pytest.raises(ValueError, match="a graph whose latent has a prior"):
        small("DFX").sample(1, generator=torch.Generator())


def test_an_encoding_is_the_mean_of_q_of_the_image_and_its_class() -> None:
    model, x = small(), pictures(3)
    y = torch.tensor([2, 0, 1])
    one_hot = nn.functional.one_hot(y, CLASSES).double()[:, None, None]
    expected = model.encoder({"x": x, "y": one_hot})[:, 0, 0, :3]
    torch.testing.assert_close(model.encode(x, y), expected)
    single = model.float()
    torch.testing.assert_close(single.encode(x, y), single.encode(x.float(), y))


# Reconstructions.


def test_reconstructions_are_decoded_means_of_every_class() -> None:
    model, x = small(), pictures(2)
    images = model.reconstruct(x)
    assert images.shape == (2, CLASSES, 1, 6, 5)
    for k in range(CLASSES):
        y = nn.functional.one_hot(torch.tensor(k), CLASSES).double().reshape(1, 1, 1, CLASSES)
        mean = model.encoder({"x": x, "y": y})[..., :3]
        assert model.decoder is not None
        torch.testing.assert_close(images[:, k], model.decoder({"z": mean, "y": y}).sigmoid()[:, 0, 0])


@pytest.mark.parametrize("name", ["DFX", "DBX"])
def test_what_generates_no_image_reconstructs_none(name: str) -> None:
    with pytest.raises(ValueError, match="a graph that generates `x`"):
        small(name).reconstruct(pictures(1))


# Bad input.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DeepBayesConfig(likelihood="poisson"), "`likelihood` to be one of 'gaussian', 'bernoulli'"),
        (lambda: DeepBayesConfig(variance=0.0), "`variance` to be above 0"),
        (lambda: DeepBayesConfig(num_classes=1), "`num_classes` to be at least 2"),
        (lambda: SamplingBudget(samples=0), "`samples` to be at least 1, but got 0"),
        (lambda: small().with_inference(max_bytes=0), "`max_bytes` to be at least 1"),
        (
            lambda: small().with_inference(steps=3),
            r"fields of SamplingBudget, \['max_bytes', .*got \['steps'\]",
        ),
        (
            lambda: small().with_gradient("envelope"),
            r"`gradient` out of \['exact', .*\] for DeepBayes, but got 'env",
        ),
        (lambda: small()(2 * pictures(1)), r"`x` in \[0, 1\]"),
        (lambda: small().reconstruct(2 * pictures(1)), r"`x` in \[0, 1\]"),
    ],
    ids=["likelihood", "variance", "classes", "samples", "memory", "budget", "gradient", "range", "picture"],
)
def test_bad_input(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# A density.


def two_moons(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two bent classes in the unit square."""
    y = torch.randint(2, (count,), generator=generator)
    angle = math.pi * torch.rand(count, generator=generator)
    side = 1 - 2 * y
    points = torch.stack(
        [0.5 + 0.25 * side * angle.cos() - 0.08 * side, 0.5 + side * (0.3 * angle.sin() - 0.1)], 1
    )
    noise = 0.03 * torch.randn(points.shape, generator=generator)
    return (points + noise).clamp(0, 1).reshape(-1, 1, 1, 2), y


@pytest.mark.parametrize("name", ["GF", "GFZ", "GBY"])
def test_a_trained_density_integrates_to_one(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    arch = ConditionalArchitecture(input_shape=(1, 1, 2), latent_dim=2, channels=(), hidden=(32, 32))
    with isolated_rng(0):
        model = DeepBayes(
            DeepBayesConfig(num_classes=2, architecture=arch, graph=GRAPHS[name], variance=0.005)
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(600):
            loss = model.training_loss("elbo", *two_moons(128, generator))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x, y = two_moons(500, generator)
    prediction = model.predict(x)
    assert (prediction.labels == y).float().mean() > 0.9
    assert prediction.scores.logsumexp(1).mean() > 0.5  # nats; a uniform density on the square has 0
    side = torch.linspace(-0.6, 1.6, 89)
    grid = torch.cartesian_prod(side, side).reshape(-1, 1, 1, 2)
    noise = torch.randn((len(grid), 2, 24, 2), generator=generator)
    with torch.no_grad():
        weights = model.log_weights(grid, torch.eye(2)[None, :, None], noise)
    density = (weights.logsumexp(2) - math.log(24)).logsumexp(1).exp()
    assert float(density.sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=0.02)


def test_graphs_beyond_the_named_ones_work() -> None:
    config = DeepBayesConfig(num_classes=CLASSES, architecture=ARCH, graph=Graph(x=("y",), z=("x", "y")))
    scores = DeepBayes(config).class_scores(pictures(2, dtype=torch.float32))
    assert scores.shape == (2, CLASSES)
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", [name for name, graph in GRAPHS.items() if "z" in graph.y])
def test_label_scores_are_log_p_of_each_class_given_its_own_latent(name: str) -> None:
    model, x = small(name), pictures(3)
    assert model.labels_latents
    at_mean = model.with_inference(posterior_mean=True)
    for k in range(CLASSES):
        z = model.encode(x, torch.full((3,), k))[:, None, None]
        y = torch.eye(CLASSES, dtype=x.dtype)[k].expand(3, 1, 1, CLASSES)
        expected = model.label({"x": x, "z": z, "y": y}).log_softmax(-1)[:, 0, 0, k]  # type: ignore[misc]
        torch.testing.assert_close(at_mean.label_scores(x)[:, k], expected)
    chunked = model.with_inference(max_bytes=1)
    torch.testing.assert_close(chunked.label_scores(x), model.label_scores(x))
    assert (model.label_scores(x) < 0).all()


@pytest.mark.parametrize("name", [name for name, graph in GRAPHS.items() if "z" not in graph.y])
def test_a_graph_without_p_of_y_given_z_has_no_label_scores(name: str) -> None:
    assert not small(name).labels_latents
    with pytest.raises(ValueError, match=r"a graph with p\(y \| z\)"):
        small(name).label_scores(pictures(1))
