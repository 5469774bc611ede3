import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genrobust import Classifier, as_classifier, load_dataset, load_model
from genrobust.attack_view import InvalidQueryWarning, Probabilities, attack_view
from genrobust.eot import _FIRST_DRAW, Majority, expectation

Make = Callable[..., Any]
each_model = pytest.mark.parametrize("name", ["cnn", "abs", "eabs"])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Refusing(Classifier):
    """Three classes by brightness, and a column that wins on dark images."""

    rejects = True

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=3)
        self.scale = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 3.0, 0.0]]))

    def logits(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(1, keepdim=True)
        return self.scale * brightness + torch.tensor([0.0, 0.0, 0.0, 1.0])


@each_model
def test_the_default_view_is_the_model(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    view, x = attack_view(model), images(model, 3)
    assert torch.equal(view(x), model(x))
    assert view(x[:0]).shape == (0, model.num_classes)
    assert not view.training


def test_eot_of_a_bayesian_network_is_the_mean_of_its_predictions(make_model: Make, images: Make) -> None:
    model = make_model("bnn", samples=2)
    x = images(model, 3)
    view = attack_view(model, eot=50, seed=4)
    fresh = model.with_randomness("fresh", generator=generator(4))
    expected = torch.stack([fresh(x) for _ in range(50)]).softmax(2).mean(0)
    torch.testing.assert_close(view(x).exp(), expected)
    assert not torch.equal(view(x), view(x))
    leaf = x.clone().requires_grad_()
    assert torch.autograd.grad(view(leaf).sum(), leaf)[0].any()


def test_decisions_of_a_bayesian_network_repeat(make_model: Make, images: Make) -> None:
    model = make_model("bnn", samples=1)
    view, x = attack_view(model, eot=9, output="decisions"), images(model, 6)
    assert torch.equal(view(x), view(x))
    draws = torch.stack(
        [model.with_randomness("fixed", seed=(1 << 20) + seed)(x).argmax(1) for seed in range(9)]
    )
    assert torch.equal(view(x).argmax(1), draws.mode(0).values)


@each_model
def test_probabilities_are_the_models_own(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 4)
    answers = attack_view(model, output="probabilities")(x)
    torch.testing.assert_close(answers, model.predict(x).probabilities)
    assert torch.equal(answers.argmax(1), model(x).argmax(1))
    assert attack_view(model, output="probabilities")(x.requires_grad_()).requires_grad


def test_probabilities_of_a_rejecting_model_have_its_column() -> None:
    x = torch.tensor([0.1, 0.9])[:, None, None, None].expand(-1, 1, 2, 2)
    answers = Probabilities(Refusing())(x)
    torch.testing.assert_close(answers, Refusing()(x).softmax(1))
    assert answers.shape == (2, 4)


def test_no_probability_is_zero(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    model.temperature.fill_(1e-6)
    x = images(model, 4)
    assert (model.predict(x).probabilities == 0).any()
    answers = attack_view(model, output="probabilities")(x)
    divergence = (answers[0] * (answers[0] / answers[1:]).log()).sum(1)
    assert divergence.isfinite().all()
    torch.testing.assert_close(answers.sum(1), torch.ones(4))


def test_a_rejecting_models_prediction() -> None:
    x = torch.tensor([0.1, 0.9])[:, None, None, None].expand(-1, 1, 2, 2)
    prediction = Refusing().predict(x)
    assert prediction.labels.tolist() == [3, 2]
    assert prediction.rejected.tolist() == [True, False]
    assert prediction.probabilities.shape == prediction.scores.shape == (2, 3)


def test_eot_is_the_expectation_over_fresh_draws(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    x = images(model, 3)
    view = attack_view(model, eot=3, seed=5)
    expected = expectation(model, 3, generator=generator(5))
    assert torch.equal(view(x), expected(x))
    assert torch.equal(view(x), expected(x))
    probabilities = attack_view(model, eot=3, seed=5, output="probabilities")(x)
    torch.testing.assert_close(probabilities, expectation(model, 3, generator=generator(5))(x).softmax(1))


# Decisions.


def test_decisions_of_a_model_without_draws_are_its_logits(make_model: Make, images: Make) -> None:
    model = make_model("abs")
    x = images(model, 3)
    assert torch.equal(attack_view(model, output="decisions")(x), model(x))


def test_the_majority_counts_the_draws(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    x = images(model, 30)
    view = Majority(model, draws=5, seed=2)
    seeds = [_FIRST_DRAW + 10 + draw for draw in range(5)]
    votes = torch.stack([model.with_randomness("fixed", seed=seed)(x).argmax(1) for seed in seeds])
    assert (votes != votes[0]).any(), "the draws never disagree: nothing is tested"
    counts = torch.nn.functional.one_hot(votes, model.num_classes).sum(0)
    winner = view(x).argmax(1, keepdim=True)
    assert torch.equal(counts.gather(1, winner)[:, 0], counts.amax(1))
    torch.testing.assert_close(view(x).exp().sum(1), torch.ones(30))


def test_a_decision_repeats_whatever_was_asked_before(make_model: Make, images: Make) -> None:
    model = make_model("eabs").with_randomness("fresh", seed=1)
    x = images(model, 6)
    assert not torch.equal(model(x), model(x))
    view = attack_view(model, eot=3, output="decisions")
    first = view(x)
    view(images(model, 4, seed=1))
    torch.testing.assert_close(view(x), first)
    torch.testing.assert_close(view(x[2:4]), first[2:4])
    assert not torch.equal(attack_view(model, eot=3, output="decisions", seed=1)(x), first)


# Queries that are no images.


@each_model
def test_points_outside_are_answered_about_the_nearest_images(
    name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name)
    x = 1.8 * images(model, 4) - 0.4
    x[1, 0, 0, 0] = math.nan
    x[2] = images(model, 1, seed=1)[0]
    leaf = x.clone().requires_grad_()
    with pytest.warns(InvalidQueryWarning, match="outside of"):
        logits = attack_view(model)(leaf)
    finite = [0, 2, 3]
    nearest = x[finite].clamp(0, 1).requires_grad_()
    assert logits[1].isnan().all()
    torch.testing.assert_close(logits[finite], model(nearest))
    logits[:, 0].nan_to_num().sum().backward()
    model(nearest)[:, 0].sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[finite], nearest.grad)
    assert (leaf.grad[1] == 0).all()
    assert (leaf.grad[finite][(x[finite] < 0) | (x[finite] > 1)] != 0).any()


@each_model
def test_backward_passes_leave_no_trace_in_the_weights(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    next(model.parameters()).requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    view, leaf = attack_view(model), images(model, 2).requires_grad_()
    for column in view(leaf).sum(0):
        column.backward(retain_graph=True)
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted


@pytest.mark.parametrize("name", ["cnn", "deep-bayes", "eabs"])
def test_threads_leave_no_gradient_on_the_weights(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    view, x, together = attack_view(model), images(model, 2), threading.Barrier(4)
    flags: list[bool] = []

    def attack() -> None:
        for _ in range(5):
            together.wait()  # all are in their forward passes at once, and then in their backward passes
            logits = view(leaf := x.clone().requires_grad_())
            flags.extend(parameter.requires_grad for parameter in model.parameters())
            together.wait()
            logits.sum().backward()
            assert leaf.grad is not None

    threads = [threading.Thread(target=attack) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(flags)  # a training in another thread keeps its graph
    assert len(flags) == 20 * len(list(model.parameters()))


def test_a_query_is_differentiable_twice(make_model: Make, images: Make) -> None:
    model = make_model("mlp", dtype=torch.float64)
    leaf = images(model, 2).requires_grad_()

    def curvature(function: Any) -> Tensor:
        (slope,) = torch.autograd.grad(function(leaf).square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), leaf)[0]

    torch.testing.assert_close(curvature(attack_view(model)), curvature(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_second_backward_pass_needs_a_retained_graph(make_model: Make, images: Make) -> None:
    logits = attack_view(make_model("cnn"))(images(make_model("cnn"), 2).requires_grad_())
    logits.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        logits.sum().backward()


def test_logits_that_ignore_the_image_have_no_gradient(make_model: Make, images: Make) -> None:
    model = make_model("cnn")
    blind = as_classifier(lambda x: model(x.detach()), images(model, 2))
    assert not attack_view(blind)(images(model, 2).requires_grad_()).requires_grad


def test_a_batch_without_an_image_gets_nan(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    with pytest.warns(InvalidQueryWarning):
        logits = attack_view(model)((images(model, 2) * math.nan).requires_grad_())
    assert logits.shape == (2, model.num_classes)
    assert logits.isnan().all()


def test_eight_bit_images_are_refused(make_model: Make, images: Make) -> None:
    model = make_model("cnn")
    with pytest.raises(ValueError, match=r"Expected `x` in \[0, 1\], but got a maximum of .*: divide by 255"):
        attack_view(model)((255 * images(model, 2)).round())


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda x: (x - 0.1307) / 0.3081, "normalisation belongs into the model"),
        (lambda x: (x - 0.5) / 0.25, "normalisation belongs into the model"),
        (lambda x: 2 * x - 1, r"images in \[-1, 1\] are \(x \+ 1\) / 2"),
        (lambda x: 255 * x, "divide by 255"),
        (lambda x: 16 * x, "divide by 255"),
    ],
    ids=["digits", "colour", "signed", "bytes", "levels"],
)
def test_images_of_another_range_are_refused(change: Any, hint: str) -> None:
    x, _ = load_dataset("digits", "test").batch(slice(8))
    view = attack_view(load_model("cnn", dataset="digits"))
    for batch in (change(x), change(x[:1]), change(x).requires_grad_()):
        with pytest.raises(ValueError, match=rf"Expected `x` in \[0, 1\], but got .*: {hint}"):
            view(batch)


def test_an_attack_may_stray_by_a_step_or_with_few_images() -> None:
    x, _ = load_dataset("digits", "test").batch(slice(8))
    view = attack_view(load_model("cnn", dataset="digits"))
    step = 0.3 * torch.randn(x.shape, generator=generator(0)).sign()
    far = x.clone()
    far[:4] -= 1  # half of the images
    spot = x.clone()
    spot[..., :3, :3] = 5.0
    for batch in (x + step, far, spot):
        with pytest.warns(InvalidQueryWarning):
            assert view(batch).isfinite().all()


def test_after_its_first_query_an_attack_may_look_far_ahead() -> None:
    x, _ = load_dataset("digits", "test").batch(slice(8))
    view = attack_view(load_model("cnn", dataset="digits"))
    view(x)
    ahead = 5 * x - 2
    with pytest.warns(InvalidQueryWarning):
        assert torch.equal(view(ahead), view(ahead.clamp(0, 1)))


def test_numbers_of_numpy_are_draws_and_seeds(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    x = images(model, 2)
    expected = attack_view(model, eot=2, seed=3)(x)
    assert torch.equal(attack_view(model, eot=np.int64(2), seed=np.uint8(3))(x), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 8, 8), (64,)])
def test_other_shapes_are_refused(make_model: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Expected `x` of shape"):
        attack_view(make_model("cnn"))(torch.rand(shape))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("eabs", {"eot": 0}, "`eot` to be at least 1, but got 0"),
        ("eabs", {"eot": math.nan}, "`eot` to be an integer, but got nan"),
        ("eabs", {"eot": 2.5}, "`eot` to be an integer, but got 2.5"),
        ("eabs", {"eot": True}, "`eot` to be an integer, but got True"),
        ("eabs", {"eot": "2"}, "`eot` to be an integer, but got '2'"),
        ("eabs", {"eot": None}, "`eot` to be an integer, but got None"),
        ("eabs", {"seed": -1}, "`seed` to be at least 0"),
        ("eabs", {"seed": 1.5}, "`seed` to be an integer, but got 1.5"),
        ("eabs", {"seed": 10**30}, "`seed` to be at least 0 and below"),
        ("cnn", {"eot": 2}, "`eot` of 1 for CNN, which draws no noise, but got 2"),
        ("abs", {"eot": 2, "output": "decisions"}, "`eot` of 1 for ABS, which draws no noise"),
        (
            "cnn",
            {"output": "labels"},
            "`output` to be one of 'logits', 'prob.*, but got 'labels'",
        ),
    ],
)
def test_impossible_views(name: str, settings: dict[str, Any], message: str, make_model: Make) -> None:
    with pytest.raises(ValueError, match=message):
        attack_view(make_model(name), **settings)
