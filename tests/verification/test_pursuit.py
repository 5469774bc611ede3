"""Claims that fall are attacked again, and the best image that an attack asked about is judged too."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust import Classifier, attack_every_class
from genrobust.attack_view import attack_view
from genrobust.verification import (
    BestSeen,
    Verification,
    counted_calls,
    judge_examples,
    judged_with_seen,
    pursue,
)


class Bright(Classifier):
    """Decides for class 1 if the first pixel is above a half; logits are the distance to it."""

    def __init__(self, *, rejects: bool = False) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=2)
        self.rejects = rejects
        self.scale = nn.Parameter(torch.ones(()))

    def logits(self, x: Tensor) -> Tensor:
        margin = self.scale * (x[:, 0, 0, 0] - 0.5)
        columns = [torch.zeros_like(margin), margin]
        return torch.stack([*columns, *([x[:, 0, 1, 1]] if self.rejects else [])], 1)


def pixels(*values: float) -> Tensor:
    """Images that are 0.1 but for the first pixel."""
    images = torch.full((len(values), 1, 2, 2), 0.1)
    images[:, 0, 0, 0] = torch.tensor(values)
    return images


def seen(clean: Tensor, *, epsilon: float | None, norm: Any = "linf") -> BestSeen:
    return BestSeen(clean, torch.zeros(len(clean)).long(), norm=norm, epsilon=epsilon, num_classes=2)


def asked(best: BestSeen, *queries: Tensor, model: Classifier | None = None) -> BestSeen:
    view = attack_view(model or Bright())
    with counted_calls(best) as calls:
        for x in queries:
            view(x)
    assert calls.queries == sum(map(len, queries))
    return best


def test_within_a_ball_the_least_margin_is_kept() -> None:
    best = asked(seen(pixels(0.2, 0.4), epsilon=0.35), pixels(0.5, 0.6), pixels(0.55, 0.5), pixels(0.3, 0.7))
    assert torch.equal(best.images, pixels(0.55, 0.7))
    assert best.fooled.all()


def test_what_is_outside_of_the_ball_does_not_count() -> None:
    best = asked(seen(pixels(0.2), epsilon=0.35), pixels(0.56), pixels(0.3))
    assert torch.equal(best.images, pixels(0.3))
    assert not best.fooled.any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_without_a_ball_the_nearest_success_is_kept(norm: str) -> None:
    best = asked(seen(pixels(0.2), epsilon=None, norm=norm), pixels(0.9), pixels(0.6), pixels(0.3))
    assert torch.equal(best.images, pixels(0.9 if norm == "l0" else 0.6))
    assert best.fooled.all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_regrouped_queries_belong_to_the_nearest_clean_image(norm: str) -> None:
    clean = pixels(0.4, 0.0)
    best = seen(clean, epsilon=0.3 if norm != "l0" else 1, norm=norm)
    asked(best, pixels(0.65), pixels(0.1, 0.6, 0.2))
    assert torch.equal(best.images[0], pixels(0.65)[0])
    assert best.fooled.tolist() == [True, False]


def test_a_rejected_image_fools_nobody() -> None:
    image = pixels(0.6)
    rejected = image.clone()
    rejected[:, 0, 1, 1] = 0.9
    best = asked(seen(pixels(0.2), epsilon=0.9), rejected, model=Bright(rejects=True))
    assert not best.fooled.any()


def test_queries_that_are_no_images_are_not_seen() -> None:
    bad = pixels(0.9)
    bad[0, 0, 1, 1] = torch.nan
    with pytest.warns(UserWarning, match="points outside"):
        best = asked(seen(pixels(0.2), epsilon=0.9), bad)
    assert not best.fooled.any()


def verdict(clean: Tensor, *, epsilon: float | None) -> Any:
    def judge(rows: Tensor, examples: Tensor, claimed: Tensor | None) -> Verification:
        labels = torch.zeros(len(rows)).long()
        claims = torch.zeros(len(rows), dtype=torch.bool) if claimed is None else claimed
        return judge_examples(
            Bright(),
            clean[rows],
            labels,
            examples,
            norm="linf",
            epsilon=epsilon,
            claimed=claims,
            zero_gradient=~claims,
        )

    return judge


def test_the_best_image_that_was_seen_counts_where_the_returned_one_does_not() -> None:
    clean, returned = pixels(0.2, 0.2, 0.2), pixels(0.3, 0.7, 0.3)
    best = asked(seen(clean, epsilon=0.5), pixels(0.6, 0.65, 0.4))
    found = judged_with_seen(verdict(clean, epsilon=0.5), clean, returned, torch.zeros(3).bool(), best)
    assert found.success.tolist() == [True, True, False]
    assert torch.equal(found.images, pixels(0.6, 0.7, 0.3))


def test_a_nearer_image_that_was_seen_counts_without_a_ball() -> None:
    clean, returned = pixels(0.2, 0.2), pixels(0.9, 0.6)
    best = asked(seen(clean, epsilon=None), pixels(0.7, 0.7), pixels(0.1, 0.2))
    found = judged_with_seen(verdict(clean, epsilon=None), clean, returned, torch.ones(2).bool(), best)
    assert torch.equal(found.images, pixels(0.7, 0.6))


def test_claims_that_fall_are_attacked_until_none_falls_or_the_budget_ends() -> None:
    clean = pixels(*[0.2] * 4)
    asked_rows: list[tuple[int, list[int]]] = []
    need = torch.tensor([0, 1, 2, 9])  # the number of the attempt that finds an example

    def attempt(number: int, rows: Tensor) -> Verification:
        asked_rows.append((number, rows.tolist()))
        examples = torch.where((need[rows] <= number)[:, None, None, None], pixels(0.9), pixels(0.3))
        judge, claims = verdict(clean[rows], epsilon=None), torch.ones(len(rows)).bool()
        return judge(torch.arange(len(rows)), examples, claims)

    found = pursue(attempt, images=4, again=2)
    assert asked_rows == [(0, [0, 1, 2, 3]), (1, [1, 2, 3]), (2, [2, 3])]
    assert found.attempts.tolist() == [1, 2, 3, 3]
    assert found.fell_first.tolist() == [False, True, True, True]
    assert found.verification.success.tolist() == [True, True, True, False]
    assert found.verification.fell.tolist() == [False, False, False, True]
    assert torch.equal(found.verification.images, pixels(0.9, 0.9, 0.9, 0.3))


class Coin(Bright):
    """Claims with the first half of its answers what it denies later."""

    randomized = True

    def with_randomness(self, mode: Any, *, seed: int = 0, generator: Any = None) -> "Coin":
        del seed, generator
        return self if mode == "fixed" else Bright()  # type: ignore[return-value]

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x).flip(1)


def test_an_attack_on_every_class_goes_on_and_shows_what_it_saw() -> None:
    model, clean = Bright(), pixels(0.2)
    view = attack_view(model)

    def forgetful(_: Tensor) -> Tensor:
        view(pixels(0.6))
        return clean.clone()

    images, found = attack_every_class(model, clean, torch.tensor([0]), forgetful, norm="linf", epsilon=0.5)
    assert found.success.all()
    assert torch.equal(images, pixels(0.6))


def test_an_attack_on_every_class_runs_again_with_other_seeds() -> None:
    draws: list[float] = []

    def random(_: Tensor) -> Tensor:
        draws.append(float(torch.rand(())))
        return pixels(0.3)

    attack_every_class(Coin(), pixels(0.2), torch.tensor([0]), random, norm="linf", epsilon=0.5, again=2)
    assert len(set(draws)) == 3
