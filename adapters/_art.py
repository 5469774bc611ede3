"""ART: `wrap_for_art(model)` returns a `PyTorchClassifier` that its attacks take unchanged."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from .._fields import checked
from ..attack_view import AttackView, Output, attack_view
from ..contract import Classifier
from ..external import check_classifier

try:
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
except ImportError as error:
    raise ImportError("Expected ART to be installed: pip install 'genrobust[art]'", name="art") from error

from ..verification import wrong_and_accepted
from ._art_crafting import accepts, craft, legacy_numpy, num_classes

__all__ = ["accepts", "craft", "legacy_numpy", "successes", "wrap", "wrap_for_art"]


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
    """Wraps a classifier as `genrobust.wrap_for_art` says.

    APGD, ACG, AutoAttack and Brendel-Bethge attack a new `PyTorchClassifier` that they build from
    `estimator.model`. The surrogate gradient and the expectation are therefore in that module, and no method
    of the estimator is overridden.

    `loss_gradient` is the gradient of the sum over the batch, where ART's examples take the mean. An image's
    gradient therefore does not depend on the other images. `compute_loss` reduces as its argument says. The
    losses that attacks build themselves (APGD's `loss_type`, Brendel-Bethge's) are means. Normalised steps
    are the same for both.

    Queries outside [0, 1] are evaluated at the nearest image, with an `InvalidQueryWarning`.

    The import of ART creates a directory `~/.art`. Copying or pickling an estimator leaves the weights there.
    ART clears the `.grad` of the model's parameters.

    SimBA and VirtualAdversarialMethod ask for probabilities, and NewtonFool needs them without asking. A
    black box with `output="decisions"` returns one-hot labels.
    """
    model = check_classifier(model)
    low, high = checked(clip_values, tuple[float, float], "`clip_values`")
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
        # ART zeroes gradients in place. This division gives it a copy, so that the model's own stay intact.
        "preprocessing": (0.0, 1.0),
    }
    if black_box:
        estimator = BlackBoxClassifierNeuralNetwork(_Predictions(module, output == "decisions"), **settings)
    else:
        estimator = _white_box(module, model.like.device, settings)
    # ART's float32 scalars are not `float` under NumPy 2, but AdversarialPatchNumpy accepts only `float`.
    estimator._clip_values = (low, high)
    return estimator


wrap = wrap_for_art


def successes(
    estimator: Any, x_adv: Float[np.ndarray, "batch dim1 dim2 dim3"], y: Shaped[np.ndarray, "batch ..."]
) -> Bool[np.ndarray, " batch"]:
    """Returns where an attack succeeded: the estimator decides wrongly and does not reject.

    ART's `compute_success_array` counts every change of the decision as a success, including rejection.

    Args:
        estimator: The estimator that `wrap_for_art` returned.
        x_adv: Adversarial images, in the estimator's layout.
        y: The true classes, or their one-hot code.

    Raises:
        ValueError: If the estimator is a different one.
    """
    answers, labels = estimator.predict(x_adv), y if y.ndim == 1 else y.argmax(1)
    wrong: Bool[np.ndarray, " batch"] = wrong_and_accepted(
        torch.from_numpy(answers), torch.from_numpy(labels), num_classes=num_classes(estimator)
    ).numpy()
    return wrong


def _white_box(module: nn.Module, device: torch.device, settings: dict[str, Any]) -> PyTorchClassifier:
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"Expected `model` on cpu or cuda, which is all that ART knows, but got {device}")
    # ART uses the current device and would move the model there.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return PyTorchClassifier(
            module,
            nn.CrossEntropyLoss(reduction="sum"),
            device_type="cpu" if device.type == "cpu" else "gpu",
            **settings,
        )


@final
class _Attacked(nn.Module):
    """The module that ART attacks: the view of a classifier.

    Attributes:
        logits: The view, as the only layer whose activations ART can read.
        num_classes: K, without the column "reject".
    """

    def __init__(self, view: AttackView, *, channels_first: bool) -> None:
        super().__init__()
        self.logits = _Layer(view)
        self.num_classes = view.model.num_classes
        self._channels_first = channels_first
        self.eval()

    def forward(self, x: Tensor) -> Float[Tensor, "batch columns"]:
        """Returns the view's answers."""
        answers: Tensor = self.logits(x if self._channels_first else x.permute(0, 3, 1, 2))
        return answers


@final
class _Layer(nn.Module):
    """A layer for ART, whose `get_activations` adds a hook at every call and never removes one."""

    def __init__(self, view: AttackView) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Float[Tensor, "batch columns"]:
        """Returns the view's answers."""
        answers: Tensor = self.view(x)
        return answers

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Replaces the last hook, so that the thousandth call costs as much as the first."""
        self._forward_hooks.clear()
        return super().register_forward_hook(*args, **kwargs)


@final
@dataclass(frozen=True)
class _Predictions:
    """The predictions of a module as a function of arrays.

    Attributes:
        model: The module.
        decisions: Whether to return one-hot decisions.
    """

    model: _Attacked
    decisions: bool

    @property
    def num_classes(self) -> int:
        """K, without the column "reject"."""
        return self.model.num_classes

    @torch.no_grad()
    def __call__(self, x: Float[np.ndarray, "batch dim1 dim2 dim3"]) -> Float[np.ndarray, "batch columns"]:
        place = next(self.model.parameters(), torch.zeros(())).device
        answers: Tensor = self.model(torch.as_tensor(x, device=place))
        if self.decisions:
            one_hot = torch.zeros_like(answers).scatter_(1, answers.argmax(1, keepdim=True), 1)
            answers = torch.where(answers.isnan(), answers, one_hot)
        array: Float[np.ndarray, "batch columns"] = answers.cpu().numpy()
        return array
