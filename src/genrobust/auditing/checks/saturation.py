"""Does the softmax saturate?"""

import torch
from torch import nn

from ..findings import Finding, concluded, number, share
from ..subject import Subject
from .zero_gradient import margin_gradient

__all__ = ["saturation"]

NAME, QUESTION = "saturation", "Does the cross-entropy, which most attacks climb, have a gradient?"
_VANISHED = 1e-8


def saturation(subject: Subject) -> Finding:
    """Compares the gradient of the cross-entropy with that of the margin, at the clean images."""
    with torch.enable_grad():
        leaf = subject.images.clone().requires_grad_()
        logits = subject.attacked(leaf)
        loss = nn.functional.cross_entropy(logits, subject.labels, reduction="sum")
        found = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
    length = torch.zeros(len(leaf), device=leaf.device).double()
    if found is not None:
        length = torch.linalg.vector_norm(found.flatten(1).double(), dim=1)
    lead = torch.linalg.vector_norm(margin_gradient(subject, subject.images).flatten(1).double(), dim=1)
    bad = share(
        "no gradient of the cross-entropy, but one of the margin", (length < _VANISHED) & (lead > _VANISHED)
    )
    top = logits.detach().topk(2, dim=1).values
    return concluded(
        NAME,
        QUESTION,
        bad,
        fine="The softmax does not saturate.",
        accused="The logits are so far apart that the softmax saturates: an attack on the cross-entropy sees "
        "no gradient, although the margin has one.",
        advice="Attack the margin of the logits, or divide the logits by a constant.",
        measures=(
            number("median distance of the two largest logits", (top[:, 0] - top[:, 1]).median()),
            number("median length of the cross-entropy's gradient", length.median()),
        ),
    )
