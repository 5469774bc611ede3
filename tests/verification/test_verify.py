import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from genrobust import Classifier, attack_every_class, verify
from genrobust.contract import NO_PREDICTION
from genrobust.inference import InferenceBudget
from genrobust.verification import distance, fresh_variant, reach

Make = Callable[..., Any]


class Brightness(Classifier):
    """Two classes, dark and bright, around 0.5; optionally refuses within 0.1 of it."""

    def __init__(self, *, rejects: bool = False) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=2)
        self.rejects = rejects
        self.scale = nn.Parameter(torch.tensor([[-10.0, 10.0, 0.0][: self.num_columns]]))

    def logits(self, x: Tensor) -> Tensor:
        offset = torch.tensor([0.0, 0.0, 1.0][: self.num_columns])
        return self.scale * (x.flatten(1).mean(1, keepdim=True) - 0.5) + offset


def gray(*levels: float) -> Tensor:
    return torch.tensor(levels)[:, None, None, None].repeat(1, 1, 2, 2)


DARK = torch.zeros(1, dtype=torch.long)


def flags(
    model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, norm: Any, epsilon: float | None
) -> set[str]:
    found = verify(model, x, y, x_adv, norm=norm, epsilon=epsilon)
    return {name for name, flag in found.flags.items() if flag.all()}


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0.7, set()),
        (0.3, {"unchanged"}),
        (0.4, set()),
        (0.0, {"black"}),
        (math.nan, {"not_finite", "outside_ball"}),
        (math.inf, {"not_finite", "outside_ball"}),
        (1.1, {"outside_range", "outside_ball"}),
        (0.9, {"outside_ball", "fell"}),
    ],
)
def test_each_flag_is_raised_by_what_it_names_and_by_nothing_else(level: float, expected: set[str]) -> None:
    assert flags(Brightness(), gray(0.3), DARK, gray(level), "linf", 0.5) == expected


@pytest.mark.parametrize(
    ("level", "success"), [(0.7, True), (0.4, False), (0.9, False), (1.1, False), (math.nan, False)]
)
def test_only_a_wrong_image_within_the_ball_succeeds(level: float, success: bool) -> None:
    found = verify(
        Brightness(), gray(0.3), DARK, gray(level), norm="linf", epsilon=0.5, claimed=torch.ones(1).bool()
    )
    assert found.success.item() is success
    assert found.fell.item() is not success


def test_a_claim_that_falls_is_told() -> None:
    claimed = torch.tensor([True, True, False])
    found = verify(
        Brightness(),
        gray(0.3, 0.3, 0.3),
        DARK.repeat(3),
        gray(0.6, 0.4, 0.4),
        norm="l2",
        epsilon=2.0,
        claimed=claimed,
    )
    assert found.success.tolist() == [True, False, False]
    assert found.fell.tolist() == [False, True, False]
    assert str(found) == "1 of 3 succeeded, 2 claimed, 1 fell"


@pytest.mark.parametrize(("epsilon", "success"), [(None, False), (0.9, True), (0.5, False)])
def test_a_black_image_succeeds_only_within_a_ball(epsilon: float | None, success: bool) -> None:
    """Attacks that found nothing return it, and a model errs on it more often than not."""
    bright = torch.ones(1, dtype=torch.long)
    found = verify(Brightness(), gray(0.8), bright, gray(0.0), norm="linf", epsilon=epsilon)
    assert found.black.all()
    assert found.claimed.all()
    assert found.success.item() is success


def test_rejected_is_no_success() -> None:
    model = Brightness(rejects=True)
    found = verify(model, gray(0.3, 0.3), DARK.repeat(2), gray(0.55, 0.8), norm="linf", epsilon=None)
    assert found.prediction.tolist() == [2, 1]
    assert found.rejected.tolist() == [True, False]
    assert found.success.tolist() == found.claimed.tolist() == [False, True]


def test_a_black_image_of_a_black_image_is_unchanged_only() -> None:
    assert flags(Brightness(), gray(0.0), DARK, gray(0.0), "l2", 1.0) == {"unchanged"}


class Masked(Classifier):
    """Decides by a step function: no gradient, or a constant output that does not depend on the image."""

    def __init__(self, *, connected: bool) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=2)
        self.connected = connected
        self.bias = nn.Parameter(torch.zeros(2))

    def logits(self, x: Tensor) -> Tensor:
        bright = (x.flatten(1).mean(1, keepdim=True) > 0.5).float()
        logits = self.bias + torch.cat([1 - bright, bright], 1)
        return logits + 0 * x.flatten(1)[:, :1] if self.connected else logits


@pytest.mark.parametrize("connected", [True, False])
def test_a_masked_gradient_is_told(connected: bool) -> None:
    model = Masked(connected=connected)
    assert flags(model, gray(0.3), DARK, gray(0.7), "linf", 0.5) == {"zero_gradient"}


