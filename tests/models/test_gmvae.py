"""GMVAE against equations 3, 7 and 8 by hand, and against distributions."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from genrobust.inference import Posterior
from genrobust.models import GMVAE, GMVAEConfig
from genrobust.nets.pooling import PoolingArchitecture, UpsamplingDecoder
from genrobust.randomness import FixedNoise, isolated_rng

Make = Callable[..., Any]


def drawn_latents(model: Any, x: Tensor, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean, the deviation and the draw that `training_loss` uses after `isolated_rng(seed)`."""
    outputs = model.encoder(x)
    variance = model.config.encoder_variance
    mean, log_variance = (
        (outputs, torch.full_like(outputs, math.log(variance))) if variance else outputs.chunk(2, 1)
    )
    with isolated_rng(seed):
        noise = torch.randn_like(mean)
    deviation = (0.5 * log_variance).exp()
    return mean, deviation, mean + deviation * noise


@torch.no_grad()
def loss_of(model: Any, x: Tensor, y: Tensor, *, seed: int = 3) -> Tensor:
    with isolated_rng(seed):
        loss: Tensor = model.training_loss("elbo", x, y)
    return loss


# Training.


def test_equation_7_by_hand(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64)
    x, y = images(model, 6), torch.tensor([0, 1, 2, 3, 3, 0])
    mean, _, z = drawn_latents(model, x, seed=3)
    expected = torch.zeros((), dtype=torch.float64)
    for row, label in enumerate(y.tolist()):
        mu = torch.zeros(5, dtype=torch.float64)
        mu[label] = 1
        image = model.decoder(z[row].reshape(1, 1, 5))[0, 0]
        expected += (((x[row] - image) ** 2).sum() + 4.0 * ((mean[row] - mu) ** 2).sum()) / 6
    torch.testing.assert_close(loss_of(model, x, y), expected)


def test_equation_7_is_the_negative_bound_up_to_a_constant(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64).with_inference(posterior_mean=False, samples=4000)
    x, y = images(model, 3), torch.tensor([0, 1, 2])
    many = [part.expand(4000, -1, -1, -1) for part in x.split(1)]
    losses = [loss_of(model, part, label.expand(4000)) for part, label in zip(many, y, strict=True)]
    offsets = torch.stack(losses) + model.class_scores(x)[torch.arange(3), y]
    torch.testing.assert_close(offsets, offsets[:1].expand(3), rtol=0, atol=0.05)


@pytest.mark.parametrize("encoder_variance", [0.05, None])
def test_equation_3_of_images_without_a_label(
    encoder_variance: float | None, make_model: Make, images: Make
) -> None:
    model = make_model("gmvae", dtype=torch.float64, encoder_variance=encoder_variance)
    x = images(model, 6)
    mean, deviation, z = drawn_latents(model, x, seed=3)
    mixture = MixtureSameFamily(
        Categorical(torch.ones(4).double()),
        Independent(Normal(model.means, math.sqrt(1 / 8)), 1),
    )
    normalizer = 5 * 0.5 * math.log(2 * math.pi / 8)
    error = (x - model.decoder(z[:, None])[:, 0]).square().sum((1, 2, 3))
    expected = error - mixture.log_prob(z) - normalizer
    if encoder_variance is None:
        entropy = Independent(Normal(mean, deviation), 1).entropy()
        expected = expected - entropy + 5 * 0.5 * math.log(2 * math.pi * math.e)
    torch.testing.assert_close(loss_of(model, x, torch.full((6,), -1)), expected.mean())


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_a_batch_mixes_both_losses(shift: int, make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64)
    x, y = images(model, 4), torch.tensor([2, -1, 0, -1])
    with torch.no_grad():  # of the labelled images none, one or both are labelled rightly
        model.means.copy_(torch.eye(4, 5))
        z = model.encode(x)
        model.means[2], model.means[0] = z[0] + (shift < 1) * 9, z[2] + (shift < 2) * 9
    known = loss_of(model, x, torch.tensor([2, 1, 0, 3]))
    _, _, z = drawn_latents(model, x, seed=3)
    mean = model.encoder(x)
    prior = math.log(4) - (-4.0 * (z[:, None] - model.means).square().sum(2)).logsumexp(1)
    penalty = 4.0 * (mean - model.means[[2, 1, 0, 3]]).square().sum(1)
    nearest = torch.cdist(mean, model.means).argmin(1)
    right = float((nearest == torch.tensor([2, 1, 0, 3]))[[0, 2]].double().mean())
    trust = max(0.0, (4 * right - 1) / 3)
    expected = known + (trust * prior - penalty)[[1, 3]].sum() / 4
    torch.testing.assert_close(loss_of(model, x, y), expected)


