"""The estimators that ART is given."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from victims import bright_images, spread_decisions

from genrobust.contract import Classifier
from genrobust.eot import expectation
from genrobust.randomness import isolated_rng

art = pytest.importorskip("art")
from art.attacks import evasion  # noqa: E402
from art.estimators.classification import (  # noqa: E402
    BlackBoxClassifierNeuralNetwork,
    PyTorchClassifier,
)

from genrobust import wrap_for_art  # noqa: E402

Make = Callable[..., Any]
each_model = pytest.mark.parametrize("name", ["cnn", "abs", "eabs"])


@pytest.fixture
def make_victim(make_model: Make) -> Make:
    def make(name: str, **settings: Any) -> Any:
        model = make_model(name, **settings)
        if name == "cnn":
            spread_decisions(model)
        return model

    return make


def chosen(model: Any, count: int = 4) -> tuple[Any, Any]:
    """Images of all brightnesses and what the model decides about them, as arrays."""
    x = bright_images(model)[torch.linspace(0, 59, count).long()]
    return x.numpy(), model.predict(x).labels.numpy()


# White box.


@each_model
def test_the_estimator_is_arts_own(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    estimator = wrap_for_art(model)
    assert type(estimator) is PyTorchClassifier
    assert estimator.nb_classes == model.num_classes
    assert estimator.input_shape == model.input_shape
    assert estimator.clip_values == (0, 1)
    assert estimator.all_framework_preprocessing
    x, y = chosen(model)
    answers = estimator.predict(x)
    np.testing.assert_allclose(answers, model(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-5)
    assert answers.dtype == np.float32
    assert np.array_equal(answers.argmax(1), y)


@each_model
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_are_the_models(name: str, dtype: Any, make_victim: Make) -> None:
    model = make_victim(name)
    estimator = wrap_for_art(model)
    x, y = chosen(model)
    leaf = torch.from_numpy(x).requires_grad_()
    logits = model(leaf)
    slopes = [torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0] for column in logits.unbind(1)]
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    close = {"rtol": 1e-3, "atol": 1e-5}
    one_hot = np.eye(model.num_classes, dtype=np.float32)[y]
    np.testing.assert_allclose(estimator.loss_gradient(x.astype(dtype), one_hot), gradient, **close)
    all_classes = estimator.class_gradient(x.astype(dtype))
    np.testing.assert_allclose(all_classes, torch.stack(slopes, 1).numpy(), **close)
    np.testing.assert_allclose(estimator.class_gradient(x.astype(dtype), label=1)[:, 0], slopes[1], **close)
    own = estimator.class_gradient(x.astype(dtype), label=y)[:, 0]
    np.testing.assert_allclose(own, torch.stack(slopes, 1).numpy()[np.arange(len(y)), y], **close)


def test_a_model_in_double_precision_is_asked_in_its_own(make_victim: Make) -> None:
    model = make_victim("cnn", dtype=torch.float64)
    estimator = wrap_for_art(model)
    x, y = chosen(model)
    assert x.dtype == np.float64
    assert np.array_equal(estimator.predict(x.astype(np.float32)).argmax(1), y)
    assert np.isfinite(estimator.class_gradient(x.astype(np.float32))).all()


@each_model
def test_an_images_gradient_does_not_depend_on_the_batch(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    estimator = wrap_for_art(model)
    x, y = chosen(model)
    one_hot = np.eye(model.num_classes, dtype=np.float32)[y]
    whole = estimator.loss_gradient(x, one_hot)
    for row in range(len(x)):
        alone = estimator.loss_gradient(x[[row]], one_hot[[row]])
        np.testing.assert_allclose(whole[[row]], alone, rtol=1e-3, atol=1e-6)


def test_the_loss_reduces_as_it_is_told(make_victim: Make) -> None:
    model = make_victim("cnn")
    estimator = wrap_for_art(model)
    x, y = chosen(model)
    expected = nn.functional.cross_entropy(
        model(torch.from_numpy(x)), torch.from_numpy(y), reduction="none"
    ).detach()
    np.testing.assert_allclose(estimator.compute_loss(x, y, reduction="none"), expected, rtol=1e-5)
    np.testing.assert_allclose(estimator.compute_loss(x, y, reduction="mean"), expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(estimator.compute_loss(x, y, reduction="sum"), expected.sum(), rtol=1e-5)
    assert estimator.loss.reduction == "sum"


class _Kept(torch.autograd.Function):
    """Hands out the very tensors that it keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, kept: list[Tensor]) -> Tensor:
        ctx.kept = kept
        return x.flatten(1) @ weights.flatten(1).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.kept[int(gradients[0].abs().sum(0).argmax())], None, None


