"""What `verify`, `run_autoattack` and `attack_every_class` take, and what each of them says of the rest."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genrobust import (
    AutoAttackBudget,
    Classifier,
    attack_every_class,
    load_dataset,
    load_model,
    run_autoattack,
    verify,
)
from genrobust.adapters.contract import available
from genrobust.verification import check_epsilon, largest_distance, without_loss_gradient

COUNT, CLASSES = 4, 3
BUDGET = AutoAttackBudget(n_iter=2, n_queries=2)


class Corners(Classifier):
    """Three classes by the brightest of three corners, counting what it is asked."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 4, 4), num_classes=CLASSES)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.asked = 0

    def logits(self, x: Tensor) -> Tensor:
        self.asked += 1
        return self.scale * torch.stack([x[:, 0, 0, 0], x[:, 0, 0, 3], x[:, 0, 3, 0]], 1)


def batch(count: int = COUNT) -> tuple[Tensor, Tensor]:
    y = torch.arange(count) % CLASSES
    x = torch.full((count, 1, 4, 4), 0.2)
    rows = torch.arange(count)
    x[rows, 0, torch.tensor([0, 0, 3])[y], torch.tensor([0, 3, 0])[y]] = 0.5
    return x, y


def by_verify(model: Any, x: Any, y: Any, **settings: Any) -> Any:
    return verify(model, x, y, x.clone(), **settings)


def by_autoattack(model: Any, x: Any, y: Any, **settings: Any) -> Any:
    return run_autoattack(model, x, y, attacks=["apgd-ce"], budget=BUDGET, **settings)


def by_every_class(model: Any, x: Any, y: Any, **settings: Any) -> Any:
    return attack_every_class(model, x, y, lambda _: x.clone(), **settings)


AUTOATTACK = pytest.mark.skipif("robustbench" not in available(), reason="AutoAttack is not installed")
DOORS = pytest.mark.parametrize(
    "door", [by_verify, pytest.param(by_autoattack, marks=AUTOATTACK), by_every_class]
)
Door = Callable[..., Any]


def one_hot(y: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.eye(CLASSES, dtype=dtype)[y]


BAD_LABELS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "one-hot floats": (
        lambda y: one_hot(y, torch.float32),
        r"`labels` of shape \(4,\).*argmax\(1\) of one-hot",
    ),
    "one-hot integers": (
        lambda y: one_hot(y, torch.long),
        r"`labels` of shape \(4,\).*argmax\(1\) of one-hot",
    ),
    "one too many": (lambda y: y.repeat(2)[:5], r"`labels` of shape \(4,\), but got \(5,\)"),
    "a column": (lambda y: y[:, None], r"`labels` of shape \(4,\), but got \(4, 1\)"),
    "one number": (lambda y: y[0], r"`labels` of shape \(4,\), but got \(\)"),
    "floats": (lambda y: y.float(), "`labels` to have an integer dtype, but got torch.float32"),
    "halves": (lambda y: y.half(), "`labels` to have an integer dtype, but got torch.float16"),
    "truth values": (lambda y: y.bool(), "`labels` to have an integer dtype, but got torch.bool"),
    "negative": (lambda y: torch.full_like(y, -100), r"`labels` in 0\.\.2, but got -100 to -100"),
    "K": (lambda y: y + 1, r"`labels` in 0\.\.2, but got 1 to 3"),
    "another device": (lambda y: y.to("meta"), "`labels` on cpu, where the images are, but got meta"),
    "an array": (lambda y: y.numpy(), "`labels` to be a torch.Tensor, but got ndarray"),
    "a list": (lambda y: y.tolist(), "`labels` to be a torch.Tensor, but got list"),
    "nothing": (lambda _: None, "`labels` to be a torch.Tensor, but got NoneType"),
}


@DOORS
@pytest.mark.parametrize("name", BAD_LABELS)
@pytest.mark.usefixtures("unchecked_types")
def test_labels_that_are_no_classes_are_named_before_anything_runs(door: Door, name: str) -> None:
    (change, message), model, (x, y) = BAD_LABELS[name], Corners(), batch()
    with pytest.raises((ValueError, TypeError), match=message):
        door(model, x, change(y), norm="linf", epsilon=0.1)
    assert not model.asked


@DOORS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_of_any_width_are_labels(door: Door, dtype: torch.dtype) -> None:
    x, y = batch()
    door(Corners(), x, y.to(dtype), norm="linf", epsilon=0.1)


