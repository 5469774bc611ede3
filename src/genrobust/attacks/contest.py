"""Two columns for any classifier: the right answer and rejection, against the best wrong class."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["contest"]


def contest(
    model: Callable[[Tensor], Tensor], labels: Int[Tensor, " batch"], num_classes: int
) -> Callable[[Tensor], Tensor]:
    """Returns a model of two columns: the right answer and rejection against the best wrong class.

    An attack wins where the second column is larger. A margin over all columns would have it win by making
    the model reject.

    Args:
        model: Logits of images; a column beyond the classes is "reject".
        labels: The classes of the batch that it will be asked about.
        num_classes: K.
    """

    def columns(x: Tensor) -> Tensor:
        logits = model(x)
        lost = torch.zeros_like(logits, dtype=torch.bool).scatter(1, labels[:, None], True)
        lost[:, num_classes:] = True
        sides = [logits.masked_fill(~lost, -torch.inf), logits.masked_fill(lost, -torch.inf)]
        return torch.stack([side.amax(1) for side in sides], 1)

    return columns
