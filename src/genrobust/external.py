"""Wrappers that turn any module or function into a classifier of this package."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._precision import without_autocast
from ._settings import probe_images, rounded
from .capabilities import Randomized
from .checks import check_images
from .contract import Classifier
from .gradients import NothingStops
from .randomness import FixedNoise, FreshNoise, NoiseSource, isolated_rng

__all__ = ["WrappedModule", "as_classifier", "check_classifier"]

PROBES, PROBE_IMAGES = 5, 8  # number of calls and of images that show whether a module repeats its output


@final
class WrappedModule(Randomized, Classifier):
    """Any module as a classifier of this package: images in [0, 1] go in, logits come out.

    The module runs in evaluation mode during a call, part by part, and has its own mode again afterwards. It
    gets a copy of the images, so that it may write into them. Gradients go through it.

    Attributes:
        module: The module.
        stops: Whether it stops gradients on their way, as by rounding or a detached tensor.
        gradient: `"exact"`, autograd's, or `"bpda"`, which passes what would stop it.
        takes_half: True: somebody else's network computes in its own precision.
        noise: The source of seeds for the global generators during a call; None leaves the generators alone.
    """

    takes_half = True

    def __init__(self, module: nn.Module, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(input_shape=input_shape, num_classes=num_classes)
        self.module = module
        self.noise: NoiseSource | None = None
        self.stops, self.gradient = False, "exact"
        if next(self.module.parameters(), None) is None:
            self.register_parameter("place", nn.Parameter(torch.zeros(()), requires_grad=False))

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Returns the module's logits.

        Raises:
            ValueError: If the module's output is not one row of logits per image.
        """
        answer = self._answer(x)
        if not isinstance(answer, Tensor) or answer.shape != (len(x), self.num_classes):
            shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(
                f"Expected `model` to give logits of shape ({len(x)}, {self.num_classes}), but got {shape}"
            )
        return answer

    @property
    def gradients(self) -> tuple[str, ...]:
        """`"exact"` and `"bpda"` of a module that stops gradients; empty for any other."""
        return ("exact", "bpda") if self.stops else ()

    def _with_gradient(self, gradient: Literal["exact", "bpda"]) -> Self:
        return self._variant(gradient=gradient)

    def with_noise(self, noise: NoiseSource) -> Self:
        """Returns a variant whose module draws from newly seeded global generators; without noise, itself.

        A module that has a generator of its own goes on drawing from that.
        """
        return self._variant(noise=noise) if self.randomized else self

    def _behaviour(self) -> dict[str, Any]:
        """Returns rounded logits of fixed images, and the length of their gradients.

        A module's class and weights do not say what it computes, and two functions may share a name.
        """
        x = probe_images(self.input_shape, like=self.like)
        first, again = self._answer_about(x), self._answer_about(x)
        if first["logits"] != again["logits"]:  # it draws from a generator of its own
            return {"logits": "differ between calls"}
        return first

    def _answer_about(self, x: Tensor) -> dict[str, Any]:
        logits, slopes = _slopes(self._variant(noise=None), x)
        if slopes is None:
            return {"logits": rounded(logits)}
        return {"logits": rounded(logits), "gradients": rounded(slopes.flatten(1).norm(dim=1))}

    def _answer(self, x: Tensor) -> Any:
        match self.noise:
            case None:
                return self._passing(x)
            case FixedNoise(seed=seed):
                pass
            case FreshNoise(generator=generator):
                seed = int(torch.randint(1 << 31, (), generator=generator, device=generator.device))
        with isolated_rng(seed):
            return self._passing(x)

    def _passing(self, x: Tensor) -> Any:
        if self.gradient == "exact" or not torch.is_grad_enabled():
            return _called(self.module, x)
        with (
            torch.enable_grad(),
            NothingStops(),
        ):  # the former, because a block in the module may leave them on
            return _called(self.module, x)