@pytest.mark.usefixtures("unchecked_types")
def test_as_many_images_as_classes_and_one_hot_labels_are_not_broadcast() -> None:
    x, y = batch(CLASSES)
    with pytest.raises(ValueError, match="one-hot"):
        verify(Corners(), x, one_hot(y, torch.float32), x, norm="linf", epsilon=0.1)


BAD_RADII = [
    (math.nan, "above 0 and finite, but got nan"),
    (math.inf, "above 0 and finite, but got inf"),
    (-0.1, "above 0 and finite, but got -0.1"),
    (0, "above 0 and finite, but got 0"),
    (8, r"at most 1, the largest linf distance.*but got 8: did you mean 8/255\?"),
    (300.0, r"at most 1, the largest linf distance.*but got 300$"),
    (True, "one number, but got a bool: True"),
    ("8/255", "one number, but got a str: '8/255'"),
    ([0.1, 0.3], r"one number, but got a list: \[0.1, 0.3\]"),
    (np.array([0.1, 0.3]), "one number, but got a ndarray"),
    (0.1j, "one number, but got a complex"),
]


@DOORS
@pytest.mark.parametrize(("epsilon", "message"), BAD_RADII)
@pytest.mark.usefixtures("unchecked_types")
def test_a_radius_that_is_none_is_named_before_anything_runs(door: Door, epsilon: Any, message: str) -> None:
    model, (x, y) = Corners(), batch()
    with pytest.raises(ValueError, match=f"`epsilon`.*{message}"):
        door(model, x, y, norm="linf", epsilon=epsilon)
    assert not model.asked


@DOORS
@pytest.mark.parametrize("epsilon", [np.float32(0.1), np.float64(0.1), np.int64(1), 1])
@pytest.mark.usefixtures("unchecked_types")
def test_numbers_of_numpy_are_radii(door: Door, epsilon: Any) -> None:
    x, y = batch()
    door(Corners(), x, y, norm="linf", epsilon=epsilon)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_largest_radius_is_the_distance_of_black_to_white(norm: Any) -> None:
    from genrobust.verification import distance

    shape = (3, 4, 5)
    largest = largest_distance(norm, shape)
    assert largest == pytest.approx(float(distance(torch.ones(1, *shape), norm)))
    assert check_epsilon(largest, norm=norm, input_shape=shape) == largest
    with pytest.raises(ValueError, match=f"the largest {norm} distance"):
        check_epsilon(1.01 * largest, norm=norm, input_shape=shape)


@DOORS
@pytest.mark.parametrize("norm", ["L2", "l∞", "", None, 2])
@pytest.mark.usefixtures("unchecked_types")
def test_norms_that_are_none_are_named(door: Door, norm: Any) -> None:
    model, (x, y) = Corners(), batch()
    with pytest.raises(ValueError, match="`norm` out of"):
        door(model, x, y, norm=norm, epsilon=0.1)
    assert not model.asked


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        (torch.ones(2, COUNT).bool(), r"`claimed` of shape \(4,\) and dtype torch.bool, but got \(2, 4\)"),
        (torch.ones(COUNT + 1).bool(), r"but got \(5,\) and torch.bool"),
        (torch.ones(COUNT), r"but got \(4,\) and torch.float32"),
        (torch.ones(COUNT).long(), r"but got \(4,\) and torch.int64"),
        (torch.ones(COUNT, device="meta").bool(), "`claimed` on cpu"),
        (True, "`claimed` to be a torch.Tensor, but got bool"),
        ([True] * COUNT, "`claimed` to be a torch.Tensor, but got list"),
        ("yes", "`claimed` to be a torch.Tensor, but got str"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_claims_are_one_truth_value_per_image(claimed: Any, message: str) -> None:
    x, y = batch()
    with pytest.raises((ValueError, TypeError), match=message):
        verify(Corners(), x, y, x, norm="linf", epsilon=0.1, claimed=claimed)


@DOORS
def test_norm_and_radius_are_given_by_name(door: Door) -> None:
    x, y = batch()
    function = {by_verify: verify, by_autoattack: run_autoattack, by_every_class: attack_every_class}[door]
    extra = () if door is by_autoattack else (x,) if door is by_verify else (lambda _: x,)
    with pytest.raises(TypeError, match="positional argument"):
        function(Corners(), x, y, *extra, "linf", 0.1)  # type: ignore[operator]


@DOORS
@pytest.mark.parametrize("seed", [-1, 1.5, "a", None, True, 10**30, math.nan])
def test_seeds_that_are_none_are_named_before_anything_runs(door: Door, seed: Any) -> None:
    model, (x, y) = Corners(), batch()
    with pytest.raises(ValueError, match="`seed` to be"):
        door(model, x, y, norm="linf", epsilon=0.1, seed=seed)
    assert not model.asked


@DOORS
@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), 3.0])
@pytest.mark.usefixtures("unchecked_types")
def test_numbers_of_numpy_are_seeds(door: Door, seed: Any) -> None:
    x, y = batch()
    verdicts = [
        getattr(found, "verification", found[1] if isinstance(found, tuple) else found)
        for found in (door(Corners(), x, y, norm="linf", epsilon=0.4, seed=number) for number in (3, seed))
    ]
    assert torch.equal(verdicts[0].images, verdicts[1].images)
    assert torch.equal(verdicts[0].success, verdicts[1].success)


