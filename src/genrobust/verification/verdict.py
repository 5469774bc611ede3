"""The rule for what counts as an adversarial example, in `verify` and in suites."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import valid_images
from ..contract import NO_PREDICTION, Classifier
from ..inference.warm_start import one_inference
from .decisions import Ballot, CleanVerdict, Decisions, votes
from .distances import Norm, distance, largest_distance, pulled_back, reach
from .flags import is_black

__all__ = ["Decided", "Verification", "judge_examples"]

Decided = Literal["first", "majority", "worst"]

FLAGS = (
    "not_finite",
    "outside_range",
    "outside_ball",
    "unchanged",
    "black",
    "undefined",
    "unstable",
    "zero_gradient",
    "rejected",
)


@final
@dataclass(frozen=True, kw_only=True)
class Verification:
    """The verdict on a batch that an attack returned, with one entry per image, shape (B,).

    Attributes:
        success_first: Success by the first draw of the model's noise; see `judge_examples` for the rule.
        success_majority: Success by the decision that most draws share; a tie counts against the model.
        success_worst: Success by any draw.
        right_first: The model is right about the clean image by the first draw, and doesn't reject it.
        right_majority: The same by the decision that most draws share; a tie counts against the model.
        right_worst: The same by every draw: a model that errs in one draw gets no credit.
        claimed: Where the toolkit, or the model as it was attacked, says that the attack succeeded.
        prediction: The decision by fresh randomness; K where rejected, -1 where there is no image, or where
            the model's answer is undefined.
        entropy: H[p(y | x)] of that decision, in nats; NaN where there is no image.
        margins: How far the image is beyond the thresholds of a model that rejects; NaN where there is no
            image, or the model does not reject.
        images: The judged images, shape (B, C, H, W), float32 or float64: what the attack returned,
            lengthened where that was asked for.
        norm: The norm of the threat model.
        distances: The perturbation in every norm, by name; infinite if the image is not finite.
        overshoot: The factor by which the perturbation was lengthened; 1 if it was not.
        not_finite: Some pixel is NaN or infinite.
        outside_range: Some pixel is outside [0, 1].
        outside_ball: The perturbation is longer than epsilon.
        unchanged: The image is the clean one.
        black: Every pixel is zero, and the clean image is another.
        undefined: The model's output is NaN or infinite. Such an output is wrong.
        unstable: Another draw of the model's noise changes the verdict; with `draws` of 1, a second one is
            asked about claimed or successful images.
        zero_gradient: At the clean image, the gradient of the cross-entropy that an attack is shown vanishes,
            or is not finite (`without_loss_gradient`). An attack by that gradient must then fail, which says
            nothing about the model.
        rejected: By the majority, the model rejects the image.
    """

    success_first: Bool[Tensor, " batch"]
    success_majority: Bool[Tensor, " batch"]
    success_worst: Bool[Tensor, " batch"]
    right_first: Bool[Tensor, " batch"]
    right_majority: Bool[Tensor, " batch"]
    right_worst: Bool[Tensor, " batch"]
    claimed: Bool[Tensor, " batch"]
    prediction: Int[Tensor, " batch"]
    entropy: Float[Tensor, " batch"]
    margins: Float[Tensor, " batch"]
    images: Float[Tensor, "batch channels height width"]
    norm: Norm
    distances: Mapping[Norm, Float[Tensor, " batch"]]
    overshoot: Float[Tensor, " batch"]
    not_finite: Bool[Tensor, " batch"]
    outside_range: Bool[Tensor, " batch"]
    outside_ball: Bool[Tensor, " batch"]
    unchanged: Bool[Tensor, " batch"]
    black: Bool[Tensor, " batch"]
    undefined: Bool[Tensor, " batch"]
    unstable: Bool[Tensor, " batch"]
    zero_gradient: Bool[Tensor, " batch"]
    rejected: Bool[Tensor, " batch"]

    @property
    def success(self) -> Bool[Tensor, " batch"]:
        """The verdict that tables count: the majority's."""
        return self.success_majority

    def robust(self, by: Decided = "majority") -> Bool[Tensor, " batch"]:
        """Returns where the model is right about the clean image, and the attack has no success.

        A rejected example is no success; a rejected clean image is not right.

        Args:
            by: Which draws decide, about the clean images and about the examples alike.
        """
        right = {"first": self.right_first, "majority": self.right_majority, "worst": self.right_worst}
        success = {
            "first": self.success_first,
            "majority": self.success_majority,
            "worst": self.success_worst,
        }
        return right[by] & ~success[by]

    @property
    def distance(self) -> Float[Tensor, " batch"]:
        """The perturbation in the norm of the threat model."""
        return self.distances[self.norm]

    @property
    def valid(self) -> Bool[Tensor, " batch"]:
        """Whether the attack returned a valid image: finite, and in [0, 1]."""
        return ~self.not_finite & ~self.outside_range

    @property
    def fell(self) -> Bool[Tensor, " batch"]:
        """Claims that verification did not confirm."""
        return self.claimed & ~self.success

    @property
    def flags(self) -> dict[str, Bool[Tensor, " batch"]]:
        """What is wrong, by name: everything that says why a claim or a failure is not to be believed."""
        return {name: getattr(self, name) for name in FLAGS} | {"fell": self.fell}

    def at(self, rows: Int[Tensor, " rows"]) -> "Verification":
        """Returns the verdict on some of the images."""
        return self._mapped(lambda name: self._part(name)[rows])

    def replaced(self, rows: Int[Tensor, " rows"], other: "Verification") -> "Verification":
        """Returns this verdict with those of some images, in their order, taken from another."""
        return self._mapped(lambda name: self._part(name).index_put((rows,), other._part(name)))

    def _part(self, name: str) -> Tensor:
        part: Tensor = self.distances[name] if name in self.distances else getattr(self, name)  # type: ignore[index]
        return part

    def _mapped(self, change: Callable[[str], Tensor]) -> "Verification":
        names = [field.name for field in fields(self) if field.name not in ("norm", "distances")]
        distances = {norm: change(norm) for norm in self.distances}
        return Verification(norm=self.norm, distances=distances, **{name: change(name) for name in names})

    def __repr__(self) -> str:
        return f"Verification({self})"

    def __str__(self) -> str:
        counts = {name: int(flag.sum()) for name, flag in self.flags.items()}
        raised = "".join(f", {count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
        size = len(self.success)
        return f"{int(self.success.sum())} of {size} succeeded, {int(self.claimed.sum())} claimed{raised}"


@torch.no_grad()
@one_inference()
def judge_examples(
    judge: Classifier,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    adversarial: Float[Tensor, "batch channels height width"],
    *,
    norm: Norm,
    epsilon: float | None,
    claimed: Bool[Tensor, " batch"],
    zero_gradient: Bool[Tensor, " batch"],
    overshoots: Sequence[float] = (1.0,),
    lengthened: Bool[Tensor, " batch"] | None = None,
    draws: int = 1,
    known_clean: CleanVerdict | None = None,
) -> Verification:
    """Judges an attack's images by the one rule of `verify` and of every suite.

    An example counts if it is finite and in [0, 1], within the ball, labelled wrongly (or the output is NaN
    or infinite), and not rejected. With a ball, nothing else matters, because the threat model allows every
    image within it. The clean image is one of them, so that a model that errs on it is not robust. A black
    image is another, if the clean image is that dark.

    Without a ball, a success is a length, and the length says nothing for two kinds of image. Some attacks
    return a black image when they fail. Its distance is that of the clean image to black, and most models err
    on it. Other attacks then return the clean image. If the model errs on it, the error is counted among the
    clean images. If the model errs only with another draw of its noise, the attack found nothing. Neither is
    a success. A radius that contains every image in [0, 1] bounds nothing and counts as no ball.

    Distances and verdicts are computed in float32 or higher, for images of any type.

    Args:
        judge: The variant for verdicts; see `fresh_variant`.
        images: The clean images, in [0, 1].
        labels: Their classes.
        adversarial: The attack's output, not necessarily valid images.
        norm: The norm of the threat model.
        epsilon: The radius of the ball; None for a minimal-norm attack; 0 for the clean images themselves.
        claimed: Where the toolkit, or the attacked model, says that the attack succeeded.
        zero_gradient: Where the gradient that the attack was shown vanishes.
        overshoots: Increasing factors by which the perturbations of a minimal-norm attack are lengthened
            until the judge errs.
        lengthened: Where they are lengthened; by default where success is claimed.
        draws: How often the judge decides about every image, clean and adversarial, if it draws noise.
        known_clean: What the judge decided about the clean images, if that is known.
    """
    clean, judged = _in_single_precision(images, adversarial, norm=norm, epsilon=epsilon)
    valid = valid_images(judged)
    factors = overshoots if epsilon is None else (1.0,)
    decided, overshoot = _lengthened(
        judge,
        clean,
        labels,
        judged,
        remaining=valid,
        chosen=claimed if lengthened is None else lengthened,
        factors=factors,
    )
    step = _Step.between(clean, judged, norm=norm, epsilon=epsilon)
    counts = valid & ~step.outside
    if epsilon is None or epsilon >= largest_distance(norm, judge.input_shape):
        counts &= ~step.black & ~step.unchanged
    # Of a single draw, a second one says whether it is stable, where that matters.
    wrong = valid & decided.wrong(labels)
    repeated = valid & ~step.outside if draws > 1 else valid & (claimed | wrong)
    cast = votes(judge, judged, decided.labels, rows=repeated, draws=max(draws, 2))
    ballot = Ballot.of(cast, labels, draws=draws, num_classes=judge.num_classes)
    right = known_clean or CleanVerdict.asked(judge, clean, labels, cast, step.unchanged, draws=draws)
    return Verification(
        success_first=counts & wrong,
        success_majority=counts & ballot.wrong_wins,
        success_worst=counts & ballot.ever_wrong,
        right_first=right.labels == labels,
        right_majority=right.right_majority,
        right_worst=right.right_worst,
        claimed=claimed,
        prediction=decided.labels,
        entropy=decided.entropy,
        margins=decided.margins,
        images=judged,
        norm=norm,
        distances=step.distances,
        overshoot=overshoot,
        not_finite=step.not_finite,
        outside_range=~valid & ~step.not_finite,
        outside_ball=step.outside,
        unchanged=step.unchanged,
        black=step.black,
        undefined=valid & (decided.labels == NO_PREDICTION),
        unstable=repeated & ballot.unstable,
        zero_gradient=zero_gradient,
        rejected=torch.where(repeated, ~ballot.wrong_wins & ~ballot.right_wins, decided.rejected),
    )


@dataclass(frozen=True, kw_only=True)
class _Step:
    """How the judged images differ from the clean ones, whatever a model says of them."""

    distances: Mapping[Norm, Float[Tensor, " batch"]]
    outside: Bool[Tensor, " batch"]
    unchanged: Bool[Tensor, " batch"]
    black: Bool[Tensor, " batch"]
    not_finite: Bool[Tensor, " batch"]

    @classmethod
    def between(cls, clean: Tensor, judged: Tensor, *, norm: Norm, epsilon: float | None) -> "_Step":
        distances = {name: distance(judged - clean, name) for name in get_args(Norm)}
        return cls(
            distances=distances,
            outside=distances[norm] > (torch.inf if epsilon is None else reach(epsilon)),
            unchanged=(judged == clean).flatten(1).all(1),
            black=is_black(judged) & ~is_black(clean),
            not_finite=~judged.isfinite().flatten(1).all(1),
        )


def _lengthened(
    judge: Classifier,
    clean: Tensor,
    labels: Tensor,
    judged: Tensor,
    *,
    remaining: Tensor,
    chosen: Tensor,
    factors: Sequence[float],
) -> tuple[Decisions, Tensor]:
    """Decides on every image, and lengthens in place the chosen ones that do not fool the judge."""
    made, remaining, decisions = judged.clone(), remaining.clone(), Decisions.none(judged)
    overshoot = torch.ones(len(labels), dtype=torch.float64, device=labels.device)
    for factor in factors:
        if factor > 1:
            step = made[remaining] - clean[remaining]
            judged[remaining] = (clean[remaining] + factor * step).clamp(0, 1)
        overshoot[remaining] = factor
        decisions.ask(judge, judged, remaining)
        remaining &= ~decisions.wrong(labels) & chosen
    return decisions, overshoot


def _in_single_precision(
    images: Tensor, adversarial: Tensor, *, norm: Norm, epsilon: float | None
) -> tuple[Tensor, Tensor]:
    """Returns copies of both in float32 at least; half precision rounds nothing out of the ball."""
    precision = torch.promote_types(torch.promote_types(images.dtype, adversarial.dtype), torch.float32)
    clean = images.detach().to(precision)
    judged = adversarial.detach().to(device=clean.device, dtype=precision).clone()
    if epsilon is not None:
        judged = pulled_back(judged, clean, norm=norm, epsilon=epsilon, precision=adversarial.dtype)
    return clean, judged
