"""The contract that every classifier of this package keeps towards toolkits and attackers."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ._precision import check_precision, without_autocast
from ._settings import Described, hashed, settings_of
from .capabilities import Randomized
from .checks import check_images
from .likelihoods import log_mean_exp
from .prediction import NO_PREDICTION, Prediction, decision
from .randomness import FreshNoise, Mode, noise_source

__all__ = [
    "NO_PREDICTION",
    "Classifier",
    "GenerativeClassifier",
    "ImageModule",
    "ModelView",
    "Prediction",
    "decision",
    "fingerprint",
]


class ImageModule(nn.Module, Described):
    """Abstract: takes checked images in [0, 1]; its output does not depend on `training`.

    Toolkits switch `train()` and `eval()` at will (ART and torchattacks force `eval`, Foolbox leaves the
    mode). The parts therefore stay in evaluation mode unless the training loop calls `set_parts_training`.

    Attributes:
        input_shape: (C, H, W).
        randomized: Whether the output depends on drawn noise.
        always_fresh: Whether every call draws anew, so that the noise cannot be held fixed.
        takes_half: Whether weights may be in half precision.
        caches: Names of attributes that do not affect the output. `settings` leaves them out.
    """

    randomized = False
    always_fresh = False
    takes_half: ClassVar[bool] = False
    caches: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.training = False

    @property
    def like(self) -> Tensor:
        """A tensor on the device and in the dtype of the weights; without weights, of float32 on the CPU."""
        return next(self.parameters(), torch.zeros((), dtype=torch.float32))

    def check(self, x: Tensor) -> Float[Tensor, "batch channels height width"]:
        """Checks images against this module's shape, device and range, and casts them to its dtype.

        Raises:
            ValueError: If they do not fit, or the weights are in half precision, which spoils inference.
            TypeError: If `x` is no tensor.
        """
        place = next(self.parameters(), x)
        if place is not x and not self.takes_half:
            check_precision(place.dtype, self)
        return check_images(x, input_shape=self.input_shape, device=place.device, dtype=place.dtype)

    @final
    def settings(self) -> dict[str, Any]:
        """Returns everything that changes the output, as JSON values.

        The settings are the class, every attribute (configuration, budget, gradient, noise, detectors), a
        hash of the weights, and the settings of every part. An attribute counts unless `caches` names it, so
        that a wrapper cannot hide its part's settings.

        Raises:
            TypeError: If an attribute cannot be written down; the message names it.
        """
        found, behaviour = settings_of(self, left_out=self.caches), self._behaviour()
        return found if behaviour is None else {**found, "behaviour": behaviour}

    def _behaviour(self) -> Any:
        """Returns the output for fixed inputs if attributes do not determine the behaviour, else None."""
        return None

    @property
    def inference(self) -> Mapping[str, Any]:
        """The fields that `with_inference` takes, with their values; empty if there are none."""
        return {}

    def with_inference(self, **budget: Any) -> Self:
        """Returns a variant that shares the weights and has another inference budget.

        Args:
            **budget: Fields of `inference`.

        Raises:
            ValueError: If a field is unknown or its value is invalid.
        """
        if budget:
            raise ValueError(
                f"Expected a model with a budget of inference for {sorted(budget)}, "
                f"but {type(self).__name__} has none"
            )
        return self

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Returns a variant that shares the weights and draws its noise, and its parts', in another mode.

        A module without noise and parts returns itself.

        Args:
            mode: `"fixed"` draws a sequence from `seed`, the same at every call and for every row. `"fresh"`
                draws new noise for every call and row, for expectation over transformation and for verdicts.
            seed: The seed of the sequence or of the generator.
            generator: The generator of the fresh mode; it advances with every call. All parts share it.

        Raises:
            NotImplementedError: If the module draws noise, but does not inherit `Randomized`.
        """
        noise = noise_source(mode, seed=seed, generator=generator)
        shared = noise.generator if isinstance(noise, FreshNoise) else None
        variant = self._with_parts(lambda part: part.with_randomness(mode, seed=seed, generator=shared))
        if isinstance(variant, Randomized):
            return variant.with_noise(noise)
        if self.randomized and not any(part.randomized for part in self._parts().values()):
            raise NotImplementedError(
                f"Expected {type(self).__name__}, which draws noise, to inherit `Randomized`"
            )
        return variant

    def with_candidates(self, seed: int) -> Self:
        """Returns a variant that searches, or whose parts search, among other candidates, or itself."""
        variant = self._with_parts(lambda part: part.with_candidates(seed))
        return variant.with_inference(seed=seed) if "seed" in variant.inference else variant

    def _parts(self) -> "dict[str, ImageModule]":
        return {name: part for name, part in self._modules.items() if isinstance(part, ImageModule)}

    def _with_parts(self, change: "Callable[[ImageModule], ImageModule]") -> Self:
        """Returns a variant with other parts, or itself without parts."""
        if not (parts := self._parts()):
            return self
        variant = self._variant()
        variant._modules = {**self._modules, **{name: change(part) for name, part in parts.items()}}
        return variant

    def train(self, mode: bool = True) -> Self:
        """Stores the flag and leaves the parts in evaluation mode."""
        self.training = mode
        return self

    def set_parts_training(self, mode: bool) -> None:
        """Switches batch normalisation and dropout of the parts, for training loops only."""
        for part in self.children():
            part.train(mode)

    @property
    def training_only(self) -> frozenset[str]:
        """The names of the parts that only training reads: shipped files leave them out."""
        return frozenset()

    def _variant(self, **attributes: object) -> Self:
        """Returns a shallow copy with the same parts and weights and other settings; mutates nothing."""
        variant = copy.copy(self)
        variant._modules = dict(self._modules)
        for name, value in attributes.items():
            setattr(variant, name, value)
        return variant


