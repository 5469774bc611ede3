from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from genrobust.contract import GenerativeClassifier
from genrobust.models import (
    CNN,
    MLP,
    BayesianMLP,
    BayesianMLPConfig,
    CNNConfig,
    PoolCNN,
    PoolCNNConfig,
)
from genrobust.nets.architectures import architecture
from genrobust.randomness import isolated_rng

Make = Callable[..., Any]


# The CNN.


def test_the_cnn_is_the_encoder_of_e_abs_with_a_linear_layer() -> None:
    model = CNN()
    assert model.config.architecture == architecture("eabs-mnist")
    assert [m.out_channels for m in model.features if isinstance(m, nn.Conv2d)] == [16, 32, 64, 64]
    assert (model.head.in_features, model.head.out_features) == (64 * 3 * 3, 10)
    assert not isinstance(model, GenerativeClassifier)
    assert not model.class_balanced


def test_phases_of_the_cnn(make_model: Make) -> None:
    model = make_model("cnn")
    assert list(model.phases) == ["classifier"]
    assert list(map(id, model.phases["classifier"])) == list(map(id, model.parameters()))


def test_the_loss_is_the_cross_entropy(make_model: Make, images: Make) -> None:
    model = make_model("cnn")
    x, y = images(model, 6), torch.arange(6) % 4
    loss = model.training_loss("classifier", x, y)
    expected = -model(x).log_softmax(1)[torch.arange(6), y].mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_configs_are_values() -> None:
    assert CNNConfig() == CNNConfig()
    assert replace(CNNConfig(), num_classes=3) != CNNConfig()


# The baselines of Deep Bayes.


def linear_shapes(model: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def test_the_baselines_have_the_published_sizes() -> None:
    for model in (MLP(), BayesianMLP()):
        assert linear_shapes(model) == [(784, 500), (500, 500), (500, 500), (500, 10)]
    cnn = PoolCNN()
    assert [m.out_channels for m in cnn.features if isinstance(m, nn.Conv2d)] == [128] * 4
    assert linear_shapes(cnn) == [(128, 500), (500, 10)]
    assert (BayesianMLPConfig().dropout, BayesianMLPConfig().samples) == (0.5, 10)


@pytest.mark.parametrize("name", ["bnn", "mlp", "pool-cnn"])
def test_the_baselines_learn_by_cross_entropy(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x, y = images(model, 6), torch.arange(6) % 4
    with isolated_rng(0):
        loss = model.training_loss("classifier", x, y)
    with isolated_rng(0):
        expected = -model.training_logits(x).log_softmax(1)[torch.arange(6), y].mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.phases["classifier"])
    assert len(model.phases["classifier"]) == len(list(model.parameters()))
    if name != "bnn":
        torch.testing.assert_close(model.training_logits(x), model(x))


def test_the_bayesian_mlp_averages_the_networks_that_it_draws(make_model: Make, images: Make) -> None:
    model = make_model("bnn", dropout=0.3, samples=5, dtype=torch.float64)
    x = images(model, 2)
    stream = model.noise.stream()
    masks = [stream.normal((1, 5, width), like=x)[0] > -0.5244005127080407 for width in (9, 8)]
    probabilities = []
    for sample in range(5):
        hidden = model.layers[0](x.flatten(1)).relu() * masks[0][sample] / 0.7
        hidden = model.layers[1](hidden).relu() * masks[1][sample] / 0.7
        probabilities.append(model.layers[2](hidden).softmax(1))
    expected = torch.stack(probabilities).mean(0)
    assert expected.std() > 0.01
    torch.testing.assert_close(model(x).exp(), expected)
    torch.testing.assert_close(model.predict(x).probabilities, expected)


def test_the_noise_of_the_bayesian_mlp(make_model: Make, images: Make) -> None:
    model = make_model("bnn")
    x = images(model, 1).expand(3, -1, -1, -1)
    assert model.randomized
    fixed = model(x)
    assert torch.equal(fixed, model(x))
    torch.testing.assert_close(fixed[0], fixed[2])
    assert not torch.equal(model.with_randomness("fixed", seed=1)(x), fixed)
    fresh = model.with_randomness("fresh", seed=3)
    first, second = fresh(x), fresh(x)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(model.with_randomness("fresh", seed=3)(x), first)
    assert torch.equal(model(x), fixed)


def test_dropout_leaves_out_the_stated_share(make_model: Make) -> None:
    model = make_model("bnn", hidden=(4000,), dropout=0.8, samples=1)
    with torch.no_grad():
        model.layers[0].weight.zero_()
        model.layers[0].bias.fill_(1)
        model.layers[1].weight.fill_(1 / 4000)
        model.layers[1].bias.zero_()
    with isolated_rng(0), torch.no_grad():
        kept = model.training_logits(torch.zeros(50, 1, 6, 6))
    assert float(kept.mean()) == pytest.approx(1, abs=0.03)
    assert float(kept[:, 0].std()) == pytest.approx((0.8 / 0.2 / 4000) ** 0.5, rel=0.4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BayesianMLPConfig(dropout=1.0), "`dropout` to be above 0 and below 1"),
        (lambda: BayesianMLPConfig(samples=0), "`samples` to be at least 1"),
        (lambda: PoolCNNConfig(input_shape=(1, 8, 8)), r"halved 4 times, but got \(1, 8, 8\)"),
    ],
)
def test_impossible_baselines(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
