"""pytorch-ood both ways: our detectors as its `Detector`, and its fitted detectors as evidence of ours."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any, Literal, TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._settings import Described, described, digest, probe_images, rounded
from ..contract import GenerativeClassifier
from ..gradients import Estimated
from ..randomness import FixedNoise, isolated_rng
from .detectors import Detector, calibrate_detector
from .evidence import Evidence, evidence_of

try:
    from pytorch_ood import api
except ImportError as error:
    raise ImportError(
        "Expected pytorch-ood to be installed: pip install 'genrobust[ood]'", name=error.name
    ) from error

__all__ = ["OutlierDetector", "OutlierScore"]

ScoreGradient: TypeAlias = Literal["own", "none"] | Estimated

TOLERANCE = 1e-3  # of the largest score: more than rounding, such as that of another batch size
PROBES = 8


@final
class OutlierScore(Evidence, Described):
    """The outlier score of a detector of pytorch-ood, as evidence of a detector of this package.

    Most of its detectors compute without gradients (`torch.no_grad`, NumPy). An attack along the gradient
    would not see such a score, so that the rejection would only look robust. Such a score gets a gradient
    that is estimated from scores alone, which costs `2 * pairs` queries of the detector a step.

    Args:
        detector: Fitted, if it needs that, on training images. What it computes with must be in evaluation
            mode. It is used as it is, not copied.
        images: A few images in [0, 1], at least 2, on which its scores are tried.
        gradient: `"own"` takes the detector's gradient. A strategy estimates one. `"none"` hides the score
            from attackers, to study that. None takes its own gradient if it has one, else an estimate.

    Attributes:
        detector: The detector.
        gradient: What attackers are given.
        differentiable: Whether that is the detector's own gradient.

    Raises:
        ValueError: If the detector is not fitted, or fails on the images; if it does not return one finite
            score for each image; if the scores of an image differ between calls or batches; or if `gradient`
            is `"own"` and there is none.
        TypeError: If `detector` is no detector of pytorch-ood.

    Example:
        >>> from pytorch_ood.detector import EnergyBased
        >>> from genrobust import SelectiveClassifier, load_dataset, load_model
        >>> from genrobust.selective import LogitScores, calibrate_detector
        >>> from genrobust.selective.pytorch_ood import OutlierScore
        >>> x, y = load_dataset("digits", "train").stratified(200, seed=0).batch(slice(None))
        >>> cnn = load_model("cnn", dataset="digits")
        >>> model = LogitScores(cnn)
        >>> energy = calibrate_detector(OutlierScore(EnergyBased(cnn), x), model, x, y)
        >>> SelectiveClassifier(model, [energy])(x[:2]).shape
        torch.Size([2, 11])
    """

    def __init__(
        self,
        detector: api.Detector,
        images: Float[Tensor, "batch channels height width"],
        *,
        gradient: ScoreGradient | None = None,
    ) -> None:
        if not isinstance(detector, api.Detector):
            raise TypeError(
                f"Expected `detector` to be a detector of pytorch-ood, but got {type(detector).__name__}"
            )
        if gradient not in (None, "own", "none") and not isinstance(gradient, Estimated):
            raise ValueError(f"Expected `gradient` 'own', 'none' or an Estimated, but got {gradient!r:.60}")
        if not isinstance(images, Tensor) or images.ndim != 4 or len(images) < 2:
            raise ValueError("Expected `images` to be at least 2 images of shape (B, C, H, W)")
        self.detector = detector
        self._shape = (images.shape[1], images.shape[2], images.shape[3])
        probes = images[:PROBES].detach()
        _check_scores(detector, probes)
        noise = probe_images(self._shape, like=probes)
        own = any(_has_gradient(detector, x) for x in (probes, noise))
        if gradient == "own" and not own:
            raise ValueError(
                f"Expected a detector with a gradient, but {type(detector).__name__} has none: `gradient` of "
                "None estimates one"
            )
        self.gradient: ScoreGradient = gradient or ("own" if own else Estimated())
        self.differentiable = self.gradient == "own"

    def scores(
        self,
        model: GenerativeClassifier,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        references: Tensor,
        class_scores: Tensor,
    ) -> Float[Tensor, " batch"]:
        """Returns the detector's scores, whatever the model and the labels are."""
        del model, y, references, class_scores
        if not len(x):
            return x.new_zeros(0)
        if self.gradient == "own":
            return _scores(self.detector, x)
        if isinstance(self.gradient, Estimated) and x.requires_grad and torch.is_grad_enabled():
            noise = FixedNoise(0)
            return self.gradient.linearized(self._column, x, noise=noise).squeeze(1)
        return _plain_scores(self.detector, x)

    def settings(self) -> dict[str, Any]:
        """Returns the detector's class, everything that it holds, and what it scores fixed images.

        The scores tell detectors apart whose parts are functions: what a function reads elsewhere is not
        among its attributes.
        """
        like = next((part for part in _parameters(self.detector)), torch.zeros(()))
        noise = probe_images(self._shape, like=like.detach())
        kind = type(self.detector)
        return {
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "gradient": described(self.gradient, "gradient"),
            "state": {name: _state(value) for name, value in sorted(vars(self.detector).items())},
            "behaviour": rounded(_plain_scores(self.detector, noise)),
        }

    def _column(self, x: Tensor) -> Tensor:
        return _plain_scores(self.detector, x.clamp(0, 1))[:, None]  # an estimate asks around the image