class Classifier(ImageModule):
    """Abstract: maps checked images in [0, 1] to logits, independently of `training`.

    Every call looks at the values of its images. `torch.compile` takes that; `torch.jit.script`,
    `torch.export` and `torch.vmap` do not. `torch.jit.trace` gives a module that checks no images.

    Attributes:
        num_classes: K.
        rejects: Whether the logits have a further column K, "reject".
    """

    rejects = False

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(input_shape=input_shape)
        self.num_classes = num_classes

    @property
    def gradients(self) -> tuple[str, ...]:
        """The names that `with_gradient` takes; empty if there is only one gradient."""
        return ()

    @final
    def with_gradient(self, gradient: Any) -> Self:
        """Returns a variant that shares the weights and gives attackers another gradient.

        Args:
            gradient: One of `gradients`, or a strategy of `genrobust.gradients` with its own settings.

        Raises:
            ValueError: If the model has no such gradient; the message lists its gradients.
        """
        if not self.gradients:
            raise ValueError(f"Expected a model with surrogate gradients, but {type(self).__name__} has none")
        if isinstance(gradient, str) and gradient not in self.gradients:
            raise ValueError(
                f"Expected `gradient` out of {list(self.gradients)} for {type(self).__name__}, "
                f"but got {gradient!r}"
            )
        return self._with_gradient(gradient)

    def _with_gradient(self, gradient: Any) -> Self:
        """Returns a variant with another gradient, whose name is one of `gradients`."""
        raise NotImplementedError(
            f"Expected {type(self).__name__}, which has `gradients`, to define `_with_gradient`"
        )

    @property
    def num_columns(self) -> int:
        """Number of columns of the logits: K, or K + 1 if the classifier may reject."""
        return self.num_classes + self.rejects

    @abstractmethod
    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Returns the logits of checked images."""

    @without_autocast
    def forward(self, x: Tensor) -> Float[Tensor, "batch columns"]:
        """Returns the logits of images in [0, 1]; their argmax is the decision.

        Shape: (B, C, H, W) -> (B, K), or (B, K + 1) if the classifier may reject.
        """
        return self.logits(self.check(x))

    def logits_of_draws(
        self, x: Float[Tensor, "draws batch channels height width"]
    ) -> Float[Tensor, "batch columns"]:
        """Returns the logits that several draws of the noise give together, differentiable in x.

        They are the log of the mean softmax, unless a model has a better rule. Every draw is a call, since a
        module may draw once per batch.

        Args:
            x: Checked images, once for every draw.
        """
        return log_mean_exp(torch.stack([self.logits(images).log_softmax(1) for images in x]))

    @torch.no_grad()
    @without_autocast
    def predict(self, x: Tensor) -> Prediction:
        """Returns labels, probabilities, rejections and scores of images in [0, 1]."""
        logits = self(x)
        labels = decision(logits)
        return Prediction(
            labels=labels,
            probabilities=logits[:, : self.num_classes].softmax(1),
            rejected=labels >= self.num_classes,
            scores=logits[:, : self.num_classes],
        )


class GenerativeClassifier(Classifier):
    """Abstract: decides for the class that could have produced the image."""

    @abstractmethod
    def class_scores(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Returns a bound (or its estimate) on log p(x, y = k) in nats, differentiable in x.

        A model whose score bounds nothing says so in its class. All models of this package take p(y) = 1/K,
        also where a data set has unequal classes: the image alone decides then, and a frequent class is no
        easier target for an attack. Adding log p(y = k) + log K to the scores gives those of another prior.

        Shape: (B, C, H, W) -> (B, K).
        """

    @abstractmethod
    def scores_to_logits(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch columns"]:
        """Returns logits for class scores by a monotone map, so that argmax stays the decision."""

    @abstractmethod
    def probabilities(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns p(y | x) for class scores."""

    def log_density(self, x: Tensor) -> Float[Tensor, " batch"]:
        """Returns a bound (or its estimate) on log p(x) in nats, differentiable in x.

        Shape: (B, C, H, W) -> (B,).
        """
        return self.class_scores(x).logsumexp(1)

    def combine(self, draws: Float[Tensor, "draws batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns the class scores that several draws of the noise give together.

        This is their mean: it estimates the bound that every draw estimates, such as an ELBO, with less
        variance. If exp(draw) is an unbiased estimate of p(x, y), as importance weights are,
        `likelihoods.log_mean_exp` is a tighter bound, and the model overrides this method. For draws of
        E_q[log ...], log-mean-exp would estimate nothing and follow the luckiest draw.
        """
        return draws.mean(0)

    def scores_of_draws(
        self, x: Float[Tensor, "draws batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns the class scores that the draws give together; all draws run as one batch."""
        return self.combine(self.class_scores(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Returns the logits of checked images."""
        return self.scores_to_logits(self.class_scores(x))

    def logits_of_draws(
        self, x: Float[Tensor, "draws batch channels height width"]
    ) -> Float[Tensor, "batch columns"]:
        """Returns the logits of the class scores that the draws give together."""
        return self.scores_to_logits(self.scores_of_draws(x))

    @torch.no_grad()
    @without_autocast
    def predict(self, x: Tensor) -> Prediction:
        """Returns the decision together with the class scores."""
        scores = self.class_scores(x)
        labels = decision(self.scores_to_logits(scores))
        return Prediction(
            labels=labels,
            probabilities=self.probabilities(scores),
            rejected=labels >= self.num_classes,
            scores=scores,
            refined=self.refined_at_last_call if len(x) else None,
        )

    @property
    def refined_at_last_call(self) -> Bool[Tensor, "batch classes"] | None:
        """Whether the last call's scores are as tight as the budget allows; None means that all are."""
        return None


class ModelView(Classifier):
    """Abstract: a view of a classifier with its shapes, weights, budget and gradients.

    Attributes:
        model: The classifier.
    """

    model: Classifier

    def __init__(self, model: Classifier) -> None:
        super().__init__(input_shape=model.input_shape, num_classes=model.num_classes)
        self.model = model
        self.randomized = model.randomized
        self.rejects = model.rejects

    def check(self, x: Tensor) -> Float[Tensor, "batch channels height width"]:
        """Checks images as the model does."""
        return self.model.check(x)

    @property
    def inference(self) -> Mapping[str, Any]:
        """The model's."""
        return self.model.inference

    @property
    def gradients(self) -> tuple[str, ...]:
        """The model's."""
        return self.model.gradients

    def with_inference(self, **budget: Any) -> Self:
        """Returns a view of the model with another budget."""
        return self._of(self.model.with_inference(**budget))

    def _with_gradient(self, gradient: Any) -> Self:
        return self._of(self.model.with_gradient(gradient))

    def _of(self, model: Classifier) -> Self:
        return self._variant(model=model, randomized=model.randomized)


def fingerprint(model: ImageModule) -> str:
    """Returns the SHA-256 of a model's settings, which is equal for models of equal output in any process."""
    return hashed(model.settings())