class Keeping(Classifier):
    """A linear classifier whose gradients are made once, for batches of 2."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=3)
        weights = torch.arange(12.0).reshape(3, 1, 2, 2) / 12
        self.weights = nn.Parameter(weights)
        self.kept = [row.repeat(2, 1, 1, 1) for row in weights]

    def logits(self, x: Tensor) -> Tensor:
        logits: Tensor = _Kept.apply(x, self.weights, self.kept)
        return logits


def test_arts_zeroing_in_place_does_not_reach_gradients_that_a_model_keeps() -> None:
    model, x = Keeping(), np.full((2, 1, 2, 2), 0.5, dtype=np.float32)
    expected = model.weights.detach().expand(2, 3, 1, 2, 2).numpy()
    estimator = wrap_for_art(model)
    for _ in range(2):
        np.testing.assert_array_equal(estimator.class_gradient(x), expected)
    bare = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 2, 2), 3, preprocessing=None, device_type="cpu"
    )
    bare.class_gradient(x)
    assert not np.array_equal(bare.class_gradient(x), expected)


@each_model
def test_attacking_changes_no_weight_and_adds_no_hook(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, y = chosen(model)
    images, before = torch.from_numpy(x), [weight.clone() for weight in model.parameters()]
    expected, estimator = model(images), wrap_for_art(model)
    evasion.ProjectedGradientDescent(estimator, eps=0.1, eps_step=0.05, max_iter=2, verbose=False).generate(
        x, y
    )
    evasion.DeepFool(estimator, max_iter=1, verbose=False).generate(x)
    attack = evasion.FeatureAdversariesPyTorch(
        estimator, 0.1, layer="logits", max_iter=2, step_size=0.1, verbose=False
    )
    attack.generate(x, x[::-1].copy())
    assert torch.equal(model(images), expected)
    assert all(map(torch.equal, model.parameters(), before))
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_activations_are_read_by_one_hook_however_often(make_victim: Make) -> None:
    model = make_victim("cnn")
    estimator = wrap_for_art(model)
    x, _ = chosen(model)
    assert estimator.layer_names == ["logits"]
    for layer in (0, "logits", 0):
        np.testing.assert_array_equal(estimator.get_activations(x, layer, 4), estimator.predict(x))
    assert sum(len(module._forward_hooks) for module in estimator.model.modules()) == 1


# Outside of [0, 1].


def test_far_points_are_answered_about_the_nearest_image(make_victim: Make) -> None:
    model = make_victim("cnn")
    estimator = wrap_for_art(model)
    x, y = chosen(model)
    far = np.where(x > 0.5, x + 7, np.where(x < 0.1, x - 7, x))
    estimator.predict(x)  # the first query is of images
    with pytest.warns(UserWarning, match="points outside of"):
        answers = estimator.predict(far)
    np.testing.assert_array_equal(answers, estimator.predict(far.clip(0, 1)))
    one_hot = np.eye(model.num_classes, dtype=np.float32)[y]
    with pytest.warns(UserWarning, match="points outside of"):
        gradient = estimator.loss_gradient(far, one_hot)
    np.testing.assert_array_equal(gradient, estimator.loss_gradient(far.clip(0, 1), one_hot))


def test_8_bit_images_are_refused_and_nan_is_answered_nan(make_victim: Make) -> None:
    model = make_victim("cnn")
    estimator = wrap_for_art(model)
    x, y = chosen(model)
    with pytest.raises(ValueError, match=r"`x` in \[0, 1\], but got a maximum of .*: divide by 255"):
        estimator.predict((255 * x).round())
    with pytest.raises(ValueError, match="normalisation belongs into the model"):
        wrap_for_art(model).predict(5 * x - 2)
    for bad in (np.nan, np.inf):
        x[1, 0, 0, 0] = bad
        with pytest.warns(UserWarning, match="points outside of"):
            answers = estimator.predict(x)
        assert np.isnan(answers[1]).all()
        assert np.array_equal(answers[[0, 2, 3]].argmax(1), y[[0, 2, 3]])


# Expectation over transformation, and other outputs.


def test_eot_queries_the_expectation(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, _ = chosen(model)
    estimator = wrap_for_art(model, eot=3, seed=5)
    expected = expectation(model, 3, generator=torch.Generator().manual_seed(5))
    for _ in range(2):
        answers = expected(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(estimator.predict(x), answers, rtol=1e-5, atol=1e-5)


def test_draws_neither_follow_nor_move_the_global_generators(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, y = chosen(model)
    estimator = wrap_for_art(model, eot=3)
    with isolated_rng(0):
        first = estimator.predict(x)
    with isolated_rng(0):
        assert not np.array_equal(estimator.predict(x), first)
    before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    gradients = [estimator.loss_gradient(x, np.eye(4, dtype=np.float32)[y]) for _ in range(2)]
    wrap_for_art(model, eot=3, black_box=True).predict(
        x
    )  # the white box predicts by a DataLoader, which draws
    assert not np.array_equal(*gradients)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1][1])  # noqa: NPY002


def test_what_apgd_attacks_draws_too(make_victim: Make) -> None:
    estimator = wrap_for_art(make_victim("eabs"), eot=2)
    attack = evasion.AutoProjectedGradientDescent(estimator, loss_type="cross_entropy", verbose=False)
    assert attack.estimator is not estimator
    x = np.full((1, *estimator.input_shape), 0.5, dtype=np.float32)
    assert not np.array_equal(attack.estimator.predict(x), attack.estimator.predict(x))


@each_model
def test_probabilities_sum_to_one_and_majorities_repeat(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, y = chosen(model)
    answers = wrap_for_art(model, output="probabilities").predict(x)
    np.testing.assert_allclose(answers.sum(1), 1, rtol=1e-5)
    assert np.array_equal(answers.argmax(1), y)
    voting = wrap_for_art(model, eot=5 if name == "eabs" else 1, output="decisions")
    np.testing.assert_array_equal(voting.predict(x), voting.predict(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eot": 0}, "`eot` to be at least 1, but got 0"),
        ({"eot": 2}, "`eot` of 1 for CNN, which draws no noise, but got 2"),
        ({"output": "scores"}, "`output` to be one of .*, but got 'scores'"),
        ({"clip_values": (0, 255)}, r"`clip_values` to be an interval within \[0, 1\], but got \(0, 255\)"),
        ({"clip_values": (1, 0)}, "`clip_values` to be an interval"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str, make_victim: Make) -> None:
    with pytest.raises(ValueError, match=message):
        wrap_for_art(make_victim("cnn"), **settings)


def test_a_device_that_art_would_move_the_model_from_is_refused(make_model: Make) -> None:
    with pytest.raises(ValueError, match="on cpu or cuda, which is all that ART knows, but got meta"):
        wrap_for_art(make_model("cnn").to("meta"))


# Black box.


@each_model
def test_the_black_box_predicts_and_no_more(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    estimator = wrap_for_art(model, black_box=True)
    assert type(estimator) is BlackBoxClassifierNeuralNetwork
    x, y = chosen(model)
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(estimator.predict(x.astype(dtype)), wrap_for_art(model).predict(x))
    with pytest.raises(art.exceptions.EstimatorError):
        evasion.ProjectedGradientDescent(estimator)
    attack = evasion.SquareAttack(estimator, eps=0.3, max_iter=3, p_init=0.1, verbose=False)
    with isolated_rng(0):
        assert attack.generate(x, y).shape == x.shape


def test_a_black_box_of_decisions_tells_nothing_else(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, y = chosen(model)
    estimator = wrap_for_art(model, output="decisions", black_box=True)
    np.testing.assert_array_equal(estimator.predict(x), np.eye(model.num_classes)[y])
    x[0, 0, 0, 0] = np.nan
    with pytest.warns(UserWarning, match="points outside of"):
        assert np.isnan(estimator.predict(x)[0]).all()


@pytest.mark.parametrize("black_box", [False, True])
def test_channels_last(black_box: bool, make_victim: Make) -> None:
    model = make_victim("abs")
    x, y = chosen(model)
    estimator = wrap_for_art(model, channels_first=False, black_box=black_box)
    channels, height, width = model.input_shape
    assert estimator.input_shape == (height, width, channels)
    assert np.array_equal(estimator.predict(x.transpose(0, 2, 3, 1)).argmax(1), y)
