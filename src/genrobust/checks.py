"""The checks of images, labels and masks at every public function."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "check_classes",
    "check_images",
    "check_labels",
    "check_layout",
    "check_mask",
    "check_range",
    "check_typical",
    "valid_images",
]

RANGE_TOLERANCE = 1e-6
STRAY = 0.3  # mean distance of pixels from [0, 1]; an attack may start at less (ShadowAttack at 0.25)


def check_images(
    x: Tensor, *, input_shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "batch channels height width"]:
    """Checks a batch of images and casts it to the model's dtype.

    Args:
        x: Images in [0, 1], shape (B, C, H, W), any floating dtype.
        input_shape: The expected (C, H, W).
        device: The model's device.
        dtype: The model's dtype.

    Raises:
        ValueError: If `x` has another shape, an integer dtype, another device, or a value that is not finite
            or outside [0, 1] by more than 1e-6.
        TypeError: If `x` is not a tensor.
    """
    check_layout(x, input_shape=input_shape, device=device)
    check_range(x.detach())
    return x.to(dtype)


def check_layout(x: Tensor, *, input_shape: tuple[int, int, int], device: torch.device) -> None:
    """Checks type, shape, dtype and device, but not the values; see `check_images`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"Expected `x` to be a torch.Tensor, but got {type(x).__name__}")
    if x.ndim != 4 or tuple(x.shape[1:]) != input_shape:
        expected = ", ".join(map(str, input_shape))
        raise ValueError(f"Expected `x` of shape (batch, {expected}), but got {tuple(x.shape)}")
    if not x.is_floating_point():
        hint = ": convert to float and divide by 255" if x.dtype == torch.uint8 else ""
        raise ValueError(f"Expected `x` to have a floating dtype, but got {x.dtype}{hint}")
    if x.layout != torch.strided:
        raise ValueError(f"Expected `x` to be dense, but got {x.layout}: call `x.to_dense()`")
    if x.device != device:
        raise ValueError(f"Expected `x` on {device}, where the model is, but got {x.device}")


def check_range(x: Tensor) -> None:
    """Checks that all values are finite and in [0, 1], up to 1e-6.

    Raises:
        ValueError: If a value is not.
    """
    if not x.numel():
        return
    low, high = (float(bound) for bound in x.aminmax())
    if not (low - low == 0.0 and high - high == 0.0):  # inf - inf and nan - nan are nan
        bad = int((~x.isfinite()).sum())
        raise ValueError(f"Expected `x` to be finite, but got {bad} values that are NaN or infinite")
    if high > 1 + RANGE_TOLERANCE:
        raise ValueError(f"Expected `x` in [0, 1], but got a maximum of {high:.7g}{_range_hint(low, high)}")
    if low < -RANGE_TOLERANCE:
        raise ValueError(f"Expected `x` in [0, 1], but got a minimum of {low:.7g}{_range_hint(low, high)}")


def check_typical(x: Float[Tensor, "batch channels height width"]) -> None:
    """Checks that the typical image is in [0, 1], where an attack may start outside by a step.

    Images that are not scaled, or that are normalised by a mean and a deviation, are far outside as a rule.

    Raises:
        ValueError: If most images are more than 0.3 away from [0, 1], in the mean of their pixels.
    """
    away = (x - x.clamp(0, 1)).abs().nan_to_num(0, 0, 0).flatten(1).mean(1)
    if 2 * int((away > STRAY).sum()) > len(x):
        check_range(x[x.isfinite()])


def _range_hint(low: float, high: float) -> str:
    """Returns what to do about images in another range, if that is known."""
    if low >= -STRAY:
        return ": divide by 255" if 1.5 < high <= 255 else ""
    if low >= -1 - RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE:
        return ": images in [-1, 1] are (x + 1) / 2"
    return ": normalisation belongs into the model"


def valid_images(x: Float[Tensor, "batch channels height width"]) -> Bool[Tensor, " batch"]:
    """Returns which images are finite and in [0, 1], up to 1e-6."""
    inside = (x >= -RANGE_TOLERANCE) & (x <= 1 + RANGE_TOLERANCE)  # False for NaN too
    return inside.flatten(1).all(1)


def check_labels(labels: Any, *, count: int, num_classes: int, device: torch.device) -> Int[Tensor, " batch"]:
    """Checks the classes of a batch, and casts them to int64.

    Args:
        labels: Integers of any width in [0, K), shape (B,).
        count: The number of images, B.
        num_classes: K.
        device: The device of the images.

    Raises:
        ValueError: If the shape is another, the type is no integer, the device is another, or a value is no
            class.
        TypeError: If it is no tensor.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"Expected `labels` to be a torch.Tensor, but got {type(labels).__name__}")
    if labels.shape != (count,):
        hint = ": take the argmax(1) of one-hot labels" if labels.shape == (count, num_classes) else ""
        raise ValueError(f"Expected `labels` of shape ({count},), but got {tuple(labels.shape)}{hint}")
    if labels.device != device:
        raise ValueError(f"Expected `labels` on {device}, where the images are, but got {labels.device}")
    return check_classes(labels, num_classes=num_classes)


def check_classes(labels: Any, *, num_classes: int) -> Int[Tensor, " batch"]:
    """Checks classes where there are no images to compare them with; see `check_labels`."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"Expected `labels` to be a torch.Tensor, but got {type(labels).__name__}")
    if labels.ndim != 1:
        raise ValueError(f"Expected `labels` of shape (B,), but got {tuple(labels.shape)}")
    if labels.layout != torch.strided or labels.is_meta:
        raise ValueError(f"Expected `labels` to be dense and to have values, but got {labels!r:.60}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"Expected `labels` to have an integer dtype, but got {labels.dtype}")
    classes = labels.detach().to(torch.long)
    if len(classes) and not (classes.min() >= 0 and classes.max() < num_classes):
        low, high = int(classes.min()), int(classes.max())
        raise ValueError(f"Expected `labels` in 0..{num_classes - 1}, but got {low} to {high}")
    return classes


def check_mask(mask: Any, name: str, *, count: int, device: torch.device) -> Bool[Tensor, " batch"]:
    """Checks that a mask has one truth value per image.

    Raises:
        ValueError: If the shape, the dtype or the device is another.
        TypeError: If it is no tensor.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"Expected `{name}` to be a torch.Tensor, but got {type(mask).__name__}")
    if mask.shape != (count,) or mask.dtype != torch.bool:
        raise ValueError(
            f"Expected `{name}` of shape ({count},) and dtype torch.bool, "
            f"but got {tuple(mask.shape)} and {mask.dtype}"
        )
    if mask.device != device:
        raise ValueError(f"Expected `{name}` on {device}, where the images are, but got {mask.device}")
    return mask
