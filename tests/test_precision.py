"""Inference in single precision: under autocast, with half weights, and whatever torch's defaults are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust import GenerativeClassifier, Purified, as_classifier, load_model, verify
from genrobust._precision import without_autocast
from genrobust.capabilities import Encodes, Reconstructs, Samples

Make = Callable[..., Any]
MODELS = (
    "abs",
    "bnn",
    "cnn",
    "conv-net",
    "deep-bayes",
    "eabs",
    "diffusion",
    "flow",
    "gmvae",
    "mlp",
    "pixelcnn",
    "pool-cnn",
    "purified",
    "vade",
)
each_model = pytest.mark.parametrize("name", MODELS)
HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def answers(model: Any, x: Tensor) -> list[Tensor]:
    """Returns everything that a model says about images, through each of its public functions."""
    prediction = model.predict(x)
    found = [model(x), prediction.probabilities, prediction.scores]
    if isinstance(model, GenerativeClassifier):
        found += [model.class_scores(x), model.log_density(x)]
    if isinstance(model, Reconstructs):
        found.append(model.reconstruct(x))
    if isinstance(model, Encodes):
        found.append(model.encode(x, torch.zeros(len(x), dtype=torch.long)))
    if isinstance(model, Samples):
        found.append(model.sample(2, generator=torch.Generator().manual_seed(0)))
    return found


@each_model
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_changes_no_answer(name: str, dtype: torch.dtype, make_model: Make, images: Make) -> None:
    model, x = make_model(name), images(make_model(name), 3)
    expected = answers(make_model(name), x)
    with torch.autocast("cpu", dtype=dtype):
        inside = answers(model, x)
    after = answers(model, x)
    for found in (inside, after):
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one, other)


def test_gradients_under_autocast_are_those_without(make_model: Make, images: Make) -> None:
    x = images(make_model("eabs"), 2)

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(make_model("eabs")(leaf)[:, 0].sum(), leaf)[0]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradient()
    torch.testing.assert_close(inside, gradient(), rtol=1e-4, atol=1e-5)


def test_the_verdict_under_autocast_is_the_one_without(make_model: Make, images: Make) -> None:
    model = make_model("cnn")
    x, y = images(model, 6), torch.arange(6) % model.num_classes
    settings: dict[str, Any] = {"norm": "l2", "epsilon": 3.0}
    expected = verify(model, x, y, x.flip(0), **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = verify(model, x, y, x.flip(0), **settings)
    assert torch.equal(found.distance, expected.distance)
    assert torch.equal(found.success, expected.success)


def test_an_own_network_may_switch_autocast_on_itself() -> None:
    layer = nn.Linear(4, 3)

    def mixed(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x.flatten(1))

    x = torch.rand(2, 1, 2, 2)
    assert as_classifier(mixed, x)(x).dtype == torch.bfloat16


@each_model
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_weights_are_refused_by_name(
    name: str, dtype: torch.dtype, make_model: Make, images: Make
) -> None:
    model = make_model(name)
    x = images(model, 2)
    expected = model(x).detach()
    model.to(dtype)
    message = rf"weights of \w+ in float32 or float64, but got {dtype}.* Call `model.float\(\)`"
    for method in (model, model.predict, getattr(model, "class_scores", model)):
        with pytest.raises(ValueError, match=message):
            method(x)
    torch.testing.assert_close(
        model.float()(x).detach(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max())
    )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_an_own_network_computes_in_its_own_precision(dtype: torch.dtype) -> None:
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).to(dtype), torch.rand(2, 1, 2, 2)
    assert torch.equal(as_classifier(net, x)(x), net(x.to(dtype)))


@each_model
def test_the_default_dtype_changes_no_answer(name: str, make_model: Make, images: Make) -> None:
    x = images(make_model(name), 3)
    expected = answers(make_model(name), x)
    model = make_model(name)
    with default_dtype(torch.float64):
        found = answers(model, x)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@each_model
def test_another_default_device_is_no_place_for_draws(name: str, make_model: Make, images: Make) -> None:
    x = images(make_model(name), 2)
    expected, model = make_model(name)(x), make_model(name)
    with torch.device("meta"):
        found = model(x)
    assert torch.equal(found, expected)


def test_a_loaded_model_is_in_float32_and_leaves_the_generators_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with default_dtype(torch.float64):
        model = load_model("gmvae", dataset="digits")
    assert torch.equal(torch.rand(4), expected)
    assert {value.dtype for value in model.state_dict().values()} <= {torch.float32, torch.int64}


def test_a_function_runs_without_autocast_and_gives_it_back() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not without_autocast(lambda: torch.is_autocast_enabled("cpu"))()
        assert torch.is_autocast_enabled("cpu")


def test_a_purifier_hides_no_half_weights(make_model: Make, images: Make) -> None:
    model = make_model("purified")
    x = images(model, 2)
    model.classifier.half()
    with pytest.raises(ValueError, match="weights of ConvNet"):
        Purified(model.purifier, model.classifier)(x)