@final
class _Function(nn.Module):
    """A function without parameters as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@without_autocast
def as_classifier(
    model: Callable[[Tensor], Tensor], images: Float[Tensor, "batch channels height width"]
) -> Classifier:
    """Returns a classifier of this package for anything that maps images to logits.

    Args:
        model: A module, or any differentiable function, from images in [0, 1] of shape (B, C, H, W) to logits
            (B, K). A classifier of this package is returned as it is, without `torch.compile` or
            `DataParallel` around it.
        images: A few of its images. Their shape is the classifier's. What the model answers about them says
            how many classes there are, and whether it draws noise: then its logits differ between calls.

    Raises:
        ValueError: If `images` is no batch of images in [0, 1], or the answer is no row of logits per image.

    Example:
        >>> import torch
        >>> from genrobust import as_classifier
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
        >>> as_classifier(net, torch.rand(2, 1, 28, 28)).num_classes
        10
    """
    if (known := _inside(model)) is not None:
        return known
    if not callable(model):
        raise TypeError(f"Expected `model` to be a module or a function, but got {type(model).__name__}")
    module = model if isinstance(model, nn.Module) else _Function(model)
    shown = _probes(module, images)
    with torch.no_grad(), isolated_rng(0):
        answer = _called(module, shown)
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != len(shown):
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"Expected `model` to give logits of shape ({len(shown)}, classes), but got {got}")
    channels, height, width = shown.shape[1:]
    wrapped = WrappedModule(module, input_shape=(channels, height, width), num_classes=answer.shape[1])
    wrapped.randomized = _draws_noise(wrapped, shown)
    wrapped.stops = _stops_gradients(wrapped, shown)
    return wrapped


def check_classifier(model: object, name: str = "model") -> Classifier:
    """Returns a classifier of this package, without `torch.compile` or `DataParallel` around it.

    Args:
        model: What is to be one.
        name: What the error calls it.

    Raises:
        TypeError: If it is something else; the message says how a module becomes one.
    """
    if (known := _inside(model)) is not None:
        return known
    hint = ": genrobust.as_classifier(model, images) makes one of it" if callable(model) else ""
    raise TypeError(f"Expected `{name}` to be a Classifier, but got {type(model).__name__}{hint}")


def _inside(model: object) -> Classifier | None:
    """Returns the classifier itself, or the one that torch has put its own wrapper around."""
    match model:
        case Classifier():
            return model
        case nn.DataParallel() | nn.parallel.DistributedDataParallel():
            return _inside(model.module)
        case nn.Module() if type(model).__module__.startswith("torch._dynamo"):  # `torch.compile` has made it
            return _inside(model._orig_mod)
    return None


def _probes(
    module: nn.Module, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "probes channels height width"]:
    """Returns a few of the images, on the device and in the dtype of the module."""
    if not isinstance(images, Tensor):
        raise TypeError(f"Expected `images` to be a torch.Tensor, but got {type(images).__name__}")
    if images.ndim != 4 or not len(images):
        raise ValueError(f"Expected `images` of shape (B, C, H, W), but got {tuple(images.shape)}")
    channels, height, width = images.shape[1:]
    place = next(module.parameters(), images)
    shown = images[:PROBE_IMAGES].to(place.device)
    return check_images(shown, input_shape=(channels, height, width), device=place.device, dtype=place.dtype)


@torch.no_grad()
def _draws_noise(model: Classifier, images: Float[Tensor, "batch channels height width"]) -> bool:
    """Returns whether repeated calls with the same images give logits that differ by more than rounding."""
    with isolated_rng(0):
        first, *others = (model(images) for _ in range(PROBES))
    tolerance = 1e-4 * float(first.nan_to_num().abs().max())
    return not all(torch.allclose(first, other, rtol=0, atol=tolerance, equal_nan=True) for other in others)


def _stops_gradients(model: WrappedModule, images: Float[Tensor, "batch channels height width"]) -> bool:
    """Returns whether its gradients are others if nothing stops them."""
    try:
        logits, exact = _slopes(model, images)
        same, passing = _slopes(model._variant(gradient="bpda"), images)
    except Exception:  # whatever the module raises where gradients are on, or in a block that leaves them on
        return False
    if passing is None or not torch.allclose(logits, same, equal_nan=True):
        return False
    apart = passing if exact is None else passing - exact
    return bool(apart.abs().max() > 1e-3 * passing.abs().max())  # never where they are undefined


def _slopes(model: WrappedModule, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns logits, and the gradients of a sum of them; None if they have none."""
    with torch.inference_mode(False), torch.enable_grad(), isolated_rng(0):
        x = images.clone().requires_grad_()
        logits = model.logits(x)
        if not logits.requires_grad:
            return logits, None
        weights = torch.arange(1, model.num_classes + 1, device=logits.device).to(logits)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), x, allow_unused=True)
    return logits.detach(), torch.zeros_like(x) if gradient is None else gradient


def _called(module: nn.Module, x: Tensor) -> Any:
    with _evaluating(module):
        return module(x.clone())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Has every part of a module in evaluation mode inside the block."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