def test_a_model_whose_weights_are_frozen_still_has_its_gradient() -> None:
    assert not flags(Brightness().requires_grad_(False), gray(0.3), DARK, gray(0.7), "linf", 0.5)


def test_no_image_is_never_shown_to_the_model() -> None:
    x_adv = torch.cat([gray(0.7), gray(math.nan), gray(5.0)])
    found = verify(Brightness(), gray(0.3, 0.3, 0.3), DARK.repeat(3), x_adv, norm="linf", epsilon=None)
    assert found.prediction.tolist() == [1, NO_PREDICTION, NO_PREDICTION]
    assert found.distance[1] == math.inf


def test_float64_and_an_empty_batch() -> None:
    found = verify(Brightness(), gray(0.3), DARK, gray(0.7).double(), norm="l1", epsilon=2.0)
    assert found.success.all()
    empty = verify(Brightness(), gray(0.3)[:0], DARK[:0], gray(0.7)[:0], norm="l2", epsilon=1.0)
    assert empty.success.shape == (0,)


# Fresh randomness.


def test_the_judge_draws_anew_and_searches_elsewhere(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    x = images(model, 3)
    judge = fresh_variant(model, seed=1, codebook_seed=2)
    assert not torch.equal(judge(x), judge(x))
    again = fresh_variant(model, seed=1, codebook_seed=2)
    assert torch.equal(again(x), fresh_variant(model, seed=1, codebook_seed=2)(x))
    assert judge.budget.seed != model.budget.seed
    cnn = make_model("cnn")
    assert fresh_variant(cnn, seed=1, codebook_seed=2) is cnn


def test_the_verdict_replays_no_draw_of_an_attack(make_model: Make, images: Make) -> None:
    model = make_model("eabs", inference=InferenceBudget(candidates=0, steps=0))
    x = images(model, 200)
    attacked = model.with_randomness("fresh", seed=0)(x).argmax(1)
    repeated = fresh_variant(model, seed=0, codebook_seed=2)(x).argmax(1)
    assert torch.equal(attacked, repeated), "one seed, two streams: nothing is tested"
    assert not torch.equal(verify(model, x, attacked, x, norm="l2", epsilon=1.0).prediction, attacked)


def test_a_bayesian_network_is_judged_by_draws_that_no_attack_has_seen(
    make_model: Make, images: Make
) -> None:
    model = make_model("bnn", samples=1)
    x = images(model, 200)
    attacked = model(x).argmax(1)
    verdicts = [
        verify(model, x, attacked, x, norm="l2", epsilon=1.0, seed=seed).prediction for seed in (0, 0, 1)
    ]
    assert torch.equal(verdicts[0], verdicts[1])
    assert not torch.equal(verdicts[0], verdicts[2])
    assert not torch.equal(verdicts[0], attacked)


def test_an_example_of_the_fixed_noise_alone_falls(make_model: Make, images: Make) -> None:
    """Images that the attacked variant labels otherwise, and most fresh draws do not: masked randomness."""
    model = make_model("eabs")
    x = images(model, 200)
    fresh = torch.stack([fresh_variant(model, seed=s, codebook_seed=2)(x).argmax(1) for s in range(9)])
    usual = fresh.mode(0).values
    odd = (model(x).argmax(1) != usual) & ((fresh == usual).float().mean(0) > 0.8)
    assert odd.any(), "no such image: nothing is tested"
    found = verify(model, x[odd], usual[odd], x[odd], norm="l2", epsilon=1.0)
    assert found.claimed.all()
    assert found.fell.any()


@pytest.mark.parametrize("name", ["cnn", "abs", "eabs"])
def test_a_verdict_repeats_and_leaves_the_model_alone(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x, x_adv = images(model, 5), images(model, 5, seed=1)
    y, state = model(x).argmax(1), torch.random.get_rng_state()
    first, second = (verify(model, x, y, x_adv, norm="linf", epsilon=0.9999, seed=3) for _ in range(2))
    assert torch.equal(first.prediction, second.prediction)
    assert torch.equal(first.success, first.prediction != y)
    assert not first.zero_gradient.any()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


# Distances.


@given(st.integers(0, 2**16))
def test_distances_are_numpys(seed: int) -> None:
    delta = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    delta[1, :, 1:, :] = 0
    flat = delta.double().flatten(1)
    torch.testing.assert_close(distance(delta, "linf"), flat.abs().amax(1))
    torch.testing.assert_close(distance(delta, "l2"), flat.square().sum(1).sqrt())
    torch.testing.assert_close(distance(delta, "l1"), flat.abs().sum(1))
    assert distance(delta, "l0").tolist() == [16, 4, 16]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_far(norm: Any, bad: float) -> None:
    delta = torch.zeros(2, 1, 2, 2)
    delta[0, 0, 0, 0] = bad
    assert distance(delta, norm).tolist() == [math.inf, 0]


def test_rounding_does_not_put_an_image_outside_of_the_ball() -> None:
    assert 0.1 * (1 + 5e-5) < reach(0.1) < 0.1 * (1 + 2e-4)


# Bad input.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": gray(255.0)}, "but got a maximum of 255: divide by 255"),
        ({"adversarial": gray(0.7, 0.7)}, r"`adversarial` of shape \(1, 1, 2, 2\), but got \(2, 1, 2, 2\)"),
        ({"adversarial": gray(1.0).int()}, "`adversarial` to have a floating dtype"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_input(change: dict[str, Any], message: str) -> None:
    good = {"images": gray(0.3), "labels": DARK, "adversarial": gray(0.7), "norm": "linf", "epsilon": 0.5}
    with pytest.raises(ValueError, match=message):
        verify(Brightness(), **{**good, **change})


# The route through a rejection.


class Bands(Classifier):
    """Three classes by brightness, around 0, 0.5 and 1; the column "reject" wins between the bands."""

    rejects = True

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=3)
        self.centres = nn.Parameter(torch.tensor([[0.0, 0.5, 1.0]]))

    def logits(self, x: Tensor) -> Tensor:
        away = (x.flatten(1).mean(1, keepdim=True) - self.centres).square()
        return torch.cat([-away, torch.full_like(away[:, :1], -0.01)], 1)


def test_every_class_is_tried_and_the_closest_example_kept() -> None:
    x, y, asked = gray(0.0, 0.45, 1.0), torch.tensor([0, 1, 2]), []

    def attack(targets: Tensor) -> Tensor:
        asked.append(targets)
        return gray(0.0, 0.5, 1.0)[targets]

    best, found = attack_every_class(Bands(), x, y, attack, norm="l2", epsilon=1.9)
    assert torch.equal(torch.stack(asked).sort(0).values, torch.tensor([[1, 0, 0], [2, 2, 1]]))
    assert found.success.all()
    assert found.prediction.tolist() == [1, 0, 1]
    assert torch.equal(best, gray(0.5, 0.0, 0.5))
    again = verify(Bands(), x, y, best, norm="l2", epsilon=1.9)
    assert torch.equal(found.distance, again.distance)


def test_examples_that_are_rejected_or_too_far_are_not_kept() -> None:
    def attack(targets: Tensor) -> Tensor:
        return torch.where(targets[:, None, None, None] == 1, gray(0.25), gray(1.0))

    _, found = attack_every_class(Bands(), gray(0.0), DARK, attack, norm="linf", epsilon=0.6)
    assert not found.success.any()
    assert found.rejected.all()


@pytest.mark.parametrize("name", ["abs", "eabs"])
def test_the_judge_starts_cold(name: str, make_model: Make, images: Make) -> None:
    """What an attack has left in a warm start is not to decide its verdict."""
    model = make_model(name)
    warm, x = model.with_inference(warm_start=True), images(model, 6)
    for _ in range(3):
        warm.class_scores(x)
    judge, expected = (fresh_variant(m, seed=3, codebook_seed=4) for m in (warm, model))
    assert not judge.budget.warm_start
    for _ in range(2):
        assert torch.equal(judge.class_scores(x), expected.class_scores(x))
    assert warm.budget.warm_start  # the attacked model keeps its own
    y = model.predict(x).labels
    verdicts = [verify(m, x, y, (x + 0.1).clamp(0, 1), norm="linf", epsilon=0.2) for m in (warm, model)]
    assert torch.equal(verdicts[0].prediction, verdicts[1].prediction)


def test_a_plain_attack_stops_at_the_rejection_and_the_route_does_not() -> None:
    """Gradient descent to the nearest decision that is not y ends in "reject"."""
    model, x = Bands(), gray(0.05)

    def descend(loss: Callable[[Tensor], Tensor], done: Callable[[Tensor], bool]) -> Tensor:
        x_adv = x.clone()
        for _ in range(200):
            if done(model(x_adv).argmax(1)):
                break
            leaf = x_adv.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(model(leaf)), leaf)
            x_adv = (x_adv - 0.01 * gradient.sign()).clamp(0, 1)
        return x_adv

    plain = descend(lambda logits: logits[0, 0], lambda label: bool((label != 0).all()))
    assert verify(model, x, DARK, plain, norm="linf", epsilon=0.6).rejected.all()

    def targeted(targets: Tensor) -> Tensor:
        return descend(
            lambda logits: nn.functional.cross_entropy(logits, targets),
            lambda label: torch.equal(label, targets),
        )

    _, found = attack_every_class(model, x, DARK, targeted, norm="linf", epsilon=0.6)
    assert found.success.all()
    assert found.prediction.item() == 1
