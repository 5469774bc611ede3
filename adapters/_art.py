"""ART: `wrap_for_art(model)` gives a `PyTorchClassifier` that its attacks take unchanged."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from ..classifier import Classifier
from ..views import AttackView, Output, attack_view

try:
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
except ImportError as error:
    raise ImportError("Expected ART to be installed: pip install 'genrobust[art]'", name="art") from error

from ._art_crafting import craft, legacy_numpy, num_classes
from .verification import wrong_and_accepted

__all__ = ["craft", "legacy_numpy", "successes", "wrap", "wrap_for_art"]


def wrap_for_art(
    model: Classifier,
    eot: int = 1,
    clip_values: tuple[float, float] = (0, 1),
    *,
    output: Output = "logits",
    black_box: bool = False,
    channels_first: bool = True,
    seed: int = 0,
) -> PyTorchClassifier | BlackBoxClassifierNeuralNetwork:
    """Wrap a classifier for ART: a stock `PyTorchClassifier`, on the device where the model is.

    APGD, ACG, AutoAttack and Brendel-Bethge attack a new `PyTorchClassifier` that they make of
    `estimator.model`. The surrogate gradient and the expectation are therefore in that module, and no method
    of the estimator is overridden.

    `loss_gradient` is of the sum over the batch, where ART's examples take the mean: an image's gradient does
    not depend on the images beside it. `compute_loss` reduces as it is told. The losses that attacks make for
    themselves (APGD's `loss_type`, Brendel-Bethge's) are means; normalised steps see no difference.

    Queries outside of [0, 1] are answered about the nearest image, with an `InvalidQueryWarning`.

    Importing ART makes a directory `~/.art`; copying or pickling an estimator leaves the weights there. ART
    clears the `.grad` of the model's parameters.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query. 1 attacks the model as it is (by default with fixed noise);
            above 1 every query is the log-mean-exp of fresh draws.
        clip_values: Bounds that attacks keep to, within [0, 1].
        output: `"logits"`; `"probabilities"`, which SimBA and VirtualAdversarialMethod ask for, and which
            NewtonFool needs without asking; `"decisions"`, for decision-based attacks: the majority of draws,
            the same at every query.
        black_box: Give a `BlackBoxClassifierNeuralNetwork`, which predicts and no more; of `"decisions"` it
            gives the decision alone, one-hot.
        channels_first: Whether images are (C, H, W); LaserAttack takes none but (H, W, C).
        seed: Of the draws.

    Raises:
        ImportError: If ART is not installed.
        ValueError: If `eot` is below 1, or above 1 for a model without randomness; if `clip_values` are no
            interval within [0, 1]; or if the model is on a device that ART does not know.
    """
    low, high = map(float, clip_values)
    if not 0 <= low < high <= 1:
        raise ValueError(f"Expected `clip_values` to be an interval within [0, 1], but got {clip_values}")
    view = attack_view(model, eot=eot, output=output, seed=seed)
    module = _Attacked(view, channels_first=channels_first)
    channels, height, width = model.input_shape
    settings = {
        "input_shape": model.input_shape if channels_first else (height, width, channels),
        "nb_classes": model.num_columns,
        "channels_first": channels_first,
        "clip_values": (low, high),
        # ART zeroes gradients in place. After this division they are its own, and none that a model keeps.
        "preprocessing": (0.0, 1.0),
    }
    if black_box:
        estimator = BlackBoxClassifierNeuralNetwork(_Predictions(module, output == "decisions"), **settings)
    else:
        estimator = _white_box(module, next(model.parameters()).device, settings)
    # ART's float32 scalars are no `float` under NumPy 2, and AdversarialPatchNumpy takes nothing else.
    estimator._clip_values = (low, high)
    return estimator


wrap = wrap_for_art


def successes(
    estimator: Any, x_adv: Float[np.ndarray, "batch dim1 dim2 dim3"], y: Shaped[np.ndarray, "batch ..."]
) -> Bool[np.ndarray, " batch"]:
    """Say where an attack succeeded: the estimator decides wrongly, and does not reject.

    ART's `compute_success_array` takes every change of the decision for a success, rejection included.

    Args:
        estimator: What `wrap_for_art` gave.
        x_adv: Adversarial images, in its layout.
        y: The true classes, or their one-hot code.

    Raises:
        ValueError: If the estimator is another.
    """
    answers, labels = estimator.predict(x_adv), y if y.ndim == 1 else y.argmax(1)
    wrong: Bool[np.ndarray, " batch"] = wrong_and_accepted(
        torch.from_numpy(answers), torch.from_numpy(labels), num_classes=num_classes(estimator)
    ).numpy()
    return wrong


def _white_box(module: nn.Module, device: torch.device, settings: dict[str, Any]) -> PyTorchClassifier:
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"Expected `model` on cpu or cuda, which is all that ART knows, but got {device}")
    # ART takes the current device, and would move the model there.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return PyTorchClassifier(
            module,
            nn.CrossEntropyLoss(reduction="sum"),
            device_type="cpu" if device.type == "cpu" else "gpu",
            **settings,
        )


@final
class _Attacked(nn.Module):
    """What ART takes for the model: the view of a classifier.

    Attributes:
        logits: The view, as the one layer whose activations ART can be asked for.
        num_classes: K, without the column "reject".
    """

    def __init__(self, view: AttackView, *, channels_first: bool) -> None:
        super().__init__()
        self.logits = _Layer(view)
        self.num_classes = view.model.num_classes
        self._channels_first = channels_first
        self.eval()

    def forward(self, x: Tensor) -> Float[Tensor, "batch columns"]:
        """Give the view's answers."""
        answers: Tensor = self.logits(x if self._channels_first else x.permute(0, 3, 1, 2))
        return answers


@final
class _Layer(nn.Module):
    """A layer that ART reads: `get_activations` adds a hook at every call, and removes none."""

    def __init__(self, view: AttackView) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Float[Tensor, "batch columns"]:
        """Give the view's answers."""
        answers: Tensor = self.view(x)
        return answers

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Put a hook in the place of the last, so that the thousandth call costs what the first did."""
        self._forward_hooks.clear()
        return super().register_forward_hook(*args, **kwargs)


@final
@dataclass(frozen=True)
class _Predictions:
    """The predictions of a module, as a function of arrays.

    Attributes:
        model: The module.
        decisions: Whether to give the decisions alone, one-hot.
    """

    model: _Attacked
    decisions: bool

    @property
    def num_classes(self) -> int:
        """K, without the column "reject"."""
        return self.model.num_classes

    @torch.no_grad()
    def __call__(self, x: Float[np.ndarray, "batch dim1 dim2 dim3"]) -> Float[np.ndarray, "batch columns"]:
        answers: Tensor = self.model(torch.as_tensor(x, device=next(self.model.parameters()).device))
        if self.decisions:
            one_hot = torch.zeros_like(answers).scatter_(1, answers.argmax(1, keepdim=True), 1)
            answers = torch.where(answers.isnan(), answers, one_hot)
        array: Float[np.ndarray, "batch columns"] = answers.cpu().numpy()
        return array
