from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust import (
    CNN,
    MLP,
    Adversary,
    BayesianMLP,
    BayesianMLPConfig,
    CNNConfig,
    PoolCNN,
    PoolCNNConfig,
)
from genrobust.classifier import GenerativeClassifier
from genrobust.nets import architecture
from genrobust.randomness import isolated_rng

Make = Callable[..., Any]


class Linear(nn.Module):
    """Two classes; the loss rises along one direction, so that the best perturbation is known."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 16, generator=generator))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return x.flatten(1) @ self.weight.T

    def uphill(self, y: Tensor) -> Tensor:
        """The direction in which the loss rises, for every image."""
        return (self.weight[1 - y] - self.weight[y]).detach().reshape(-1, 1, 4, 4)


def interior_images(count: int = 6) -> tuple[Tensor, Tensor]:
    """Images that no perturbation below 0.4 per pixel takes to the bounds."""
    x = 0.4 + 0.2 * torch.rand((count, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    return x, torch.arange(count) % 2


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y, reduction="none")


def attacked(adversary: Adversary, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    with isolated_rng(seed):
        return adversary.attack(model, x, y)


def distances(norm: str, delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)


NORMS = pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 1.2)])


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 0.5)])
def test_the_attack_finds_the_best_perturbation_of_a_linear_classifier(norm: Any, epsilon: float) -> None:
    model, (x, y) = Linear(), interior_images()
    uphill = model.uphill(y)
    direction = (
        uphill.sign() if norm == "linf" else uphill / uphill.flatten(1).norm(dim=1)[:, None, None, None]
    )
    optimum = x + epsilon * direction
    assert optimum.min() > 0
    assert optimum.max() < 1
    best = losses(model, optimum, y)
    adversary = Adversary(norm=norm, epsilon=epsilon, steps=40)
    reached = losses(model, attacked(adversary, model, x, y), y)
    assert (reached <= best * (1 + 1e-5)).all()
    torch.testing.assert_close(reached, best, rtol=5e-3, atol=1e-3)
    assert (best > losses(model, x, y) + 0.5).all()


@NORMS
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("relative_step", [0.25, 3.0])
def test_every_query_stays_in_the_ball_and_in_range(
    norm: Any, epsilon: float, steps: int, relative_step: float
) -> None:
    model = Linear()
    x = torch.rand((40, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    x[0], x[1] = 0.0, 1.0
    y = torch.arange(40) % 2
    adversary = Adversary(norm=norm, epsilon=epsilon, steps=steps, relative_step=relative_step)
    perturbed = attacked(adversary, model, x, y)
    assert len(model.seen) == steps
    for query in (*model.seen, perturbed):
        assert distances(norm, query - x).max() <= epsilon * (1 + 1e-5)
        assert query.min() >= 0
        assert query.max() <= 1
    assert not perturbed.requires_grad
    assert model.weight.grad is None


@NORMS
def test_the_attack_raises_the_loss_of_a_network(
    norm: Any, epsilon: float, make_model: Make, images: Make
) -> None:
    model = make_model("cnn")
    x = images(model, 12)
    y = model(x).argmax(1)
    perturbed = attacked(Adversary(norm=norm, epsilon=epsilon), model, x, y)
    assert (losses(model, perturbed, y) > losses(model, x, y)).all()


@NORMS
def test_the_start_is_random(norm: Any, epsilon: float) -> None:
    model, (x, y) = Linear(), interior_images()
    adversary = Adversary(norm=norm, epsilon=epsilon, steps=1, relative_step=0.1)
    first, second, other = (attacked(adversary, model, x, y, seed) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    starts = model.seen[0]
    assert (distances(norm, starts - x) > 0).all()


def test_the_attack_works_where_gradients_are_disabled() -> None:
    model, (x, y) = Linear(), interior_images()
    expected = attacked(Adversary(), model, x, y)
    with torch.no_grad():
        assert torch.equal(attacked(Adversary(), model, x, y), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l1"}, "`norm` to be 'linf' or 'l2', but got 'l1'"),
        ({"epsilon": 0.0}, "`epsilon` above 0 and `steps` of at least 1, but got 0.0 and 10"),
        ({"epsilon": float("nan")}, "`epsilon` above 0 and `steps` of at least 1, but got nan and 10"),
        ({"steps": 0}, "`epsilon` above 0 and `steps` of at least 1, but got 0.3 and 0"),
    ],
    ids=["norm", "epsilon", "nan epsilon", "steps"],
)
def test_impossible_adversary(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adversary(**settings)


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


def test_the_adversarial_loss_is_that_of_attacked_images(make_model: Make, images: Make) -> None:
    adversary = Adversary(epsilon=0.2, steps=5)
    clean, hardened = make_model("cnn"), make_model("cnn", adversary=adversary)
    x, y = images(clean, 8), torch.arange(8) % 4
    perturbed = attacked(adversary, clean, x, y)
    for model in (clean, hardened):
        model.set_parts_training(True)
    with isolated_rng(0):  # the attack draws its start, then dropout its mask
        torch.rand_like(x)
        expected = clean.training_loss("classifier", perturbed, y)
    with isolated_rng(0):
        loss = hardened.training_loss("classifier", x, y)
    torch.testing.assert_close(loss, expected)
    assert losses(clean, perturbed, y).mean() > losses(clean, x, y).mean()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_adversarial_loss_leaves_the_mode_of_the_parts(
    training: bool, make_model: Make, images: Make
) -> None:
    model = make_model("cnn", adversary=Adversary(steps=1))
    model.set_parts_training(training)
    x, y = images(model, 8), torch.arange(8) % 4
    with isolated_rng(0):
        model.training_loss("classifier", x, y)
    assert all(part.training == training for part in model.features)


def test_adversarial_training_does_not_attack_statistics(make_model: Make, images: Make) -> None:
    model = make_model("cnn", adversary=Adversary(steps=3))
    model.set_parts_training(True)
    x, y = images(model, 8), torch.arange(8) % 4
    with isolated_rng(0):
        model.training_loss("classifier", x, y)
    counts = [layer.num_batches_tracked for layer in model.features if isinstance(layer, nn.BatchNorm2d)]
    assert counts == [1, 1]


def test_configs_are_values() -> None:
    assert CNNConfig() == CNNConfig()
    assert replace(CNNConfig(), adversary=Adversary()) != CNNConfig()


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
        (lambda: BayesianMLPConfig(dropout=1.0), r"`dropout` in \(0, 1\) and `samples` of at least 1"),
        (lambda: BayesianMLPConfig(samples=0), r"`dropout` in \(0, 1\) and `samples` of at least 1"),
        (lambda: PoolCNNConfig(input_shape=(1, 8, 8)), r"halved 4 times, but got \(1, 8, 8\)"),
    ],
)
def test_impossible_baselines(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
