"""VaDE against distributions, closed forms and quadrature."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from genrobust.capabilities import Reconstructs
from genrobust.gradients import Envelope
from genrobust.inference import ClassPrior, Codebook, InferenceBudget, Posterior, SquaredError, observation
from genrobust.inference.observation import LOG_VARIANCES, HeteroscedasticObservation
from genrobust.models import VaDEClassifier, VaDEConfig
from genrobust.nets import Architecture, architecture
from genrobust.nets.architectures import Conv
from genrobust.nets.banks import DecoderBank, EncoderBank
from genrobust.randomness import isolated_rng
from genrobust.selective import calibrate_detector

Make = Callable[..., Any]

LIKELIHOODS: dict[str, dict[str, Any]] = {
    "gaussian": {"variance": 0.1},
    "heteroscedastic": {"variance": None},
    "bernoulli": {"likelihood": "bernoulli", "variance": None},
}
each_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def likelihood_of(settings: dict[str, Any]) -> Any:
    return observation(settings.get("likelihood", "gaussian"), variance=settings["variance"])


def random_outputs(settings: dict[str, Any], rows: int = 4, classes: int = 3) -> Tensor:
    maps = 2 * likelihood_of(settings).maps_per_channel
    uniform = torch.rand((rows, classes, maps, 3, 3), generator=seeded(1), dtype=torch.float64)
    return 0.05 + 0.9 * uniform


# Equations 27 to 29.


def test_equation_28_is_the_divergence_of_normals() -> None:
    prior = ClassPrior(3, 2, separation=3.0).double()
    with torch.no_grad():
        prior.log_variance.normal_(0, 1, generator=seeded(0))
        prior.log_variance_of_points.copy_(torch.tensor([-1.0, 0.5]))
    mean, log_variance = torch.randn((2, 5, 3, 2), generator=seeded(1), dtype=torch.float64)
    target = Normal(prior.mean, (0.5 * prior.log_variance).exp())
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), target).sum(-1)
    torch.testing.assert_close(prior(Posterior(mean, log_variance), mean), expected)
    points = Normal(mean, (0.5 * prior.log_variance_of_points).exp().expand_as(mean))
    torch.testing.assert_close(prior(Posterior(mean), mean), kl_divergence(points, target).sum(-1))
    chosen = prior.select(torch.tensor([2, 2, 0]))
    other = Normal(prior.mean[[2, 2, 0]], (0.5 * prior.log_variance[[2, 2, 0]]).exp())
    torch.testing.assert_close(chosen(Posterior(mean), mean), kl_divergence(points, other).sum(-1))


def test_equation_29_of_two_pixels() -> None:
    x = torch.tensor([0.25, 1.0]).reshape(1, 1, 1, 1, 2).double()
    mean, variance = torch.tensor([0.5, 0.8]).double(), torch.tensor([0.01, 0.25]).double()
    terms = [0.25**2 / 0.01 + math.log(0.01), 0.2**2 / 0.25 + math.log(0.25)]
    expected = 0.5 * sum(terms) + math.log(2 * math.pi)
    low, high = LOG_VARIANCES
    scale = (variance.log() - low) / (high - low)
    outputs = torch.stack([mean, scale]).reshape(1, 1, 2, 1, 2)
    assert HeteroscedasticObservation().cost(x, outputs).item() == pytest.approx(expected)
    constant = observation("gaussian", variance=0.25).cost(x, outputs[:, :, :1])
    assert constant.item() == pytest.approx(0.5 * (0.25**2 + 0.2**2) / 0.25 + math.log(2 * math.pi * 0.25))


def test_equation_27_of_two_pixels() -> None:
    x = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 1, 2).double()
    mean = torch.tensor([0.2, 0.7]).double().reshape(1, 1, 1, 1, 2)
    cost = observation("bernoulli", variance=None).cost(x, mean)
    assert cost.item() == pytest.approx(-math.log(0.8) - math.log(0.7))


@each_likelihood
def test_the_training_loss_is_the_negative_elbo(
    likelihood: dict[str, Any], make_model: Make, images: Make
) -> None:
    model = make_model("vade", dtype=torch.float64, **likelihood)
    x, y = images(model, 6), torch.tensor([0, 1, 2, 3, 3, 0])
    with isolated_rng(3):
        loss = model.training_loss("elbo", x, y)
    with isolated_rng(3):
        mean, log_variance = (part[:, 0] for part in model.encoders(x[:, None]))
        noise = torch.randn_like(mean[:, None])[:, 0]
    q = Normal(mean, (0.5 * log_variance).exp())
    z = mean + q.stddev * noise
    p = Normal(model.prior.mean[y], (0.5 * model.prior.log_variance[y]).exp())
    outputs = model.decoders(z[:, None])[:, 0]
    density: torch.distributions.Distribution
    if "likelihood" in likelihood:
        density = Bernoulli(outputs, validate_args=False)
    elif likelihood["variance"]:
        density = Normal(outputs, math.sqrt(likelihood["variance"]))
    else:
        low, high = LOG_VARIANCES
        density = Normal(outputs[:, :1], (0.5 * (low + (high - low) * outputs[:, 1:])).exp())
    expected = kl_divergence(q, p).sum(1) - density.log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(loss, expected.mean())


# Likelihoods, as the engine needs them.


@pytest.mark.parametrize("settings", [*LIKELIHOODS.values(), None], ids=[*LIKELIHOODS, "squared error"])
def test_a_cost_is_a_product_of_statistics_and_features(settings: dict[str, Any] | None) -> None:
    outputs = random_outputs(settings or LIKELIHOODS["gaussian"])
    likelihood = likelihood_of(settings) if settings else SquaredError()
    x = torch.rand((4, 2, 3, 3), generator=seeded(2), dtype=torch.float64)
    features, offset = likelihood.features(outputs)
    product = torch.einsum("bn,bkn->bk", likelihood.statistics(x.flatten(1)), features)
    constant = likelihood.constant(x.flatten(1))[:, None]
    torch.testing.assert_close(constant + offset - 2 * product, likelihood.cost(x[:, None], outputs))
    assert likelihood.mean(outputs).shape == (4, 3, 2, 3, 3)


@each_likelihood
def test_the_information_is_the_variance_of_the_score(likelihood: dict[str, Any]) -> None:
    of = likelihood_of(likelihood)
    outputs = random_outputs(likelihood, rows=1, classes=1)
    draws = outputs.expand(20_000, -1, -1, -1, -1).clone().requires_grad_()
    mean = of.mean(outputs)
    if "likelihood" in likelihood:
        x = torch.bernoulli(mean.expand(20_000, -1, -1, -1, -1), generator=seeded(0))
    else:
        low, high = LOG_VARIANCES
        variance = likelihood["variance"] or (low + (high - low) * outputs[:, :, 2:]).exp()
        noise = torch.randn((20_000, *mean.shape[1:]), generator=seeded(0), dtype=torch.float64)
        x = mean + noise * torch.as_tensor(variance).sqrt()
    [slope] = torch.autograd.grad(of.cost(x, draws).sum(), draws)
    torch.testing.assert_close(slope.square().mean(0), of.information(outputs)[0], rtol=0.08, atol=0)


@each_likelihood
@pytest.mark.parametrize("max_bytes", [2**30, 300_000], ids=["decoded fit", "components alone fit"])
def test_the_codebook_finds_the_best_candidate(
    max_bytes: int, likelihood: dict[str, Any], make_model: Make, images: Make
) -> None:
    model = make_model("vade", dtype=torch.float64, **likelihood)
    x, objective = images(model, 5), model.objective
    codebook = Codebook(objective, InferenceBudget(candidates=60, max_bytes=max_bytes), like=x)
    assert (codebook.decoded is None) == (max_bytes == 300_000)
    [(found, loss)] = codebook.search(x)
    posteriors = [objective.posterior(draw.expand(5, 4, -1)) for draw in codebook.means]
    every = torch.stack([objective.at(x, posterior, model.noise.stream()) for posterior in posteriors])
    torch.testing.assert_close(objective.at(x, found, model.noise.stream()), loss)
    if likelihood_of(likelihood).maps_per_channel == 1:
        torch.testing.assert_close(loss, every.amin(0))
    assert (loss <= every.quantile(0.5, dim=0)).all()  # else more values than the search has components


@each_likelihood
def test_candidates_are_drawn_where_the_classes_are(likelihood: dict[str, Any], make_model: Make) -> None:
    model = make_model("vade", dtype=torch.float64, variational=True, **likelihood)
    with torch.no_grad():
        model.prior.log_variance.normal_(0, 1, generator=seeded(0))
    draws = torch.randn((2000, 4, 3), generator=seeded(1), dtype=torch.float64)
    posterior, literal = (
        model.objective.posterior(draws, search=search) for search in ("points", "distributions")
    )
    scale = (0.5 * model.prior.log_variance).exp()
    torch.testing.assert_close((posterior.mean - model.prior.mean) / scale, draws)
    assert torch.equal(literal.mean, posterior.mean)
    assert torch.equal(posterior.log_variance, model.objective.spread.expand(2000, 4, -1))
    torch.testing.assert_close(literal.log_variance, model.prior.log_variance.expand(2000, -1, -1))


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_both_refinements_reach_the_optimum(likelihood: str, make_model: Make, images: Make) -> None:
    model = make_model("vade", dtype=torch.float64, **LIKELIHOODS[likelihood])
    x = images(model, 4)
    start = model.with_inference(steps=0).class_scores(x)
    adam = model.with_inference(method="adam", steps=800, learning_rate=0.02).class_scores(x)
    bfgs = model.with_inference(steps=200, tolerance=1e-9, trailing_tolerance=0).class_scores(x)
    assert (bfgs >= start).all()
    assert (bfgs - start).mean() > 0.05
    torch.testing.assert_close(bfgs, adam, rtol=0, atol=0.02)


# Gradient.


@each_likelihood
def test_the_envelope_gradient_is_that_of_the_scores(
    likelihood: dict[str, Any], make_model: Make, images: Make, architectures: dict[str, Architecture]
) -> None:
    smooth = architectures["abs"]
    model = make_model("vade", dtype=torch.float64, architecture=smooth, **likelihood)
    model = model.with_inference(candidates=0, steps=300, tolerance=1e-12, trailing_tolerance=0)
    x, step = images(model, 1), 1e-4
    leaf = x.clone().requires_grad_()
    scores = model.with_gradient("envelope").class_scores(leaf)
    gradients = torch.stack([torch.autograd.grad(s, leaf, retain_graph=True)[0][0] for s in scores[0]])
    directions = torch.randn((6, *x.shape[1:]), generator=seeded(0), dtype=x.dtype)
    with torch.no_grad():
        ahead, behind = (Envelope().scores(model, x + s * directions) for s in (step, -step))
    differences = (ahead - behind) / (2 * step)
    expected = torch.einsum("kchw,dchw->dk", gradients, directions)
    assert (expected - differences).norm() < 0.01 * differences.norm()


@pytest.mark.parametrize("gradient", ["auto", "envelope", "proposal", "unrolled", "estimated"])
def test_surrogate_gradients_have_one_score(gradient: str, make_model: Make, images: Make) -> None:
    model = make_model("vade", dtype=torch.float64).with_inference(method="adam")
    x = images(model, 3).requires_grad_()
    scores = model.with_gradient(gradient).class_scores(x)
    torch.testing.assert_close(scores, model.class_scores(x))
    scores.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


# Bayes' rule, where it is known.


class Identity(nn.Module):
    """A decoder that puts the latent out as the image."""

    def __init__(self) -> None:
        super().__init__()
        self.decoders, self.activations, self.image_shape = 1, 2, (2, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        return z.unflatten(2, self.image_shape)

    def for_inference(self) -> "Identity":
        return self

    def select(self, _: Tensor) -> "Identity":
        return self


PLANE = Architecture(
    input_shape=(2, 1, 1),
    latent_dim=2,
    encoder=(Conv(16, 1), Conv(16, 1)),
    decoder=(Conv(16, 1), Conv(2, 1)),
    decoder_stem=16,
    encoder_activation="relu",
    dropout=0.0,
)
MEANS = torch.tensor([[0.2, 0.3], [0.7, 0.4], [0.5, 0.8]], dtype=torch.float64)


def mixture(variances: Tensor, **config: Any) -> tuple[VaDEClassifier, MultivariateNormal]:
    """Gives VaDE with an identity decoder, and p(x | y) in closed form."""
    config = {"num_classes": 3, "architecture": PLANE, "variance": 0.02, "alpha": 1.0, **config}
    with isolated_rng(0):
        model = VaDEClassifier(VaDEConfig(**config)).double()
    model.decoders = Identity()  # type: ignore[assignment]
    with torch.no_grad():
        model.prior.mean.copy_(MEANS)
        model.prior.log_variance.copy_(variances.log())
        model.prior.log_variance_of_points.fill_(math.log(0.01))
    return model, MultivariateNormal(MEANS, torch.diag_embed(variances + 0.02))


def test_an_identity_decoder_gives_the_bayes_classifier() -> None:
    model, exact = mixture(torch.tensor([[0.03, 0.01]], dtype=torch.float64).expand(3, 2))
    x = torch.rand((200, 2, 1, 1), generator=seeded(0), dtype=torch.float64)
    posterior = exact.log_prob(x.flatten(1)[:, None]).softmax(1)
    prediction = model.with_inference(tolerance=1e-12).predict(x)
    torch.testing.assert_close(prediction.probabilities, posterior, rtol=0, atol=1e-6)
    assert torch.equal(prediction.labels, posterior.argmax(1))


def test_a_variational_score_is_the_evidence_where_the_posterior_is_gaussian() -> None:
    variances = torch.tensor([[0.03, 0.01], [0.01, 0.04], [0.05, 0.05]], dtype=torch.float64)
    model, exact = mixture(variances, variational=True)
    model = model.with_inference(method="bfgs", expectation_draws=16).with_randomness("fresh", seed=1)
    points = 0.2 + 0.6 * torch.rand((3, 2, 1, 1), generator=seeded(0), dtype=torch.float64)
    scores = torch.stack([model.class_scores(p.expand(60, -1, -1, -1)).mean(0) for p in points])
    expected = exact.log_prob(points.flatten(1)[:, None]) - math.log(3)
    torch.testing.assert_close(scores, expected, rtol=0, atol=0.5)
    assert torch.equal(scores.argmax(1), expected.argmax(1))


def test_alpha_and_eta_are_those_of_equation_36() -> None:
    model, _ = mixture(torch.full((3, 2), 0.02, dtype=torch.float64), alpha=0.5, eta=0.1)
    x = torch.rand((9, 2, 1, 1), generator=seeded(0), dtype=torch.float64)
    scores = model.class_scores(x)
    bounds = scores + math.log(3)  # L_y holds no p(y)
    expected = (0.5 * bounds).exp() + 0.1
    torch.testing.assert_close(model.probabilities(scores), expected / expected.sum(1, keepdim=True))
    assert not model.calibrates_temperature


@pytest.fixture(scope="module")
def trained() -> tuple[VaDEClassifier, Tensor, Tensor]:
    """A model of two classes in the plane, after a second of training."""
    y = torch.arange(600) % 2
    centres = torch.tensor([[0.3, 0.35], [0.65, 0.6]])
    x = centres[y] + 0.08 * torch.randn((600, 2), generator=seeded(0))
    x = x.clamp(0, 1)[..., None, None]
    with isolated_rng(0):
        model = VaDEClassifier(VaDEConfig(num_classes=2, architecture=PLANE, variance=0.004, separation=3.0))
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        model.set_parts_training(True)
        for _ in range(250):
            optimizer.zero_grad()
            model.training_loss("elbo", x, y).backward()
            optimizer.step()
        model.set_parts_training(False)
    return model.double(), x.double(), y


@torch.no_grad()
def log_evidence(model: VaDEClassifier, x: Tensor, *, samples: int) -> Tensor:
    """log p(x, y) by importance sampling from a widened q(z | x), shape (B, K)."""
    mean, log_variance = model.encoders(x[:, None])
    proposal = Normal(mean[..., None, :], 1.5 * (0.5 * log_variance[..., None, :]).exp())
    noise = torch.randn((1, 1, samples, mean.shape[2]), generator=seeded(5), dtype=x.dtype)
    z = proposal.loc + proposal.scale * noise
    decoded = model.decoders(z.flatten(0, 2)[:, None]).reshape(len(x), samples, *x.shape[1:])
    likelihood = Normal(decoded, math.sqrt(model.config.variance or 1)).log_prob(x[:, None]).sum((2, 3, 4))
    prior = Normal(model.prior.mean[:, None], (0.5 * model.prior.log_variance[:, None]).exp())
    weights = likelihood[:, None] + prior.log_prob(z).sum(-1) - proposal.log_prob(z).sum(-1)
    return weights.logsumexp(2) - math.log(samples) - math.log(model.num_classes)


def test_the_density_of_a_trained_model_integrates_to_one(trained: tuple[Any, Tensor, Tensor]) -> None:
    model = trained[0]
    side = torch.linspace(-0.2, 1.2, 57, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)[..., None, None]
    density = log_evidence(model, grid, samples=300).exp().sum(1)
    assert float(density.sum()) * float(side[1] - side[0]) ** 2 == pytest.approx(1, abs=0.02)


def test_scores_bound_the_evidence_of_a_trained_model(trained: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = trained
    assert (model(x).argmax(1) == y).double().mean() > 0.97
    evidence = log_evidence(model, x, samples=300).gather(1, y[:, None])
    with isolated_rng(0), torch.no_grad():
        elbo = -model.training_loss("elbo", x, y) - math.log(2)
    gap = float(evidence.mean() - elbo)
    assert 0 < gap < 0.3
    score = model.class_scores(x).gather(1, y[:, None])
    assert abs(float((evidence - score).mean())) < 1.5


def test_training_tracks_the_encoders_variance(trained: tuple[Any, Tensor, Tensor]) -> None:
    model, x, _ = trained
    typical = model.encoders(x[:, None])[1].mean((0, 1))
    torch.testing.assert_close(model.prior.log_variance_of_points, typical, rtol=0, atol=0.3)
    before = model.prior.log_variance_of_points.clone()
    model.training_loss("elbo", x, torch.zeros(len(x), dtype=torch.long))
    assert torch.equal(model.prior.log_variance_of_points, before)  # in evaluation mode


def test_every_parameter_is_trained(make_model: Make, images: Make) -> None:
    model = make_model("vade")
    model.training_loss("elbo", images(model, 8), torch.arange(8) % 4).backward()
    assert list(model.phases) == ["elbo"]
    assert len(model.phases["elbo"]) == len(list(model.parameters()))
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match="`phase` to be 'elbo', but got 'discriminator'"):
        model.training_loss("discriminator", images(model, 2), torch.zeros(2, dtype=torch.long))


# Reconstructions.


@each_likelihood
def test_a_reconstruction_is_decoded_from_the_latent_that_was_scored(
    likelihood: dict[str, Any], make_model: Make, images: Make
) -> None:
    model = make_model("vade", dtype=torch.float64, **likelihood)
    assert isinstance(model, Reconstructs)
    x = images(model, 5)
    drawn = model.reconstruct(x)
    assert drawn.shape == (5, 4, 1, 8, 8)
    assert model.reconstruct(x[:0]).shape == (0, 4, 1, 8, 8)
    torch.testing.assert_close(model.reconstruct(x[3:]), drawn[3:])
    if likelihood["variance"]:
        leaf = x.clone().requires_grad_()
        [slope] = torch.autograd.grad(model.class_scores(leaf)[:, 1].sum(), leaf)
        torch.testing.assert_close(slope, (drawn[:, 1] - x) / likelihood["variance"])
    with torch.inference_mode():
        torch.testing.assert_close(model.reconstruct(x), drawn)


def test_detectors_use_reconstructions(make_model: Make, images: Make) -> None:
    model = make_model("vade")
    x = images(model, 40)
    detector = calibrate_detector("distance", model, x, torch.arange(40) % 4)
    distances = (x - model.reconstruct(x)[torch.arange(40), torch.arange(40) % 4]).flatten(1).norm(dim=1)
    torch.testing.assert_close(detector.scores(model, x, torch.arange(40) % 4), distances)


# Configuration.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"likelihood": "poisson"}, "`likelihood` to be one of 'gaussian', 'bernoulli', but got 'poisson'"),
        ({"variance": 0.0}, "`variance` to be above 0, but got 0.0"),
        ({"likelihood": "bernoulli", "variance": 1.0}, "no `variance` with likelihood 'bernoulli'"),
        ({"num_classes": 1}, "`num_classes` to be at least 2, but got 1"),
        ({"alpha": 0.0}, "`alpha` to be above 0, but got 0.0"),
        ({"eta": -1.0}, "`eta` to be at least 0, but got -1.0"),
        ({"separation": -1.0}, "`separation` to be at least 0, but got -1.0"),
    ],
)
def test_impossible_configs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VaDEConfig(**settings)


def test_the_published_networks() -> None:
    lenet, vgg = architecture("lenet-mnist"), architecture("vgg16-cifar")
    assert (lenet.latent_dim, vgg.latent_dim) == (20, 10)
    assert len(vgg.encoder) == len(vgg.decoder) == 13
    assert (vgg.feature_size, vgg.decoder_sizes[-1]) == (1, 32)
    assert [layer.channels for layer in vgg.encoder][:6] == [64, 64, 128, 128, 256, 256]
    small = replace(vgg, decoder=tuple(replace(c, channels=4) for c in vgg.decoder[:-1]) + vgg.decoder[-1:])
    bank = DecoderBank(small, decoders=1, maps_per_channel=2).eval()
    assert bank(torch.zeros(2, 5, 10)).shape == (2, 5, 6, 32, 32)
    torch.testing.assert_close(bank.for_inference()(torch.ones(2, 5, 10)), bank(torch.ones(2, 5, 10)))
    mean, _ = EncoderBank(lenet, encoders=1)(torch.rand(2, 1, 1, 28, 28))
    assert mean.shape == (2, 1, 20)
