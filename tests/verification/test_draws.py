"""Verdicts of several draws, about examples and clean images alike."""

from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from genrobust import Classifier, verify
from genrobust.contract import NO_PREDICTION
from genrobust.verification import DRAWS, CleanVerdict, judge_examples

CLASSES, REJECT = 3, 3


class Scripted(Classifier):
    """Answers the labels that a script says: one list per draw for dark images, another for bright ones."""

    rejects = True
    randomized = True

    def __init__(self, dark: list[int], bright: list[int]) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=CLASSES)
        self.scripts = (dark, bright)
        self.place = nn.Parameter(torch.zeros(()))
        self.calls = [0, 0]

    def logits(self, x: Tensor) -> Tensor:
        bright = int(bool((x > 0.5).all()))
        script = self.scripts[bright]
        label = script[self.calls[bright] % len(script)]
        self.calls[bright] += 1
        answer = torch.full((len(x), CLASSES + 1), torch.nan)
        if label != NO_PREDICTION:
            answer = nn.functional.one_hot(torch.full((len(x),), label), CLASSES + 1).float()
        return answer

    def with_randomness(self, mode: Any, *, seed: int = 0, generator: Any = None) -> Self:
        del mode, seed, generator
        return self


def gray(level: float) -> Tensor:
    return torch.full((1, 1, 2, 2), level)


def judged(judge: Classifier, *, draws: int, clean: float = 0.2, made: float = 0.8, **settings: Any) -> Any:
    none = torch.zeros(1, dtype=torch.bool)
    return judge_examples(
        judge,
        gray(clean),
        torch.zeros(1, dtype=torch.long),
        gray(made),
        norm="l2",
        epsilon=None,
        claimed=~none,
        zero_gradient=none,
        draws=draws,
        **settings,
    )


# labels of the draws (0 is right), success by the first draw, by the majority and by the worst
EXAMPLES = [
    ([0, 0, 0], (False, False, False)),
    ([1, 1, 1], (True, True, True)),
    ([1, 0, 0], (True, False, True)),
    ([0, 1, 1], (False, True, True)),
    ([0, 0, 1], (False, False, True)),
    ([0, 1, 2], (False, True, True)),  # a tie counts against the model
    ([0, 0, 1, 1], (False, True, True)),
    ([0, 0, 0, 1, 2], (False, False, True)),
    ([REJECT, REJECT, 1], (False, False, True)),
    ([REJECT, REJECT, REJECT], (False, False, False)),
    ([0, NO_PREDICTION, NO_PREDICTION], (False, True, True)),
]


@pytest.mark.parametrize(("labels", "success"), EXAMPLES)
def test_the_first_draw_the_majority_and_the_worst(labels: list[int], success: tuple[bool, ...]) -> None:
    found = judged(Scripted(dark=[0], bright=labels), draws=len(labels))
    assert found.success_first.item() is success[0]
    assert found.success_majority.item() is found.success.item() is success[1]
    assert found.success_worst.item() is success[2]
    assert found.unstable.item() is (len({label not in (0, REJECT) for label in labels}) > 1)


# labels of the draws on the clean image: right by the first draw, by the majority and by every draw
CLEAN = [
    ([0, 0, 0], (True, True, True)),
    ([0, 0, 1], (True, True, False)),
    ([1, 0, 0], (False, True, False)),
    ([0, 1, 1], (True, False, False)),
    ([0, 1, 2], (True, False, False)),  # a tie counts against the model
    ([REJECT, 0, 0], (False, True, False)),
    ([0, NO_PREDICTION, 0], (True, True, False)),
]


@pytest.mark.parametrize(("labels", "right"), CLEAN)
def test_clean_images_are_drawn_as_often(labels: list[int], right: tuple[bool, ...]) -> None:
    found = judged(Scripted(dark=labels, bright=[0]), draws=len(labels))
    assert (found.right_first.item(), found.right_majority.item(), found.right_worst.item()) == right
    assert tuple(found.robust(by).item() for by in ("first", "majority", "worst")) == right
    assert found.robust().item() is right[1]


def test_known_decisions_about_clean_images_are_not_asked_for_again() -> None:
    judge = Scripted(dark=[2], bright=[0])
    one = torch.ones(1).bool()
    known = CleanVerdict(labels=torch.tensor([1]), right_majority=one, right_worst=~one)
    found = judged(judge, draws=3, known_clean=known)
    assert judge.calls == [0, 3]
    assert tuple(found.robust(by).item() for by in ("first", "majority", "worst")) == (False, True, False)


@pytest.mark.parametrize(
    ("labels", "rejected"), [([REJECT, REJECT, 0], True), ([REJECT, 0, 0], False), ([REJECT, 0], True)]
)
def test_the_majority_rejects(labels: list[int], rejected: bool) -> None:
    found = judged(Scripted(dark=[0], bright=labels), draws=len(labels))
    assert found.rejected.item() is rejected
    assert not found.success.item()


def test_a_model_that_errs_in_a_draw_on_the_clean_image_gets_no_credit() -> None:
    found = judged(Scripted(dark=[0, 0, 1], bright=[0]), draws=3)
    assert not found.success_worst.any()
    assert found.robust("majority").all()
    assert not found.robust("worst").any()


def test_five_draws_are_the_default() -> None:
    judge = Scripted(dark=[0], bright=[1])
    found = verify(
        judge,
        gray(0.2),
        torch.zeros(1).long(),
        gray(0.8),
        norm="l2",
        epsilon=None,
        claimed=torch.ones(1).bool(),
    )
    assert found.success.all()
    assert judge.calls == [DRAWS + 1, DRAWS]  # and once for the gradient that an attack is shown


def test_an_unchanged_image_is_no_success_by_any_draw_and_is_drawn_once_more_at_most() -> None:
    judge = Scripted(dark=[0, 1], bright=[0])
    found = judged(judge, draws=1, made=0.2)
    assert not found.success_worst.any()
    assert judge.calls == [2, 0]


def test_a_model_without_noise_decides_once_about_each_image() -> None:
    judge = Scripted(dark=[0], bright=[1])
    judge.randomized = False
    found = judged(judge, draws=9)
    assert judge.calls == [1, 1]
    assert found.success_worst.all()


@pytest.mark.parametrize("draws", [0, -1])
def test_no_draw_is_no_verdict(draws: int) -> None:
    with pytest.raises(ValueError, match=f"`draws` to be at least 1, but got {draws}"):
        verify(
            Scripted(dark=[0], bright=[1]),
            gray(0.2),
            torch.zeros(1).long(),
            gray(0.8),
            norm="l2",
            epsilon=None,
            draws=draws,
        )
