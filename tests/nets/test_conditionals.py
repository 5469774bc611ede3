"""Graphs are valid, and networks see their parents and nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust.nets.conditionals import (
    GRAPHS,
    VAE_CNN,
    VAE_MLP,
    Conditional,
    ConditionalArchitecture,
    Graph,
    ImageConditional,
    graph,
)

SMALL = ConditionalArchitecture(input_shape=(2, 6, 5), latent_dim=3, channels=(4, 5), hidden=(7, 6))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def values(batch: int = 2, classes: int = 4, samples: int = 3) -> dict[str, Tensor]:
    return {
        "x": random(batch, 2, 6, 5),
        "z": random(batch, classes, samples, 3, seed=1),
        "y": torch.eye(classes)[None, :, None],
    }


# Graphs.


def test_the_default_is_the_graph_of_equation_2() -> None:
    assert Graph() == GRAPHS["GF"] == Graph(x=("z", "y"), z=(), y=())


@pytest.mark.parametrize("name", GRAPHS)
def test_names_say_what_a_graph_is(name: str) -> None:
    parents = graph(name).parents
    edges = {frozenset((child, parent)) for child, others in parents.items() for parent in others}
    if len(name) == 3:
        assert parents[name[2].lower()] == ()  # type: ignore[index]
    if name[1] == "B":
        assert edges == {frozenset("xz"), frozenset("zy")}
    elif name != "GF":
        assert edges == {frozenset("xz"), frozenset("zy"), frozenset("xy")}
    assert ("y" in ancestors(parents, "x") or "z" in parents["x"]) == (name[0] == "G" or name == "DFZ")
    assert ("x" in ancestors(parents, "y")) == (name[0] == "D")


def ancestors(parents: dict[Any, tuple[Any, ...]], child: str) -> set[str]:
    found: set[str] = set(parents[child])
    for parent in parents[child]:
        found |= ancestors(parents, parent)
    return found


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ({"x": ("x",)}, r"`x` to list other variables once, but got \('x',\)"),
        ({"y": ("z", "z")}, r"`y` to list other variables once, but got \('z', 'z'\)"),
        ({"z": ("w",)}, r"`z`\[0\] to be one of 'x', 'z', 'y', but got 'w'"),
        ({"x": ("z",), "z": ("y",), "y": ("x",)}, "a graph without a cycle"),
        ({"x": ("z",)}, "`y` to have a parent or a child"),
    ],
    ids=["itself", "twice", "unknown", "cycle", "no class"],
)
def test_impossible_graphs(parents: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph(**parents)


def test_an_unknown_graph_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"out of \['DBX', .*'GFZ'\], but got 'GZF'"):
        graph("GZF")


# Networks.


def test_the_published_sizes() -> None:
    encoder = Conditional(VAE_CNN, ("x", "y"), num_classes=10, outputs=64)
    shapes = [tuple(weight.shape) for weight in encoder.parameters() if weight.ndim > 1]
    assert shapes == [(64, 1, 3, 3), (64, 64, 3, 3), (64, 64, 3, 3), (500, 1024), (500, 10), (64, 500)]
    decoder = ImageConditional(VAE_CNN, ("z", "y"), num_classes=10)
    shapes = [tuple(weight.shape) for weight in decoder.parameters() if weight.ndim > 1]
    assert shapes == [(500, 32), (500, 10), (1024, 500), (64, 64, 3, 3), (64, 64, 3, 3), (64, 1, 3, 3)]
    dense = ImageConditional(VAE_MLP, ("z", "y"), num_classes=10)
    shapes = [tuple(weight.shape) for weight in dense.parameters() if weight.ndim > 1]
    assert shapes == [(500, 32), (500, 10), (500, 500), (784, 500)]


@pytest.mark.parametrize("parents", [("z",), ("y",), ("z", "y"), ("x", "y"), ("x", "z")])
def test_a_conditional_sees_its_parents_alone(parents: Any) -> None:
    network = Conditional(SMALL, parents, num_classes=4, outputs=2)
    given = values()
    expected = network(given)
    for name in given:
        other = {**given, name: given[name] + 1.0}
        assert torch.allclose(network(other), expected) == (name not in parents)


def test_terms_of_the_first_layer_are_one_layer_of_the_joined_parents() -> None:
    network = Conditional(SMALL, ("z", "y"), num_classes=4, outputs=2)
    given = values()
    joined = torch.cat([given["z"], given["y"].expand(2, 4, 3, 4)], dim=3)
    weight = torch.cat([layer.weight for layer in network.inputs.values()], dim=1)
    expected = network.layers(torch.nn.functional.linear(joined, weight, network.inputs["z"].bias))
    torch.testing.assert_close(network(given), expected)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 6, 5), (1, 1, 2), (1, 7, 7)])
@pytest.mark.parametrize("channels", [(), (3,), (4, 3, 2)], ids=len)
def test_images_have_the_shape_that_was_asked_for(shape: Any, channels: Any) -> None:
    arch = ConditionalArchitecture(input_shape=shape, latent_dim=3, channels=channels, hidden=(5,))
    decoder = ImageConditional(arch, ("z",), num_classes=2)
    assert decoder({"z": random(2, 4, 3, 3)}).shape == (2, 4, 3, *shape)
    encoder = Conditional(arch, ("x",), num_classes=2, outputs=6)
    assert encoder({"x": random(2, *shape)}).shape == (2, 1, 1, 6)


@pytest.mark.parametrize("sizes", [{"hidden": ()}, {"latent_dim": 0}, {"channels": (0,)}])
def test_impossible_sizes(sizes: Any) -> None:
    with pytest.raises(
        ValueError, match=r"`(latent_dim|channels)`.* to be at least 1|at least one size in `hidden`"
    ):
        ConditionalArchitecture(**sizes)
