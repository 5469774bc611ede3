"""What a model decides about a batch, and how the decisions of several draws come out."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .._brief import one_line
from ..contract import NO_PREDICTION, Classifier

__all__ = ["DRAWS", "Ballot", "CleanVerdict", "Decisions", "votes"]

# By default: on 60 digits that PGD had attacked (L2, 2.0), the majority of five draws of Deep Bayes agreed
# with that of a hundred on 96 %; one draw on 93 %, nine on 97 to 98 %.
DRAWS = 5


@final
@dataclass(frozen=True)
class Decisions:
    """What a model answers images, as `Prediction` has it; -1, False and NaN where it was not asked.

    Attributes:
        labels: The decisions, shape (B,).
        rejected: Whether the model rejects, shape (B,).
        entropy: H[p(y | x)] in nats, shape (B,).
        margins: How far images are beyond the thresholds of a model that rejects, shape (B,).
    """

    labels: Int[Tensor, " batch"]
    rejected: Bool[Tensor, " batch"]
    entropy: Float[Tensor, " batch"]
    margins: Float[Tensor, " batch"]

    __repr__ = one_line

    @classmethod
    def none(cls, images: Float[Tensor, "batch channels height width"]) -> "Decisions":
        """Returns no decision about any image."""
        labels = torch.full((len(images),), NO_PREDICTION, dtype=torch.long, device=images.device)
        unknown = torch.full((len(images),), torch.nan, dtype=torch.float64, device=images.device)
        return cls(labels, torch.zeros_like(labels, dtype=torch.bool), unknown, unknown.clone())

    def wrong(self, y: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Returns where the label is another than y, and the image is not rejected."""
        return (self.labels != y) & ~self.rejected

    def ask(
        self,
        model: Classifier,
        images: Float[Tensor, "batch channels height width"],
        rows: Bool[Tensor, " batch"],
    ) -> "Decisions":
        """Puts the model's decisions about some rows in the place of what is there; returns itself.

        What is no image is never to be shown to the model.
        """
        if rows.any():
            found = model.predict(images[rows])
            self.labels[rows], self.rejected[rows] = found.labels, found.rejected
            self.entropy[rows] = found.entropy.to(self.entropy)
            if found.margins is not None:
                self.margins[rows] = found.margins.to(self.margins)
        return self


def votes(
    judge: Classifier, images: Tensor, first: Tensor, *, rows: Tensor, draws: int
) -> Int[Tensor, "draws batch"]:
    """Returns the labels of several draws; of a model without noise, the first alone."""
    more = draws - 1 if judge.randomized else 0
    return torch.stack(
        [first, *(Decisions.none(images).ask(judge, images, rows).labels for _ in range(more))]
    )


@final
@dataclass(frozen=True, kw_only=True)
class CleanVerdict:
    """What a judge decided about clean images.

    Attributes:
        labels: The decision of the first draw.
        right_majority: Whether the decision that most draws share is right; a tie counts against the model.
        right_worst: Whether every draw is right.
    """

    labels: Int[Tensor, " batch"]
    right_majority: Bool[Tensor, " batch"]
    right_worst: Bool[Tensor, " batch"]

    __repr__ = one_line

    def at(self, rows: Int[Tensor, " rows"]) -> "CleanVerdict":
        """Returns the verdict on some of the images."""
        return CleanVerdict(
            labels=self.labels[rows],
            right_majority=self.right_majority[rows],
            right_worst=self.right_worst[rows],
        )

    @classmethod
    def of_one_draw(cls, labels: Int[Tensor, " batch"], y: Int[Tensor, " batch"]) -> "CleanVerdict":
        """Returns the verdict of a single draw."""
        return cls(labels=labels, right_majority=labels == y, right_worst=labels == y)

    @classmethod
    def asked(
        cls,
        judge: Classifier,
        clean: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        cast: Int[Tensor, "cast batch"],
        unchanged: Bool[Tensor, " batch"],
        *,
        draws: int,
    ) -> "CleanVerdict":
        """Asks a judge; examples that are the clean image have asked for it.

        Args:
            judge: The judge.
            clean: The clean images.
            y: Their classes.
            cast: The labels of the examples in at least `draws` draws, or in one of a model without noise.
            unchanged: Which examples are the clean image.
            draws: How many draws count.
        """
        first = Decisions.none(clean).ask(judge, clean, ~unchanged).labels
        mine = votes(judge, clean, first, rows=~unchanged, draws=draws)
        mine = torch.where(unchanged, cast[: len(mine)], mine)
        ballot = Ballot.of(mine, y, draws=draws, num_classes=judge.num_classes)
        return cls(labels=mine[0], right_majority=ballot.right_wins, right_worst=ballot.always_right)


@final
@dataclass(frozen=True, kw_only=True)
class Ballot:
    """How the draws' decisions come out, per image; a tie counts against the model.

    Attributes:
        wrong_wins: A wrong class has the most draws.
        ever_wrong: A draw is wrong, and does not reject.
        right_wins: The right class has the most draws.
        always_right: Every draw is right.
        unstable: A draw gives another verdict than the first.
    """

    wrong_wins: Bool[Tensor, " batch"]
    ever_wrong: Bool[Tensor, " batch"]
    right_wins: Bool[Tensor, " batch"]
    always_right: Bool[Tensor, " batch"]
    unstable: Bool[Tensor, " batch"]

    __repr__ = one_line

    @classmethod
    def of(
        cls,
        cast: Int[Tensor, "draws batch"],
        labels: Int[Tensor, " batch"],
        *,
        draws: int,
        num_classes: int,
    ) -> "Ballot":
        """Counts the first draws; what comes after them says only whether the verdict is stable.

        Args:
            cast: The labels of every draw.
            labels: The true classes.
            draws: How many draws count.
            num_classes: K, which stands for "reject".
        """
        wrong = (cast != labels) & (cast != num_classes)
        counted = cast[:draws]
        # -1, the classes, and "reject".
        shares = nn.functional.one_hot(counted - NO_PREDICTION, num_classes + 2).sum(0)
        right = shares.gather(1, labels[:, None] - NO_PREDICTION)[:, 0]
        rejected = shares[:, -1]
        others = shares.scatter(1, labels[:, None] - NO_PREDICTION, 0)[:, :-1].amax(1)
        return cls(
            wrong_wins=(others > 0) & (others >= right) & (others >= rejected),
            ever_wrong=wrong[:draws].any(0),
            right_wins=(right > others) & (right > rejected),
            always_right=(counted == labels).all(0),
            unstable=(wrong != wrong[0]).any(0),
        )
