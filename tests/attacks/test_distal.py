"""Distal images: noise of which a model becomes sure, or never does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust import Classifier, load_model
from genrobust.attacks import DistalBudget, distal_images


class Brightness(Classifier):
    """Class 1 where the image is brighter than half on average; sure of nothing where `flat`."""

    def __init__(self, *, scale: float) -> None:
        super().__init__(input_shape=(1, 4, 4), num_classes=2)
        self.scale = scale

    def logits(self, x: Tensor) -> Tensor:
        margin = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-margin, margin], 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_linear_model_is_reached_where_its_probability_says() -> None:
    model, classes = Brightness(scale=10.0), torch.tensor([0, 1, 1])
    found = distal_images(model, classes, generator=seeded())
    assert found.reached.all()
    assert (found.images.flatten(1).mean(1) > 0.6).tolist() == [False, True, True]
    expected = model(found.images).softmax(1).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(found.probabilities, expected)
    assert (found.probabilities >= 0.9).all()


def test_a_model_that_is_never_sure_is_not_reached() -> None:
    budget = DistalBudget(steps=7)
    found = distal_images(Brightness(scale=1.0), torch.tensor([0, 1]), budget=budget, generator=seeded())
    assert not found.reached.any()  # the brightest image has a probability of 0.73
    assert found.steps.tolist() == [7, 7]


def test_a_seed_gives_the_same_images_and_an_easy_class_no_step() -> None:
    model = Brightness(scale=100.0)
    first, again = (distal_images(model, torch.tensor([0, 1]), generator=seeded(3)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    noise = torch.rand((2, 1, 4, 4), generator=seeded(3))
    sure = model(noise).softmax(1).diagonal() >= 0.9
    assert torch.equal(first.steps == 0, sure)


@pytest.mark.slow
def test_abs_is_harder_to_be_made_sure_by_noise_than_a_cnn() -> None:
    classes, budget = torch.tensor([3, 8]), DistalBudget(steps=30)
    cnn = distal_images(load_model("cnn", dataset="digits"), classes, budget=budget, generator=seeded())
    model = load_model("abs", dataset="digits").with_inference(candidates=200, steps=5)
    ours = distal_images(model, classes, budget=budget, generator=seeded())
    assert cnn.reached.all()
    assert float(ours.steps.double().mean()) > float(cnn.steps.double().mean())


@pytest.mark.parametrize(
    ("classes", "message"),
    [(torch.tensor([2]), "0..1"), (torch.tensor([0.0]), "integer"), (torch.tensor([[0]]), "shape")],
)
def test_classes_that_are_none(classes: Any, message: str, unchecked_types: None) -> None:
    with pytest.raises(ValueError, match=message):
        distal_images(Brightness(scale=1.0), classes, generator=seeded())
