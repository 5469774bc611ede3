"""The one rule, through both of its doors: `verify`, and the cells of a suite."""
# ruff: noqa: E402

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

foolbox = pytest.importorskip("foolbox")  # suites need it, with the rest of the extra `bench`

from genrobust import Classifier, Verification, load_dataset, load_model, verify, wrap_for_foolbox
from genrobust.adapters.contract import Crafted
from genrobust.benchmarks.run.cells import Cell
from genrobust.benchmarks.run.execution import execute
from genrobust.benchmarks.run.tasks import Experiment
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import Attack
from genrobust.contract import NO_PREDICTION
from genrobust.data import ImageDataset
from genrobust.verification import CleanVerdict, judge_examples

Found = Mapping[str, Any]
Door = Callable[..., Found]

FIELDS = ("success", "claimed", "prediction", "rejected", "valid", "zero_gradient")


def by_verify(
    model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, *, epsilon: float | None, claimed: Tensor
) -> Found:
    found = verify(model, x, y, x_adv, norm="l2", epsilon=epsilon, claimed=claimed)
    columns = {name: getattr(found, name).tolist() for name in FIELDS}
    columns["prediction"] = [None if label == NO_PREDICTION else label for label in columns["prediction"]]
    return columns | {f"distance_{norm}": values.tolist() for norm, values in found.distances.items()}


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("digits", "test")


@pytest.fixture(scope="module")
def cnn() -> Classifier:
    return load_model("cnn", dataset="digits")


@pytest.fixture
def by_suite(monkeypatch: pytest.MonkeyPatch) -> Door:
    def run(
        model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, *, epsilon: float | None, claimed: Tensor
    ) -> Found:
        monkeypatch.setattr(
            "genrobust.benchmarks.run.attempts.craft", lambda *_, **__: Crafted(x_adv, claimed)
        )
        attack = Attack(
            key="planted",
            title="planted",
            norm="l2",
            kind="fixed epsilon" if epsilon else "minimal norm",
            name="L2PGD" if epsilon else "L2CarliniWagnerAttack",
        )
        pixels = (255 * x).round().to(torch.uint8)
        assert torch.equal(pixels.float() / 255, x), "the suite's images are 8-bit"
        images = ImageDataset("digits", "test", pixels, y, tuple("0123456789"[: model.num_classes]))
        suite = replace(
            load_suite("digits"), attacks=(attack,), attack_again=0, overshoots=(1.0,), batch_size=len(x)
        )
        experiment = Experiment(suite=suite, dataset=images, samples=np.arange(len(x)), seed=0)
        cell = Cell(model="planted", attack="planted", epsilon=epsilon, batch=0)
        task = experiment.task(cell, clean_predictions=y.numpy())
        columns = execute(task, {"planted": model}).columns
        return {name: list(values) for name, values in columns.items()}

    return run


@pytest.fixture(params=["verify", "suite"])
def door(request: pytest.FixtureRequest, by_suite: Door) -> Door:
    return by_verify if request.param == "verify" else by_suite


class Brightness(Classifier):
    """Two classes, dark and bright, around 0.5; optionally rejects within 0.1 of it, or answers NaN there."""

    def __init__(self, *, rejects: bool = False, answer: float | None = None) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=2)
        self.rejects, self.answer = rejects, answer
        self.scale = nn.Parameter(torch.tensor([[-10.0, 10.0, 0.0][: self.num_columns]]))

    def logits(self, x: Tensor) -> Tensor:
        level = x.flatten(1).mean(1, keepdim=True)
        logits = self.scale * (level - 0.5) + torch.tensor([0.0, 0.0, 1.0][: self.num_columns])
        if self.answer is None:
            return logits
        return torch.where((level - 0.5).abs() < 0.1, self.answer, logits)


def gray(*levels: float) -> Tensor:
    return torch.tensor(levels)[:, None, None, None].repeat(1, 1, 2, 2)


ALL = torch.ones(1, dtype=torch.bool)
DARK, BRIGHT = 0, 1

