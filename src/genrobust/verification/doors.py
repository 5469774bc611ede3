"""The public functions for a verdict: on one batch, or on an attack on every other class."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from .._fields import check_integer, check_seed
from .._precision import without_autocast
from ..checks import check_labels, check_mask, valid_images
from ..contract import Classifier
from ..external import as_classifier
from ..randomness import isolated_rng
from .decisions import DRAWS, Decisions
from .distances import Norm, check_epsilon, check_norm, closer
from .flags import without_loss_gradient
from .pursuit import AGAIN, judged_with_seen, pursue
from .queries import BestSeen, counted_calls
from .verdict import Verification, judge_examples

__all__ = ["attack_every_class", "fresh_variant", "reseeded", "verify"]

_CODEBOOK_SEED = 2  # differs from the attacked model's own seed, which is 0 by default
_NOISE_SEED = 1 << 30  # differs from the draws that an attack has seen, for any seed
_ATTEMPT_SEED = 1 << 20  # of candidates; no verdict of a run or of `verify` has them

C = TypeVar("C", bound=Classifier)


@torch.inference_mode(False)
@torch.no_grad()
@without_autocast
def verify(
    model: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channels height width"],
    labels: Integer[Tensor, " batch"],
    adversarial: Float[Tensor, "batch channels height width"],
    *,
    norm: Norm,
    epsilon: float | None,
    claimed: Bool[Tensor, " batch"] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Verification:
    """Verifies adversarial images with noise and candidates that the attack has not seen.

    It works inside `torch.no_grad()` and `torch.inference_mode()` too. See `judge_examples` for the rule.

    Args:
        model: The model that was attacked, with the inference budget for verdicts; any module or function
            from images to logits, which `as_classifier` wraps.
        images: The clean images, in [0, 1], of any float dtype.
        labels: Their classes: integers of any width in [0, K).
        adversarial: The attack's output, of any float dtype, and not necessarily valid images.
        norm: The norm of the threat model.
        epsilon: The radius of the ball; None for a minimal-norm attack, whose every example is inside.
        claimed: Where the toolkit says that it succeeded, a bool for each image; by default, what `model`
            itself says.
        draws: How often the model decides about every image, clean and adversarial, if it draws noise. The
            majority is the verdict (`success`, `robust()`). `success_first` and `success_worst`,
            `robust("first")` and `robust("worst")` stand beside it. A model without noise decides once.
        seed: The seed of the fresh randomness.

    Raises:
        ValueError: If shapes or devices differ, the norm is unknown, epsilon is not above 0, not finite or
            larger than images in [0, 1] allow, a label is no class, `images` is no batch of images, `draws`
            is no integer of at least 1, or `seed` none of at least 0.
        TypeError: If `adversarial`, labels or claims are no tensors, or `model` is no module or function.
    """
    draws, seed = check_integer(draws, "draws"), check_seed(seed)
    judged = as_classifier(model, images)
    classes, radius = _checked(judged, images, labels, norm=norm, epsilon=epsilon)
    if not isinstance(adversarial, Tensor):
        raise TypeError(f"Expected `adversarial` to be a torch.Tensor, but got {type(adversarial).__name__}")
    if adversarial.shape != images.shape:
        raise ValueError(
            f"Expected `adversarial` of shape {tuple(images.shape)}, but got {tuple(adversarial.shape)}"
        )
    if not adversarial.is_floating_point():
        raise ValueError(f"Expected `adversarial` to have a floating dtype, but got {adversarial.dtype}")
    # A copy, because autograd cannot use tensors that were made in inference mode.
    clean, found = images.detach().clone(), adversarial.detach().to(images.device).clone()
    if claimed is None:
        valid = valid_images(found)
        claims = valid & Decisions.none(found).ask(judged, found, valid).wrong(classes)
    else:
        claims = check_mask(claimed, "claimed", count=len(images), device=images.device).clone()
    return judge_examples(
        fresh_variant(judged, seed=_NOISE_SEED + seed, codebook_seed=_CODEBOOK_SEED + seed),
        clean,
        classes,
        found,
        norm=norm,
        epsilon=radius,
        claimed=claims,
        zero_gradient=without_loss_gradient(judged, clean, classes),
        draws=draws,
    )


@without_autocast
def attack_every_class(
    model: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channels height width"],
    labels: Integer[Tensor, " batch"],
    attack: Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch channels height width"]],
    *,
    norm: Norm,
    epsilon: float | None,
    again: int = AGAIN,
    seed: int = 0,
) -> tuple[Float[Tensor, "batch channels height width"], Verification]:
    """Runs a targeted attack for every other class, and keeps each image's best verified example.

    Use it for models that may reject. Most toolkits' untargeted attacks stop at any class but y, and the
    column "reject" is such a class. A target is always one of the K classes, so that the attack has to pass
    the rejection too. Claims that fall are attacked again (`pursue`), each time after torch's, NumPy's and
    Python's generators got other seeds. The best image that the attack asked about is judged too.

    Args:
        model: The model, with the inference budget for verdicts; any module or function from images to
            logits, which `as_classifier` wraps.
        images: The clean images, in [0, 1].
        labels: Their classes: integers of any width in [0, K).
        attack: A function from target classes to adversarial images.
        norm: The norm of the threat model.
        epsilon: The radius of the ball; None for a minimal-norm attack.
        again: How often the attack may run again on claims that fell.
        seed: The seed of the fresh randomness.

    Returns:
        The best images (the nearest verified one, or else the first one) and their verification.

    Raises:
        ValueError: If `verify` does not take an argument; no attack has run then.
        TypeError: If `attack` is no function, or what it returns no tensor.
    """
    seed = check_seed(seed)
    if not callable(attack):
        raise TypeError(f"Expected `attack` to be a function, but got {type(attack).__name__}")
    judged = as_classifier(model, images)
    classes, _ = _checked(judged, images, labels, norm=norm, epsilon=epsilon)

    def attempt(number: int, rows: Tensor) -> Verification:
        clean, y = images[rows], classes[rows]

        def judge(chosen: Tensor, found: Tensor, claimed: Tensor | None) -> Verification:
            given: dict[str, Any] = {"norm": norm, "epsilon": epsilon, "claimed": claimed, "seed": seed}
            return verify(judged, clean[chosen], y[chosen], found, **given)

        best: Verification | None = None
        for shift in range(1, judged.num_classes):
            seen = BestSeen(clean, y, norm=norm, epsilon=epsilon, num_classes=judged.num_classes)
            with counted_calls(seen), isolated_rng(number) if number else nullcontext():
                made = attack((classes + shift) % judged.num_classes)
            found = judged_with_seen(judge, clean, made[rows] if number else made, None, seen)
            if best is not None:
                better = closer((found.success, found.distance), (best.success, best.distance)).nonzero()
                found = best.replaced(better[:, 0], found.at(better[:, 0]))
            best = found
        if best is None:
            raise ValueError(f"Expected a model of at least 2 classes, but got {judged.num_classes}")
        return best

    found = pursue(attempt, images=len(images), again=check_integer(again, "again", least=0)).verification
    return found.images, found


def fresh_variant(model: C, *, seed: int, codebook_seed: int) -> C:
    """Returns the variant for verdicts, with the full budget and noise and candidates no attack has seen."""
    return model.with_randomness("fresh", seed=seed).with_candidates(codebook_seed)


def reseeded(model: C, number: int, *, candidates: int = _ATTEMPT_SEED) -> C:
    """Returns the variant that an attack meets when it runs again: other fixed noise, other candidates.

    Args:
        model: The variant that is attacked.
        number: The number of the attempt; 0 is the first, which meets the model itself.
        candidates: What is added to the number for the seed of the candidates.
    """
    if number == 0:
        return model
    other = model.with_candidates(candidates + number)
    return other if other.always_fresh else other.with_randomness("fixed", seed=number)


def _checked(
    model: Classifier, images: Tensor, labels: Tensor, *, norm: Norm, epsilon: float | None
) -> tuple[Int[Tensor, " batch"], float | None]:
    """Checks the common arguments before any attack or verdict."""
    model.check(images)
    classes = check_labels(
        labels, count=len(images), num_classes=model.num_classes, device=images.device
    ).clone()
    check_norm(norm)
    if epsilon is None:
        return classes, None
    return classes, check_epsilon(epsilon, norm=norm, input_shape=model.input_shape)