def test_the_ablation_minimises_the_divergence(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64, encoder_variance=None)
    x, y = images(model, 6), torch.tensor([0, 1, 2, 3, 3, 0])
    mean, deviation, z = drawn_latents(model, x, seed=3)
    prior = Normal(model.means[y], math.sqrt(1 / 8))
    divergence = kl_divergence(Normal(mean, deviation), prior).sum(1)
    error = (x - model.decoder(z[:, None])[:, 0]).square().sum((1, 2, 3))
    torch.testing.assert_close(loss_of(model, x, y), (error + divergence).mean())


@pytest.mark.parametrize("encoder_variance", [0.05, None])
def test_every_parameter_gets_a_gradient(
    encoder_variance: float | None, make_model: Make, images: Make
) -> None:
    model = make_model("gmvae", encoder_variance=encoder_variance)
    model.training_loss("elbo", images(model, 8), torch.tensor([0, 1, 2, 3, -1, -1, -1, 0])).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert {id(p) for p in model.phases["elbo"]} == {id(p) for p in model.parameters()}


def test_an_unknown_phase(make_model: Make, images: Make) -> None:
    model = make_model("gmvae")
    with pytest.raises(ValueError, match="`phase` to be 'elbo', but got 'loss'"):
        model.training_loss("loss", images(model, 2), torch.tensor([0, 1]))


# Scores.


@pytest.mark.parametrize("encoder_variance", [0.05, None])
def test_scores_are_the_bound_of_equation_6(
    encoder_variance: float | None, make_model: Make, images: Make
) -> None:
    model = make_model("gmvae", dtype=torch.float64, encoder_variance=encoder_variance)
    x = images(model, 5)
    mean, deviation, _ = drawn_latents(model, x, seed=0)
    posterior = Normal(mean[:, None], deviation[:, None])
    divergence = kl_divergence(posterior, Normal(model.means, math.sqrt(1 / 8))).sum(2)

    def likelihood(z: Tensor) -> Tensor:
        image = model.decoder(z[:, None])[:, 0]
        return Normal(image, math.sqrt(0.5)).log_prob(x).sum((1, 2, 3))[:, None]

    torch.testing.assert_close(model.class_scores(x), likelihood(mean) - divergence - math.log(4))
    drawn = model.with_inference(posterior_mean=False, samples=3)
    noise = FixedNoise(0).stream(part=0).normal((5, 3, 5), like=x)
    expected = torch.stack([likelihood(mean + deviation * noise[:, s]) for s in range(3)]).mean(0)
    torch.testing.assert_close(drawn.class_scores(x), expected - divergence - math.log(4))
    assert (model.randomized, drawn.randomized) == (False, True)
    assert torch.equal(drawn(x).argmax(1), model(x).argmax(1))
    other = drawn.with_randomness("fixed", seed=1).class_scores(x)
    assert not torch.equal(other, drawn.class_scores(x))


def test_the_label_is_that_of_the_nearest_mean(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64)
    x = images(model, 40)
    with torch.no_grad():
        model.encoder.layers[-1].bias.sub_(model.encode(x).mean(0))
    labels = model.predict(x).labels
    assert torch.equal(labels, torch.cdist(model.encode(x), model.means).argmin(1))
    assert len(labels.unique()) > 1
    assert torch.equal(
        model.means, torch.tensor([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])
    )


def test_chunks_give_the_same_scores(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64).with_inference(posterior_mean=False, samples=2)
    x = images(model, 7)
    torch.testing.assert_close(model.with_inference(max_bytes=1).class_scores(x), model.class_scores(x))