# clean level, its class, what the attack returned, epsilon in L2 (a level counts twice), success
RULES = [
    pytest.param(0.2, DARK, 0.8, None, True, id="wrong"),
    pytest.param(0.2, DARK, 0.4, None, False, id="right"),
    pytest.param(0.2, DARK, 0.8, 1.5, True, id="wrong, within the ball"),
    pytest.param(0.2, DARK, 0.8, 1.0, False, id="wrong, outside of the ball"),
    pytest.param(0.8, BRIGHT, 0.0, None, False, id="black, without a ball"),
    pytest.param(0.8, BRIGHT, 0.0, 2.0, False, id="black, in a ball of every image"),
    pytest.param(0.8, BRIGHT, 0.0, 1.7, True, id="black, within a ball"),
    pytest.param(0.8, BRIGHT, 0.0, 1.5, False, id="black, outside of the ball"),
    pytest.param(0.2, DARK, 0.0, 0.5, False, id="black and right, within a ball"),
    pytest.param(0.0, BRIGHT, 0.0, 0.5, True, id="a black clean image, always mislabelled"),
    pytest.param(0.8, DARK, 0.8, None, False, id="unchanged and mislabelled, without a ball"),
    pytest.param(0.8, DARK, 0.8, 2.0, False, id="unchanged and mislabelled, in a ball of every image"),
    pytest.param(0.8, DARK, 0.8, 0.5, True, id="unchanged and mislabelled, within a ball"),
    pytest.param(0.2, DARK, 0.2, 0.5, False, id="unchanged and right"),
    pytest.param(0.2, DARK, math.nan, None, False, id="NaN"),
    pytest.param(0.2, DARK, math.nan, 2.0, False, id="NaN, in a ball of every image"),
    pytest.param(0.2, DARK, math.inf, None, False, id="infinite"),
    pytest.param(0.2, DARK, 1.2, None, False, id="too bright"),
    pytest.param(0.2, DARK, -0.2, None, False, id="too dark"),
    pytest.param(0.2, DARK, 1.2, 2.0, False, id="too bright, in a ball of every image"),
]


@pytest.mark.parametrize(("clean", "label", "level", "epsilon", "success"), RULES)
def test_both_doors_have_one_rule(
    door: Door, clean: float, label: int, level: float, epsilon: float | None, success: bool
) -> None:
    y = torch.tensor([label])
    found = door(Brightness(), gray(clean), y, gray(level), epsilon=epsilon, claimed=ALL)
    assert found["success"] == [success]
    assert found["claimed"] == [True]
    assert found["valid"] == [math.isfinite(level) and 0 <= level <= 1]
    assert (found["prediction"] == [None]) is not found["valid"][0]
    if not math.isfinite(level):
        assert found["distance_l2"] == [math.inf]


@pytest.mark.parametrize("epsilon", [None, 1.5])
def test_both_doors_pass_over_what_is_rejected(door: Door, epsilon: float | None) -> None:
    model, y = Brightness(rejects=True), torch.zeros(2, dtype=torch.long)
    found = door(model, gray(0.2, 0.2), y, gray(0.52, 0.8), epsilon=epsilon, claimed=ALL.repeat(2))
    assert found["success"] == [False, True]
    assert found["rejected"] == [True, False]
    assert found["prediction"] == [2, 1]


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("label", [DARK, BRIGHT])
@pytest.mark.parametrize("epsilon", [None, 1.5])
def test_an_undefined_answer_is_wrong_and_no_class(
    door: Door, epsilon: float | None, label: int, answer: float
) -> None:
    """Argmax of NaN is class 0, so that the model would be right about it."""
    found = door(
        Brightness(answer=answer), gray(0.2), torch.tensor([label]), gray(0.52), epsilon=epsilon, claimed=ALL
    )
    assert found["success"] == [True]
    assert found["prediction"] == [None]
    assert found["rejected"] == [False]
    assert found["valid"] == [True]


def test_an_undefined_answer_is_flagged() -> None:
    found = verify(
        Brightness(answer=math.nan),
        gray(0.2, 0.2),
        torch.zeros(2).long(),
        gray(0.52, 0.8),
        norm="l2",
        epsilon=None,
    )
    assert found.undefined.tolist() == [True, False]
    assert found.success.tolist() == [True, True]


def test_minus_infinity_rules_a_class_out_and_decides_nothing_else() -> None:
    class Ruled(Brightness):
        def logits(self, x: Tensor) -> Tensor:
            return super().logits(x).masked_fill(torch.tensor([True, False]), -torch.inf)

    found = verify(Ruled(), gray(0.2), torch.ones(1).long(), gray(0.3), norm="l2", epsilon=1.0)
    assert found.prediction.tolist() == [1]
    assert not found.undefined.any()


def test_a_starved_search_has_no_successes_by_either_door(
    door: Door, cnn: Classifier, digits: ImageDataset
) -> None:
    """C&W in L2 with too few steps returns black images, and a CNN errs on black."""
    model, (x, y) = cnn, digits.batch(slice(60))
    attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=1, steps=10, initial_const=1e-3)
    _, x_adv, claimed = attack(wrap_for_foolbox(model), x, y, epsilons=None)
    wrong = model.predict(x_adv).labels != y
    found = door(model, x, y, x_adv, epsilon=None, claimed=claimed)
    assert wrong.sum() >= 50, "no black images: nothing is tested"
    assert sum(found["success"]) <= 2


# What the suites ask for beside it.


def judged(
    judge: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, claimed: Tensor | bool = True, **settings: Any
) -> Verification:
    none = torch.zeros(len(x), dtype=torch.bool)
    return judge_examples(judge, x, y, x_adv, claimed=none | claimed, zero_gradient=none, **settings)


