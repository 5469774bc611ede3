import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrobust import Classifier, expectation
from genrobust.views import InvalidQueryWarning, Majority, Probabilities, attack_view

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
    votes = torch.stack([draw(x).argmax(1) for draw in view._draws])
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
def test_rows_that_are_no_images_get_nan_and_the_others_their_logits(
    name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name)
    x = images(model, 4)
    broken = x.clone()
    broken[1, 0, 0, 0] = math.nan
    broken[2] += 0.4
    broken.requires_grad_()
    with pytest.warns(InvalidQueryWarning, match="NaN to 2 of 4 images"):
        logits = attack_view(model)(broken)
    valid = [0, 3]
    assert logits[1:3].isnan().all()
    torch.testing.assert_close(logits[valid], model(x[valid]))
    logits[:, 0].nan_to_num().sum().backward()
    clean = x[valid].requires_grad_()
    model(clean)[:, 0].sum().backward()
    assert broken.grad is not None
    torch.testing.assert_close(broken.grad[valid], clean.grad)
    assert (broken.grad[1:3] == 0).all()


def test_a_batch_without_an_image_gets_nan(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    with pytest.warns(InvalidQueryWarning):
        logits = attack_view(model)((images(model, 2) * math.nan).requires_grad_())
    assert logits.shape == (2, model.num_classes)
    assert logits.isnan().all()


@given(scale=st.sampled_from([-1.0, 2.6, 255.0]))
def test_images_of_another_scale_are_refused(make_model: Make, images: Make, scale: float) -> None:
    model = make_model("cnn")
    with pytest.raises(ValueError, match=r"Expected `x` in \[0, 1\], but got a"):
        attack_view(model)(images(model, 2) * scale)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 8, 8), (64,)])
def test_other_shapes_are_refused(make_model: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Expected `x` of shape"):
        attack_view(make_model("cnn"))(torch.rand(shape))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("eabs", {"eot": 0}, "`eot` of at least 1, but got 0"),
        ("cnn", {"eot": 2}, "`eot` of 1 for CNN, which draws no noise, but got 2"),
        ("abs", {"eot": 2, "output": "decisions"}, "`eot` of 1 for ABS, which draws no noise"),
        ("cnn", {"output": "labels"}, "Expected `output` out of .*but got 'labels'"),
    ],
)
def test_impossible_views(name: str, settings: dict[str, Any], message: str, make_model: Make) -> None:
    with pytest.raises(ValueError, match=message):
        attack_view(make_model(name), **settings)
