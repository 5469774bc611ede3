"""The verdict on a submission: its images are compared with the test images, and the model decides anew."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..._settings import digest
from ...checks import valid_images
from ...contract import Classifier
from ...data import ImageDataset
from ...verification import Decided, Verification, distance, reach, verify
from ..run.cells import derived_seed
from .standings import DECIDED, Attempted
from .submissions import Submission

__all__ = ["verified"]

BATCH = 50


def verified(
    model: Classifier, dataset: ImageDataset, submission: Submission, *, draws: int, device: str
) -> tuple[Attempted, int]:
    """Verifies a submission, and returns what it did, and how many images the model errs on.

    Every image must be finite, in [0, 1] and in the ball around the test image: one that is not makes the
    submission none. The noise of the verdict is derived from the images, so that a page can be made again,
    but no submission can be made for that noise.

    Args:
        model: The model that was attacked.
        dataset: The test split.
        submission: The submission.
        draws: How often a model that draws noise decides about every image.
        device: Where the model is.

    Raises:
        ValueError: If an image is not finite, not in [0, 1], or outside the ball.
    """
    card, indices = submission.card, torch.from_numpy(submission.indices)
    images = submission.images.to(torch.promote_types(submission.images.dtype, torch.float32))
    clean, _ = dataset.batch(indices)
    _check_inside(images, clean.to(images.dtype), submission)
    seed = derived_seed(digest(images), digest(submission.indices))
    found = []
    for rows in torch.arange(len(images)).split(BATCH):
        part, labels = dataset.batch(indices[rows])
        found.append(
            verify(
                model,
                part.to(device),
                labels.to(device),
                images[rows].to(device),
                norm=card.norm,
                epsilon=card.epsilon,
                draws=draws,
                seed=seed,
            )
        )
    attempt = Attempted(
        attack=card.attack,
        source=submission.folder,
        date=card.date,
        samples=submission.indices,
        lost={by: np.concatenate([_lost(verdict, by) for verdict in found]) for by in DECIDED},
        submitter=card.submitter,
    )
    return attempt, sum(int(verdict.success.sum()) for verdict in found)


def _check_inside(images: Tensor, clean: Tensor, submission: Submission) -> None:
    count, card = len(images), submission.card
    if not (valid := valid_images(images)).all():
        raise ValueError(
            f"Expected every image to be finite and in [0, 1], but {int((~valid).sum())} of {count} are not"
        )
    lengths = distance(images - clean, card.norm)
    if (outside := lengths > reach(card.epsilon)).any():
        raise ValueError(
            f"Expected every image within {card.epsilon:g} of its test image ({card.norm}), but "
            f"{int(outside.sum())} of {count} are outside, up to {float(lengths.max()):.3g}"
        )


def _lost(verdict: Verification, by: Decided) -> Float[np.ndarray, " batch"]:
    """Returns the length of each perturbation with which the model is not right, or does not accept."""
    succeeded = {
        "first": verdict.success_first,
        "majority": verdict.success_majority,
        "worst": verdict.success_worst,
    }
    right = {
        "first": verdict.right_first,
        "majority": verdict.right_majority,
        "worst": verdict.right_worst,
    }
    lost = verdict.distance.where(succeeded[by] | verdict.rejected, torch.inf)
    return torch.where(right[by], lost, 0.0).double().cpu().numpy()