def test_images_outside_of_the_ball_do_not_count(cnn: Classifier, digits: ImageDataset) -> None:
    x, y = digits.batch(slice(8))
    other = x.roll(1, 0)
    wrong = cnn(other).argmax(1) != y
    assert wrong.any()
    far = judged(cnn, x, y, other, norm="l2", epsilon=1.5)
    assert (far.distances["l2"] > 1.5).all()
    assert far.valid.all()
    assert not far.success.any()
    assert torch.equal(judged(cnn, x, y, other, norm="l2", epsilon=27.0).success, wrong)


class Judge(Classifier):
    """Errs only where the perturbation has reached a length, as a model with a wider margin does."""

    def __init__(self, x: Tensor, y: Tensor, length: float) -> None:
        super().__init__(input_shape=(1, 28, 28), num_classes=10)
        self.x, self.y, self.length = x, y, length
        self.scale = nn.Parameter(torch.ones(()))

    def logits(self, x: Tensor) -> Tensor:
        reached = (x - self.x[: len(x)]).flatten(1).norm(dim=1) >= self.length
        return torch.nn.functional.one_hot((self.y[: len(x)] + reached) % 10, 10).float()


@pytest.mark.parametrize(
    ("length", "success", "overshoot"),
    [(0.9, True, 1.0), (1.05, True, 1.1), (1.4, True, 1.5), (3.0, False, 1.5)],
)
def test_a_perturbation_is_lengthened_until_it_survives(
    digits: ImageDataset, length: float, success: bool, overshoot: float
) -> None:
    x, y = torch.full((3, 1, 28, 28), 0.5), digits.labels[:3]
    step = torch.full_like(x, 1 / 28)  # L2 norm 1
    found = judged(Judge(x, y, length), x, y, x + step, norm="l2", epsilon=None, overshoots=(1.0, 1.1, 1.5))
    assert (found.success == success).all()
    assert (found.overshoot == overshoot).all()
    assert np.allclose(found.distances["l2"], overshoot, rtol=1e-5)
    assert torch.allclose(found.images, x + overshoot * step)


@pytest.mark.parametrize(("claimed", "epsilon"), [(False, None), (True, 1.5)])
def test_only_claims_of_minimal_norm_attacks_are_lengthened(
    digits: ImageDataset, claimed: bool, epsilon: float | None
) -> None:
    x, y = torch.full((3, 1, 28, 28), 0.5), digits.labels[:3]
    x_adv, judge = x + torch.full_like(x, 1 / 28), Judge(x, y, 1.05)
    found = judged(judge, x, y, x_adv, claimed, norm="l2", epsilon=epsilon, overshoots=(1.0, 1.1))
    assert not found.success.any()
    assert (found.overshoot == 1).all()


def test_what_is_no_image_never_reaches_the_model(digits: ImageDataset) -> None:
    x, y = digits.batch(slice(2))

    class Closed(Judge):
        def predict(self, x: Tensor) -> Any:
            raise AssertionError(x.shape)

    endless = torch.full_like(x, torch.inf)
    found = judged(
        Closed(x, y, 0.0), x, y, endless, norm="linf", epsilon=0.1, known_clean=CleanVerdict.of_one_draw(y, y)
    )
    assert found.prediction.tolist() == [NO_PREDICTION] * 2
    assert not found.success.any()


class RejectsBright(Classifier):
    """Calls every image class 1, and rejects the bright ones."""

    rejects = True

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=2)
        self.bias = nn.Parameter(torch.tensor([[0.0, 1.0, 0.0]]))

    def logits(self, x: Tensor) -> Tensor:
        return self.bias + torch.tensor([0.0, 0.0, 2.0]) * x.flatten(1).mean(1, keepdim=True)


def test_what_the_model_rejects_does_not_count_and_is_lengthened() -> None:
    x, y = gray(0.0, 0.0), torch.zeros(2, dtype=torch.long)
    found = judged(RejectsBright(), x, y, gray(0.4, 0.6), norm="l2", epsilon=None, overshoots=(1.0, 1.5))
    assert found.success.tolist() == [True, False]
    assert found.rejected.tolist() == [False, True]
    assert found.overshoot.tolist() == [1.0, 1.5]


def test_a_toolkit_that_claims_nothing_is_judged_all_the_same(cnn: Classifier, digits: ImageDataset) -> None:
    x, y = digits.batch(slice(8))
    silent = judged(cnn, x, y, x.roll(1, 0), False, norm="l2", epsilon=None)
    assert torch.equal(silent.success, cnn(x.roll(1, 0)).argmax(1) != y)


def test_a_verdict_that_another_draw_changes_is_unstable() -> None:
    class Flipping(Brightness):
        randomized, calls = True, 0

        def logits(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().logits(1 - x if self.calls % 2 == 0 else x)

    found = judged(Flipping(), gray(0.2), torch.zeros(1).long(), gray(0.8), norm="l2", epsilon=None)
    assert found.success.all()
    assert found.unstable.all()
    still = judged(Brightness(), gray(0.2), torch.zeros(1).long(), gray(0.8), norm="l2", epsilon=None)
    assert not still.unstable.any()
