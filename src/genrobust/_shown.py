"""The image gradient that an attack is shown: the model's direction, never so short that it seems zero."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["SHORTEST", "with_shown_gradient"]

_SHORTEST_EXPONENT = -13
SHORTEST = 2.0**_SHORTEST_EXPONENT  # L2 norm that shorter image gradients are raised to


def with_shown_gradient(
    model: Callable[[Tensor], Tensor], x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch columns"]:
    """Returns the model's logits, with a backward pass that keeps short image gradients from vanishing.

    Toolkits divide a gradient by its norm plus a constant: 1e-12 (Foolbox, APGD), 1e-10 (torchattacks), 1e-7
    (ART), 1e-6 (AdverTorch), and 1e-8 per pixel in Adam and FAB. Where the softmax of a loss saturates, the
    gradient is shorter than that, and the attack stays where it is although the model has a gradient.

    Every row whose gradient is shorter than `SHORTEST`, 1.2e-4, is multiplied by the power of two that makes
    it at least so long, and less than twice as long. Longer gradients do not change by a bit. The model's own
    backward pass runs on rows that are scaled up to order one, so that a product of small factors does not
    underflow, and the scale is taken out again at the images. Only a gradient that is exactly zero at the
    logits, as that of the cross-entropy is beyond a margin of about 103, stays zero.

    Attacks that need the true length keep it where it matters. DeepFool, FAB, FMN and JSMA differentiate
    logits. Their gradients are longer unless the logits are flat, and there the limit falls with the spread
    of an image's logits: a margin of that spread over a gradient of that length is a boundary 8192 away. C&W
    and EAD add the gradient of a weighted margin to that of a squared distance, 2 delta. A raised gradient is
    below 2.5e-4, and moves the point where both balance by less than 1.3e-4.

    Args:
        model: A function that maps every row of `x` to logits by itself.
        x: Images.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return model(x)
    rows = _Rows()
    answers = model(_Images.apply(x, rows))
    return _Answers.apply(answers, rows) if answers.requires_grad else answers


class _Rows:
    """What the backward pass at the images has to know of that at the logits.

    Attributes:
        shift: The exponent of two by which the current backward pass scaled each row up.
        shortest: The exponent of the shortest gradient that is shown.
    """

    shift: Int[Tensor, " batch"]
    shortest: Int[Tensor, " batch"]


class _Images(torch.autograd.Function):
    """The identity; its backward pass takes the scale out, and raises short gradients."""

    @staticmethod
    def forward(x: Tensor, rows: _Rows) -> Tensor:
        del rows
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        ctx.rows = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient, rows = gradients[0], ctx.rows
        flat = gradient.detach().flatten(1)
        # The largest value is taken out before squares are, which would underflow.
        largest = flat.abs().amax(1, keepdim=True)
        length = torch.linalg.vector_norm(flat / largest, dim=1) * largest[:, 0]
        raised = rows.shortest + 1 - torch.frexp(length).exponent
        usable = (length > 0) & length.isfinite()
        return _scaled(gradient, torch.where(usable, raised, -rows.shift).maximum(-rows.shift)), None


class _Answers(torch.autograd.Function):
    """The identity; its backward pass scales each row up to order one."""

    @staticmethod
    def forward(answers: Tensor, rows: _Rows) -> Tensor:
        del rows
        return answers.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rows, answers = inputs[1], output.detach()
        spread = torch.frexp(answers.amax(1) - answers.amin(1)).exponent
        ctx.rows.shortest = _SHORTEST_EXPONENT + spread.clamp_max(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        largest = gradients[0].detach().abs().amax(1)
        ctx.rows.shift = -torch.frexp(largest).exponent.clamp_max(0)
        return _scaled(gradients[0], ctx.rows.shift), None


def _scaled(rows: Float[Tensor, "batch *rest"], exponents: Int[Tensor, " batch"]) -> Tensor:
    """Returns each row times its power of two, in two halves, since the whole may not be a number."""
    exponents = exponents.view(-1, *[1] * (rows.ndim - 1))
    half = exponents // 2
    return rows * torch.exp2(half.to(rows.dtype)) * torch.exp2((exponents - half).to(rows.dtype))