def test_the_gradient_is_that_of_the_scores(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64).with_inference(posterior_mean=False, samples=2)
    assert torch.autograd.gradcheck(model.class_scores, images(model, 2).requires_grad_())
    assert torch.autograd.gradcheck(lambda x: model.encode(x), images(model, 2).requires_grad_())


def test_gradient_variants(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64)
    x = images(model, 2).requires_grad_()
    estimated = model.with_gradient("estimated")
    torch.testing.assert_close(estimated.class_scores(x), model.class_scores(x))
    estimated.class_scores(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert estimated.with_gradient("exact").gradient is None
    with pytest.raises(ValueError, match=r"`gradient` out of \['exact', .*\] for GMVAE, but got 'envelope'"):
        model.with_gradient("envelope")


def test_an_attack_on_the_encoder_sees_the_models_cross_entropy(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64)
    model.temperature.fill_(0.5)
    encoder, x, y = model.encoder_view(), images(model, 4), torch.tensor([0, 1, 2, 3])
    slopes = []
    for attacked in (model, encoder):
        leaf = x.clone().requires_grad_()
        torch.nn.functional.cross_entropy(attacked(leaf), y).backward()
        slopes.append(leaf.grad)
    torch.testing.assert_close(slopes[0], slopes[1])
    torch.testing.assert_close(encoder(x).softmax(1), model.predict(x).probabilities)
    assert encoder(x[:0]).shape == (0, 4)
    squares = torch.cdist(model.encode(x), model.means).square()
    torch.testing.assert_close(encoder(x), -4.0 * squares / 0.5)


# Pictures, and the objective of equation 9.


def test_reconstructions_are_decoded_encodings(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64)
    x = images(model, 3)
    drawn = model.reconstruct(x)
    assert drawn.shape == (3, 4, 1, 8, 8)
    for k in range(4):
        torch.testing.assert_close(
            drawn[:, k], model.decoder(model.encode(x, torch.full((3,), k))[:, None])[:, 0]
        )
    assert model.reconstruct(x[:0]).shape == (0, 4, 1, 8, 8)


def test_samples_are_drawn_around_the_means(make_model: Make) -> None:
    model = make_model("gmvae", alpha=1e12)
    drawn = model.sample(3, generator=torch.Generator().manual_seed(0))
    expected = model.decoder(model.means[:, None]).expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
    wide = make_model("gmvae", alpha=4.0)
    first, again, other = (wide.sample(2, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_objective_is_the_squared_error_alone(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64)
    x = images(model, 3)
    z = torch.randn((3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (x[:, None] - model.decoder(z)).square().sum((2, 3, 4))
    torch.testing.assert_close(model.objective.at(x, Posterior(z), FixedNoise(0).stream()), expected)
    start = model.objective.posterior(torch.zeros(1, 4, 5).double())
    torch.testing.assert_close(start.mean[0], model.means)


# Configuration.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "`num_classes` to be at least 2, but got 1"),
        ({"num_classes": 11}, "a latent for each of the classes of `num_classes`, but got 11 and 10 latents"),
        ({"alpha": 0.0}, r"`alpha` to be above 0, but got 0\.0"),
        ({"encoder_variance": 0.0}, r"`encoder_variance` to be above 0, but got 0\.0"),
        ({"temperature": -1.0}, r"`temperature` to be above 0, but got -1\.0"),
    ],
)
def test_impossible_configs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GMVAEConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_shape": (1, 30, 28)}, r"`input_shape` to be halved 2 times, .* but got \(1, 30, 28\)"),
        ({"channels": ()}, "halved 0 times, at least once"),
        ({"latent_dim": 0}, "`latent_dim` to be at least 1, but got 0"),
    ],
)
def test_impossible_architectures(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolingArchitecture(**settings)


def test_the_published_hyperparameters() -> None:
    config = GMVAEConfig()
    assert config.encoder_variance == 1 / 3000
    assert config.architecture.latent_dim == 10
    model = GMVAE(GMVAEConfig(temperature=2.0))
    assert not model.calibrates_temperature
    assert float(model.temperature) == 2
    decoder = UpsamplingDecoder(PoolingArchitecture(input_shape=(3, 32, 32), latent_dim=20))
    assert decoder(torch.zeros(2, 3, 20)).shape == (2, 3, 3, 32, 32)
