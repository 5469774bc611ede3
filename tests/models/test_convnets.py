"""MagNet's classifier and the substitutes have the layers of Tables 6 and 7."""

from typing import Any

import pytest
import torch
from torch import nn

from genrobust.models import ConvNet, ConvNetConfig
from genrobust.models.convnets import MAGNET, SUBSTITUTES
from genrobust.nets.architectures import Conv

TABLES: dict[str, list[Any]] = {
    "MagNet": [
        *("conv 32 3 1", "relu", "conv 32 3 1", "relu", "pool", "conv 64 3 1", "relu", "conv 64 3 1"),
        *("relu", "pool", "linear 1024 200", "relu", "linear 200 200", "relu", "linear 200 10"),
    ],
    "A": [
        *("conv 64 5 1", "relu", "conv 64 5 2", "relu", "dropout 0.25"),
        *("linear 9216 128", "relu", "dropout 0.5", "linear 128 10"),
    ],
    "B": [
        *("dropout 0.2", "conv 64 8 2", "relu", "conv 128 6 2", "relu", "conv 128 5 1", "relu"),
        *("dropout 0.5", "linear 128 10"),
    ],
    "C": [
        *("conv 128 3 1", "relu", "conv 64 3 2", "relu", "dropout 0.25"),
        *("linear 10816 128", "relu", "dropout 0.5", "linear 128 10"),
    ],
    "D": [
        *("linear 784 200", "relu", "dropout 0.5", "linear 200 200", "relu", "dropout 0.5"),
        "linear 200 10",
    ],
    "E": ["linear 784 200", "relu", "linear 200 200", "relu", "linear 200 10"],
}


def describe(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d):
        return f"conv {layer.out_channels} {layer.kernel_size[0]} {layer.stride[0]}"
    if isinstance(layer, nn.Linear):
        return f"linear {layer.in_features} {layer.out_features}"
    if isinstance(layer, nn.Dropout):
        return f"dropout {layer.p}"
    return {nn.ReLU: "relu", nn.MaxPool2d: "pool"}[type(layer)]


@pytest.mark.parametrize("name", TABLES)
def test_the_layers_of_the_tables(name: str) -> None:
    model = ConvNet({"MagNet": MAGNET, **SUBSTITUTES}[name])
    assert [describe(layer) for layer in (*model.features, *model.head)] == TABLES[name]
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_dropout_is_for_training_alone() -> None:
    model = ConvNet(SUBSTITUTES["D"])
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(model(x), model(x))
    model.set_parts_training(True)
    assert not torch.equal(model.training_logits(x), model.training_logits(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_dropout": 1.0}, "`hidden_dropout` to be at least 0 and below 1, but got 1.0"),
        ({"convolutions": (Conv(4, 40),), "pooled": ()}, r"which they turn into \(4, -11, -11\)"),
        ({"input_shape": (1, 8, 8)}, r"that the convolutions fit, but got \(1, 8, 8\)"),
    ],
)
def test_impossible_layers(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvNetConfig(**settings)