@pytest.mark.parametrize("draws", [0, 1.5, "a", None, True])
def test_draws_that_are_none_are_named(draws: Any) -> None:
    x, y = batch()
    with pytest.raises(ValueError, match="`draws` to be"):
        verify(Corners(), x, y, x, norm="linf", epsilon=0.1, draws=draws)


@pytest.mark.usefixtures("unchecked_types")
def test_adversarial_images_that_are_no_tensor_are_named() -> None:
    x, y = batch()
    with pytest.raises(TypeError, match=r"`adversarial` to be a .*, but got ndarray"):
        verify(Corners(), x, y, x.numpy(), norm="linf", epsilon=0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`attack` to be a function, but got Tensor"):
        attack_every_class(Corners(), x, y, x, norm="linf", epsilon=0.1)  # type: ignore[arg-type]


@DOORS
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_door_works_where_gradients_are_off(door: Door, mode: Any) -> None:
    model = Corners()
    x, y = batch()
    expected = door(model, x, y, norm="linf", epsilon=0.4)
    with mode():
        images, labels = x.clone(), y.clone()  # tensors of inference mode, which autograd does not take
        found = door(model, images, labels, norm="linf", epsilon=0.4)
    verdicts = [getattr(f, "verification", f[1] if isinstance(f, tuple) else f) for f in (found, expected)]
    assert torch.equal(verdicts[0].success, verdicts[1].success)
    assert torch.equal(verdicts[0].zero_gradient, verdicts[1].zero_gradient)
    assert not verdicts[0].zero_gradient.any()


# Precision.


@AUTOATTACK
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_autoattack_keeps_its_successes_on_images_of_any_precision(dtype: torch.dtype) -> None:
    x, y = load_dataset("digits", "test").batch(slice(8))
    model = load_model("cnn", dataset="digits")
    budget = AutoAttackBudget(n_iter=5)
    result = run_autoattack(model, x.to(dtype), y, epsilon=0.2, attacks=["apgd-ce"], budget=budget)
    assert result.images.dtype == torch.float32
    assert result.robust_accuracy == result.verified_robust_accuracy == 0
    assert not result.verification.outside_ball.any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_rounding_of_half_precision_puts_nothing_outside_of_the_ball(
    dtype: torch.dtype, norm: Any
) -> None:
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    step = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign()
    x_adv = (x + step.to(dtype)).clamp(0, 1)
    epsilon = {"linf": 0.1, "l2": 0.8, "l1": 6.4}[norm]

    class Any8(Corners):
        def __init__(self) -> None:
            super().__init__()
            self.input_shape = (1, 8, 8)

    y = Any8().predict(x).labels
    found = verify(Any8(), x, y, x_adv, norm=norm, epsilon=epsilon)
    assert not found.outside_ball.any()
    assert (found.distance <= epsilon * (1 + 1e-4)).all()
    beyond = verify(Any8(), x, y, (x + 1.5 * step.to(dtype)), norm=norm, epsilon=epsilon)
    assert beyond.outside_ball[beyond.valid].all()


def test_single_precision_is_not_pulled_back() -> None:
    x, y = batch()
    found = verify(Corners(), x, y, x + 0.1002, norm="linf", epsilon=0.1)
    assert found.outside_ball.all()
    assert torch.equal(found.images, x + 0.1002)


# Gradients that vanish by size.


@pytest.mark.parametrize(("scale", "vanished"), [(1.0, False), (1e-6, False), (1e-12, True), (0.0, True)])
def test_a_gradient_vanishes_by_its_size(scale: float, vanished: bool) -> None:
    model, (x, y) = Corners(), batch()
    with torch.no_grad():
        model.scale.fill_(scale)
    assert (without_loss_gradient(model, x, y) == vanished).all()
    assert (verify(model, x, y, x, norm="linf", epsilon=0.1).zero_gradient == vanished).all()
