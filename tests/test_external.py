"""Anybody's module or function as a classifier."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import genrobust
from genrobust import Classifier
from genrobust.adapters.contract import available
from genrobust.external import as_classifier, check_classifier

Make = Callable[..., Any]


@pytest.fixture
def images() -> Tensor:
    return torch.rand((6, 1, 4, 4), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def linear() -> nn.Module:
    """A linear network in training mode, whose dropout would show."""
    layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3))
    nn.init.normal_(layers[2].weight, generator=torch.Generator().manual_seed(1))
    return layers.train()


def logits_of(linear: nn.Module, x: Tensor) -> Tensor:
    layer = linear.get_submodule("2")
    return x.flatten(1) @ layer.get_parameter("weight").T + layer.get_parameter("bias")


def test_a_module_says_its_own_shapes(linear: nn.Module, images: Tensor) -> None:
    model = as_classifier(linear, images)
    assert (model.input_shape, model.num_classes, model.randomized) == ((1, 4, 4), 3, False)
    torch.testing.assert_close(model(images), logits_of(linear, images))
    assert as_classifier(model, images) is model


@pytest.mark.parametrize("door", ["verify", "attack_every_class", "run_autoattack"])
def test_a_bare_module_is_judged(linear: nn.Module, images: Tensor, door: str) -> None:
    labels = logits_of(linear, images).argmax(1)
    weight = linear.get_submodule("2").get_parameter("weight")
    least = (weight[labels] - weight[logits_of(linear, images).argmin(1)]).view_as(images).detach()
    moved = (images - 0.5 * least.sign()).clamp(0, 1)
    fooled = logits_of(linear, moved).argmax(1) != labels
    assert fooled.any()
    if door == "verify":
        found = genrobust.verify(linear, images, labels, moved, norm="linf", epsilon=0.5)
    elif door == "attack_every_class":
        _, found = genrobust.attack_every_class(
            linear, images, labels, lambda _: moved, norm="linf", epsilon=0.5
        )
    else:
        pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")
        budget = genrobust.AutoAttackBudget(n_iter=20)
        result = genrobust.run_autoattack(
            linear, images, labels, epsilon=0.5, attacks=["apgd-ce"], budget=budget
        )
        assert result.verification.success[fooled].all()
        return
    assert torch.equal(found.success, fooled)
    assert torch.equal(found.right_first, torch.ones_like(fooled))


def test_a_function_is_judged(images: Tensor) -> None:
    model = as_classifier(lambda x: x.flatten(1)[:, :3], images)
    assert torch.equal(model(images), images.flatten(1)[:, :3])


def test_parts_keep_the_mode_that_they_had(linear: nn.Module, images: Tensor) -> None:
    linear[0].eval()  # type: ignore[index]
    genrobust.verify(linear, images, torch.zeros(6, dtype=torch.int16), images, norm="linf", epsilon=0.5)
    assert [part.training for part in linear.modules()] == [True, False, True, True]

    class Failing(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            raise KeyError("mine")

    failing = Failing().train()
    with pytest.raises(KeyError):
        as_classifier(failing, images)
    assert failing.training


def test_a_module_that_writes_into_its_input_gets_a_copy(images: Tensor) -> None:
    before = images.clone()
    model = as_classifier(lambda x: x.mul_(0.5).flatten(1)[:, :3], images)
    leaf = images.clone().requires_grad_()
    answer = model(leaf)
    (gradient,) = torch.autograd.grad(answer.sum(), leaf)
    assert torch.equal(images, before)
    assert torch.equal(answer, 0.5 * before.flatten(1)[:, :3])
    assert torch.equal(gradient.flatten(1), torch.tensor([0.5] * 3 + [0.0] * 13).expand(6, 16))


@pytest.mark.parametrize(
    ("model", "pictures", "message"),
    [
        (nn.Flatten(), torch.rand(2, 4, 4), r"`images` of shape \(B, C, H, W\), but got \(2, 4, 4\)"),
        (nn.Flatten(), torch.rand(0, 1, 4, 4), r"`images` of shape .*, but got \(0, 1, 4, 4\)"),
        (nn.Flatten(), torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "divide by 255"),
        (nn.Flatten(), torch.full((2, 1, 4, 4), 9.0), "divide by 255"),
        (nn.Identity(), torch.rand(2, 1, 4, 4), r"logits of shape \(2, classes\), but got \(2, 1, 4, 4\)"),
        (lambda x: {"logits": x}, torch.rand(2, 1, 4, 4), "logits of shape .*, but got dict"),
        (lambda x: x.flatten(1)[:1], torch.rand(2, 1, 4, 4), r"logits of shape .*, but got \(1, 16\)"),
    ],
    ids=["one image", "no image", "8 bit", "not scaled", "no logits", "a dictionary", "too few rows"],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_classifier_of_images_is_named(model: Any, pictures: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_classifier(model, pictures)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("thing", [None, "cnn", 3])
def test_what_cannot_be_called_is_named(thing: Any, images: Tensor) -> None:
    with pytest.raises(TypeError, match="`model` to be a module or a function, but got"):
        as_classifier(thing, images)
    with pytest.raises(TypeError, match=f"to be a Classifier, but got {type(thing).__name__}$"):
        check_classifier(thing)
    with pytest.raises(TypeError, match=r"`images` to be a torch\.Tensor, but got list"):
        as_classifier(nn.Flatten(), [])  # type: ignore[arg-type]


@pytest.mark.parametrize("adapter", sorted(available()))
def test_a_wrapper_says_how_a_module_becomes_a_classifier(adapter: str, linear: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"but got Sequential: genrobust.as_classifier\(model, images\)"):
        available()[adapter].load().wrap(linear)  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "thing", [None, "cnn", nn.Linear, lambda x: x], ids=["nothing", "a name", "a class", "a function"]
)
@pytest.mark.parametrize("adapter", sorted(available()))
def test_what_no_wrapper_takes_is_named(adapter: str, thing: Any) -> None:
    with pytest.raises(TypeError, match=f"`model` to be a Classifier, but got {type(thing).__name__}"):
        available()[adapter].load().wrap(thing)


@pytest.mark.parametrize("around", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_torchs_own_wrappers_are_seen_through(around: Callable[..., Any], make_model: Make) -> None:
    model = make_model("cnn")
    wrapped = around(model)
    assert check_classifier(wrapped) is model
    assert as_classifier(wrapped, torch.rand(1, *model.input_shape)) is model
    for adapter in available().values():
        assert adapter.load().wrap(wrapped) is not None
    assert isinstance(check_classifier(wrapped), Classifier)
