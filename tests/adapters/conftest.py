"""What the tests of a toolkit attack, unless they bring their own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from victims import bright_images, spread_decisions

from genrobust import load_dataset, load_model

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Tensor, Tensor]:
    """The shipped CNN, and 8 images that it decides right."""
    model = load_model("cnn", dataset="digits")
    x, y = load_dataset("digits", "test").batch(slice(8))
    assert torch.equal(model.predict(x).labels, y)
    return model, x, y


@pytest.fixture
def make_victim(make_model: Make) -> Make:
    """Makes a small model, and 4 images that it decides for more than one class."""

    def make(name: str) -> tuple[Any, Tensor, Tensor]:
        model = make_model(name)
        if name == "cnn":
            spread_decisions(model)
        x = bright_images(model)
        labels = model.predict(x).labels
        rows = labels.argsort()[[0, 20, 40, 59]]
        assert labels[rows].unique().numel() > 1
        return model, x[rows], labels[rows]

    return make
