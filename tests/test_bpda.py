"""What stops a gradient in somebody else's module, and the backward pass that goes on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genrobust import as_classifier
from genrobust.gradients import NothingStops

IMAGES = torch.rand((3, 1, 4, 4), generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.randn((16, 3), generator=torch.Generator().manual_seed(1))


def linear(x: Tensor) -> Tensor:
    return x.flatten(1) @ WEIGHTS.to(x)


def without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        return 1 * x


def written_into(x: Tensor) -> Tensor:
    copy = x.detach()
    copy *= 0.5
    return 2 * copy


def measured(x: Tensor) -> Tensor:
    return x.detach() * (1 if float(x.detach().max()) > 2 or x.detach().sum().item() < 0 else 2) / 2


STOPPING: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "no_grad": without_gradients,
    "in place": written_into,
    "rounding": lambda x: (100 * x).round() / 100,
    "floor": lambda x: torch.floor(100 * x) / 100,
    "scalars": measured,
}


@pytest.mark.parametrize("name", STOPPING)
def test_what_stops_a_gradient_passes_it_on_as_the_identity(name: str) -> None:
    def module(x: Tensor) -> Tensor:
        return linear(STOPPING[name](x))

    model = as_classifier(module, IMAGES)
    assert model.gradients == ("exact", "bpda")
    x = IMAGES.clone().requires_grad_()
    logits = model.with_gradient("bpda")(x)
    torch.testing.assert_close(logits.detach(), module(IMAGES.clone()))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    torch.testing.assert_close(gradient.flatten(1), WEIGHTS[:, 1].expand(3, -1))
    assert not x.detach().requires_grad  # outside of the block all is as it was
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("module", [linear, nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Softmax(1))])
def test_a_module_that_stops_nothing_has_one_gradient(module: Callable[[Tensor], Tensor]) -> None:
    model = as_classifier(module, IMAGES)
    assert model.gradients == ()
    assert not model.stops


@pytest.mark.parametrize(
    "module",
    [
        lambda x: linear(torch.from_numpy(x.detach().numpy() * 2)),
        lambda x: linear(nn.Parameter(x.detach()).detach_()),
    ],
)
def test_what_cannot_go_on_has_one_gradient(module: Callable[[Tensor], Tensor]) -> None:
    assert as_classifier(module, IMAGES).gradients == ()


def test_a_verdict_is_that_of_the_module() -> None:
    model = as_classifier(lambda x: linear(x.round()), IMAGES).with_gradient("bpda")
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), linear(IMAGES.round()))
        assert not model(IMAGES).requires_grad


def test_signs_keep_their_values() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    with NothingStops():
        value = x.sign()
    assert value.tolist() == [-1, 0, 1]
    assert torch.autograd.grad(value.sum(), x)[0].tolist() == [1, 1, 1]
