"""What an attacker is given of a purifier, and what a purified classifier decides."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust import Purified, Purifier, verify
from genrobust.capabilities import Randomized
from genrobust.gradients import straight_through
from genrobust.models import MLP, MLPConfig
from genrobust.purifiers import MADVAE, ComDefend, ComDefendConfig, LatentProjection, MADVAEConfig
from genrobust.randomness import FixedNoise, NoiseSource, isolated_rng
from genrobust.verification import fresh_variant

Make = Callable[..., Any]
SHAPE = (1, 6, 6)


class Halving(Purifier):
    """Halves every pixel: its Jacobian is 1/2."""

    def __init__(self) -> None:
        super().__init__(input_shape=SHAPE)
        self.factor = nn.Parameter(torch.tensor(0.5))

    def purify(self, x: Tensor) -> Tensor:
        return self.factor * x


class Noisy(Randomized, Purifier):
    """Adds noise to half of the image."""

    randomized = True

    def __init__(self) -> None:
        super().__init__(input_shape=SHAPE)
        self.noise: NoiseSource = FixedNoise(0)

    def purify(self, x: Tensor) -> Tensor:
        return (0.5 * x + 0.1 * self.noise.stream(2).normal(x.shape, like=x)).clamp(0, 1)

    def with_noise(self, noise: NoiseSource) -> "Noisy":
        return self._variant(noise=noise)


@pytest.fixture
def classifier(make_model: Make) -> MLP:
    model = make_model("mlp")
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.mul_(3)
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.rand((6, *SHAPE), generator=torch.Generator().manual_seed(0))


def gradient_of(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    weights = torch.arange(1.0, 5.0)
    (gradient,) = torch.autograd.grad((model(leaf) * weights).sum(), leaf)
    return gradient


def test_through_is_the_chain_rule(classifier: MLP, x: Tensor) -> None:
    model = Purified(Halving(), classifier)
    torch.testing.assert_close(model(x), classifier(0.5 * x))
    torch.testing.assert_close(gradient_of(model, x), 0.5 * gradient_of(classifier, 0.5 * x))


def test_bpda_takes_the_purifier_for_the_identity_exactly(classifier: MLP, x: Tensor) -> None:
    model = Purified(Halving(), classifier, gradient="bpda")
    assert torch.equal(model(x), classifier(0.5 * x))
    assert torch.equal(gradient_of(model, x), gradient_of(classifier, 0.5 * x))


def test_the_backward_pass_of_bpda_is_the_identity_bit_for_bit() -> None:
    x = torch.rand(3, 4, requires_grad=True)
    value = torch.rand(3, 4, requires_grad=True)
    weights = 1e8 * torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    result = straight_through(x, value)
    assert torch.equal(result, value)
    given, other = torch.autograd.grad(result, (x, value), weights, allow_unused=True)
    assert torch.equal(given, weights)
    assert other is None


def test_grey_box_shows_the_bare_classifier_and_decides_on_purified_images(
    classifier: MLP, x: Tensor
) -> None:
    model = Purified(Halving(), classifier, gradient="grey-box")
    assert torch.equal(model(x), classifier(x))
    assert torch.equal(gradient_of(model, x), gradient_of(classifier, x))
    prediction = model.predict(x)
    torch.testing.assert_close(prediction.scores, classifier(0.5 * x))
    assert torch.equal(prediction.labels, classifier(0.5 * x).argmax(1))


def test_verdicts_purify_in_every_mode(classifier: MLP, x: Tensor) -> None:
    purified = classifier(0.5 * x).argmax(1)
    with torch.no_grad():
        classifier.layers[-1].bias.add_(classifier(x)[:1].max() * torch.eye(4)[(purified[0] + 1) % 4])
    y = classifier(0.5 * x).argmax(1)
    for gradient in ("through", "bpda", "grey-box"):
        model = Purified(Halving(), classifier, gradient=gradient)
        assert not verify(model, x, y, x, norm="linf", epsilon=0.1).success.any()
        assert verify(model, x, (y + 1) % 4, x, norm="linf", epsilon=0.1).success.all()


@pytest.mark.parametrize("gradient", ["through", "bpda", "grey-box"])
def test_variants_share_the_weights(gradient: Any, classifier: MLP, x: Tensor) -> None:
    model = Purified(Halving(), classifier)
    variant = model.with_gradient(gradient)
    assert (variant.gradient, model.gradient) == (gradient, "through")
    assert variant.purifier is model.purifier
    assert variant.classifier is model.classifier
    assert torch.equal(variant.predict(x).scores, model.predict(x).scores)


def test_implicit_needs_an_optimisation(classifier: MLP, x: Tensor) -> None:
    with pytest.raises(ValueError, match="optimises latents for the gradient 'implicit', but got Halving"):
        Halving().purify_implicitly(x)
    known = r"\['through', 'bpda', 'estimated', 'grey-box'\]"
    with pytest.raises(ValueError, match=f"out of {known} for Halving, but got 'implicit'"):
        Purified(Halving(), classifier, gradient="implicit")


def test_impossible_compositions(classifier: MLP) -> None:
    with pytest.raises(ValueError, match=r"a `purifier` of images \(1, 6, 6\).*but got one of \(1, 28, 28\)"):
        Purified(MADVAE(), classifier)
    with pytest.raises(ValueError, match=r"`gradient` out of .*'grey-box'.*, but got 'white-box'"):
        Purified(Halving(), classifier, gradient="white-box")  # type: ignore[arg-type]


def test_a_purifier_checks_its_images() -> None:
    with pytest.raises(ValueError, match=r"`x` in \[0, 1\], but got a maximum of 2"):
        Halving()(torch.full((1, *SHAPE), 2.0))
    with pytest.raises(ValueError, match=r"of shape \(batch, 1, 6, 6\)"):
        Halving()(torch.rand(1, 1, 5, 6))


def test_noise_of_either_part_makes_the_whole_random(make_model: Make, classifier: MLP, x: Tensor) -> None:
    bnn = make_model("bnn")
    assert not Purified(Halving(), classifier).randomized
    assert Purified(Halving(), bnn).randomized
    model = Purified(Noisy(), classifier)
    assert model.randomized
    assert torch.equal(model(x), model(x))
    fresh = model.with_randomness("fresh", seed=3)
    first = fresh(x)
    assert not torch.equal(first, fresh(x))
    assert torch.equal(model.with_randomness("fresh", seed=3)(x), first)
    both = Purified(Noisy(), bnn).with_randomness("fresh", seed=3)
    assert isinstance(both.purifier, Noisy)
    assert both.purifier.noise.generator is both.classifier.noise.generator  # type: ignore[attr-defined]


def test_noise_that_nobody_defines() -> None:
    class Careless(Halving):
        randomized = True

    with pytest.raises(NotImplementedError, match="Careless, which draws noise, to inherit `Randomized`"):
        Careless().with_randomness("fresh")


def test_verdicts_search_among_other_candidates(make_model: Make) -> None:
    vade = make_model("vade")
    decoder = nn.Sequential(nn.Linear(2, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
    projection = LatentProjection(decoder, latent_dim=2, input_shape=(1, 8, 8))
    judge = fresh_variant(Purified(projection, vade, gradient="bpda"), seed=1, codebook_seed=7)
    assert judge.gradient == "bpda"
    assert isinstance(judge.purifier, LatentProjection)
    assert (judge.purifier.budget.seed, judge.classifier.budget.seed) == (7, 7)
    assert (projection.budget.seed, vade.budget.seed) == (0, 0)


def test_only_purifiers_with_a_loss_are_trained(classifier: MLP, x: Tensor) -> None:
    with pytest.raises(TypeError, match="a purifier with weights to train, but got Halving"):
        _ = Purified(Halving(), classifier).phases
    config = ComDefendConfig(input_shape=SHAPE, compression=(3,), reconstruction=(3,))
    model = Purified(ComDefend(config), classifier)
    assert {id(p) for p in model.phases["autoencoder"]} == set(map(id, model.purifier.parameters()))
    y = torch.zeros(len(x), dtype=torch.long)
    with isolated_rng(0):
        alone = model.training_loss("autoencoder", x, y)
    with isolated_rng(0):
        paired = model.training_loss("autoencoder", x, y, x)
    assert torch.equal(alone, paired)


def test_the_classifier_stays_in_evaluation_mode(make_model: Make) -> None:
    model = make_model("purified")
    model.set_parts_training(True)
    assert model.purifier.encoder.training
    assert not any(part.training for part in model.classifier.modules())
    model.purifier.train()
    model.set_parts_training(False)
    assert not model.purifier.encoder.training


def test_any_classifier_behind_any_purifier(make_model: Make) -> None:
    x = torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    purifier = MADVAE(MADVAEConfig(input_shape=(1, 8, 8), latent_dim=3, channels=(3, 3, 4, 4)))
    for name in ("cnn", "eabs", "vade"):
        classifier = make_model(name)
        for gradient in ("through", "bpda", "grey-box"):
            model = Purified(purifier, classifier, gradient=gradient)
            assert gradient_of(model, x).isfinite().all()
            torch.testing.assert_close(model.predict(x).scores, classifier.predict(purifier(x)).scores)


def test_configs_of_both_parts() -> None:
    config = MLPConfig(input_shape=(1, 28, 28), hidden=(4,))
    model = Purified(MADVAE(), MLP(config))
    assert (model.config.purifier, model.config.classifier) == (MADVAEConfig(), config)