@final
class OutlierDetector(api.Detector):  # type: ignore[misc]
    """Evidence of a generative classifier as a detector of pytorch-ood: a larger score is more of an outlier.

    An image is scored as the class that the model decides for. The score is differentiable in the image.
    `OODMetrics` and every benchmark of pytorch-ood take it.

    Args:
        model: The model that judges.
        evidence: `"marginal"`, `"kl"`, `"distance"`, `"latent"` or another; see `Detector`. A calibrated
            detector needs no `fit`.
        per_class: Whether every class has its own threshold and, for `"latent"`, its own covariance.
        false_positive_rate: The share of clean images that the fitted `detector` may flag.

    Attributes:
        model: The model.
        detector: The detector of this package, calibrated; None before `fit`.

    Example:
        >>> import torch
        >>> from pytorch_ood.metrics import OODMetrics
        >>> from genrobust import load_dataset, load_model
        >>> from genrobust.selective.pytorch_ood import OutlierDetector
        >>> images, labels = load_dataset("digits", "test").batch(slice(8))
        >>> marginal = OutlierDetector(load_model("deep-bayes", dataset="digits"), "marginal")
        >>> metrics = OODMetrics().update(marginal(images), labels)
        >>> metrics = metrics.update(marginal(torch.ones_like(images)), -torch.ones_like(labels))
        >>> round(metrics.compute()["AUROC"], 2)
        1.0
    """

    def __init__(
        self,
        model: GenerativeClassifier,
        evidence: str | Evidence | Detector = "marginal",
        *,
        per_class: bool = False,
        false_positive_rate: float = 0.05,
    ) -> None:
        super().__init__()
        if not isinstance(model, GenerativeClassifier):
            raise TypeError(
                f"Expected `model` to be a GenerativeClassifier, but got {type(model).__name__}: "
                "LogitScores(model) makes one of a classifier"
            )
        self.model = model
        self.per_class, self.false_positive_rate = per_class, false_positive_rate
        self.detector: Detector | None = None
        if isinstance(evidence, Detector):
            evidence.check(model.num_classes)
            self.evidence, self.detector = evidence.evidence, evidence
        else:
            self.evidence = evidence
        self.requires_fit = evidence_of(self.evidence).has_references and self.detector is None

    def fit(self, data_loader: Iterable[tuple[Tensor, Tensor]]) -> "OutlierDetector":
        """Calibrates `detector` on clean images.

        Args:
            data_loader: Batches of images and classes. Images with a class below 0 are outliers, and left
                out.

        Raises:
            ValueError: If there are too few images for the rate, or the model lacks what the evidence needs.
        """
        batches = [(x[y >= 0], y[y >= 0]) for x, y in data_loader]
        if not batches:
            raise ValueError("Expected images to fit on, but the loader has none")
        device = next(self.model.parameters()).device
        x, y = (torch.cat(parts).to(device) for parts in zip(*batches, strict=True))
        self.detector = calibrate_detector(
            self.evidence,
            self.model,
            x,
            y,
            per_class=self.per_class,
            false_positive_rate=self.false_positive_rate,
        )
        return self

    def predict(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
        """Returns the scores of images as the classes that the model decides for.

        Raises:
            RequiresFittingException: If the evidence compares with clean images, and `fit` was not called.
        """
        if self.detector is None and self.requires_fit:
            raise api.RequiresFittingException
        known = self.detector or Detector(evidence=self.evidence, thresholds=(0.0,))
        x = self.model.check(x.to(next(self.model.parameters()).device))
        scores = self.model.class_scores(x)
        labels = self.model.scores_to_logits(scores).argmax(1)
        return known.scores(self.model, x, labels, class_scores=scores)


def _check_scores(detector: api.Detector, images: Tensor) -> None:
    """Checks that a detector gives every image one score, whatever is asked when and together."""
    name = type(detector).__name__
    with isolated_rng(0):  # its draws would go on from here
        try:
            first, again = _plain_scores(detector, images), _plain_scores(detector, images)
            alone = _plain_scores(detector, images[:1])
        except Exception as error:  # another package's code, on somebody's model
            reason = "it is not fitted" if isinstance(error, api.RequiresFittingException) else str(error)
            raise ValueError(f"Expected {name} to score the images, but: {reason}") from error
    if not first.isfinite().all():
        raise ValueError(f"Expected finite scores, but {name} gives {first[~first.isfinite()][0]}")
    tolerance = TOLERANCE * float(first.abs().max())
    for other, compared, what in ((again, first, "calls"), (alone, first[:1], "batches")):
        if float((other - compared).abs().max()) > tolerance:
            raise ValueError(
                f"Expected an image to have one score, but {name} gives it others in different {what}: "
                "detectors that draw noise, or compare the images of a batch, are not supported"
            )


def _has_gradient(detector: api.Detector, images: Tensor) -> bool:
    leaf = images.clone().requires_grad_()
    with torch.enable_grad():
        scores = _scores(detector, leaf)
        if not scores.requires_grad:
            return False
        (slope,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
    return slope is not None and bool(slope.isfinite().all()) and bool((slope != 0).any())


def _plain_scores(detector: api.Detector, x: Tensor) -> Float[Tensor, " batch"]:
    """Returns scores without a gradient; some detectors differentiate for themselves."""
    with torch.inference_mode(False), torch.enable_grad():
        return _scores(detector, x.detach().clone()).detach()


def _scores(detector: api.Detector, x: Tensor) -> Float[Tensor, " batch"]:
    with _gradients_aside(detector):
        scores = detector.predict(x)
    if not isinstance(scores, Tensor) or scores.shape != x.shape[:1]:
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"Expected {type(detector).__name__} to give one score per image, {tuple(x.shape[:1])}, but got "
            f"{shape}"
        )
    return scores.to(x)


@contextmanager
def _gradients_aside(detector: api.Detector) -> Iterator[None]:
    """Leaves the weights' gradients as they were: some detectors call `backward`."""
    if not isinstance(detector, api.GradientDetector):
        yield
        return
    kept = [(weight, weight.grad) for weight in _parameters(detector)]
    try:
        yield
    finally:
        for weight, gradient in kept:
            weight.grad = gradient


def _parameters(detector: api.Detector) -> list[nn.Parameter]:
    found = {id(weight): weight for part in _modules(vars(detector)) for weight in part.parameters()}
    return list(found.values())


def _modules(value: Any) -> Iterator[nn.Module]:
    """Yields the modules that a detector's attributes are made of, and those that its functions call."""
    match value:
        case nn.Module():
            yield value
        case MethodType():
            yield from _modules(value.__self__)
        case api.Detector():
            yield from _modules(vars(value))
        case FunctionType():
            read = inspect.getclosurevars(value)
            called = (*read.nonlocals.values(), *read.globals.values())
            yield from (part for part in called if isinstance(part, nn.Module))
        case Mapping():
            for part in value.values():
                yield from _modules(part)
        case list() | tuple():
            for part in value:
                yield from _modules(part)


def _state(value: Any) -> Any:
    """Returns an attribute as JSON can hold it; a search tree and the like are hashed."""
    try:
        return described(value, "detector")
    except TypeError:
        return digest(value)
