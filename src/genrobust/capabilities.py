"""What some models can do beside deciding. A model declares each capability by inheriting its class."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from .contract import Classifier
    from .inference import InferenceBudget, LatentObjective
    from .randomness import NoiseSource

__all__ = [
    "Certifiable",
    "ClassifiesNoised",
    "DecidesByEncoder",
    "DecodesMixture",
    "Defended",
    "Denoises",
    "Encodes",
    "EncodesMixture",
    "LabelsLatents",
    "Quantizes",
    "Randomized",
    "Reclassifies",
    "Reconstructs",
    "Samples",
    "Searches",
    "Tempered",
    "Tightens",
    "Trainable",
]


class Randomized(ABC):
    """Abstract: draws noise, from a source that can be exchanged."""

    @abstractmethod
    def with_noise(self, noise: "NoiseSource") -> Self:
        """Returns a variant, with the same weights, whose own noise comes from another source."""


class Quantizes(ABC):
    """Abstract: reads images in fewer levels than they have, so that many images get the same answer."""

    @abstractmethod
    def nearest_alike(
        self,
        x: Float[Tensor, "batch channels height width"],
        to: Float[Tensor, "batch channels height width"],
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns, of the images that are answered as `x` is, the one that is nearest to `to`, in any norm.

        The rest of a perturbation changes nothing: an attack that returns it reports too great a distance.
        """


class Reconstructs(ABC):
    """Abstract: shows what it makes of an image, as each class."""

    @abstractmethod
    def reconstruct(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns r(x, y) for every class y."""


class Samples(ABC):
    """Abstract: draws images of every class."""

    @abstractmethod
    def sample(
        self, per_class: int, *, generator: torch.Generator
    ) -> Float[Tensor, "classes samples channels height width"]:
        """Draws images of every class."""


class Encodes(ABC):
    """Abstract: says where images are in its latent space."""

    @abstractmethod
    def encode(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch latent"]:
        """Returns the mean of q(z | x), or of q(z | x, y), differentiable in x."""


class LabelsLatents(ABC):
    """Abstract: a part of each class score is log p(y | z), the label of a latent."""

    @property
    def labels_latents(self) -> bool:
        """Whether its configuration has that part, so that `label_scores` works."""
        return True

    @abstractmethod
    def label_scores(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Returns E[log p(k | z)] over z ~ q(z | x, k) for every class k, differentiable in x.

        Raises:
            ValueError: If its configuration has no p(y | z).
        """


class EncodesMixture(Encodes):
    """Abstract: knows where images of a class are in its latent space.

    Attributes:
        means: The mean of every class, shape (K, D); a buffer.
    """

    means: Tensor


class DecodesMixture(EncodesMixture):
    """Abstract: one decoder serves all classes, with a mean for each."""

    @property
    @abstractmethod
    def objective(self) -> "LatentObjective":
        """||x - g(z)||^2, with a problem per class."""


class Certifiable(ABC):
    """Abstract: its class scores are a constant less min (||x - G_k(z)||^2 + P_k(z)) / (2 variance)."""

    @abstractmethod
    def certificate_terms(self) -> tuple[float, float]:
        """Returns the variance, and the least value in nats that P_k takes for any latent of any class.

        Raises:
            ValueError: If the configuration has no such form; the message says why.
        """


class ClassifiesNoised(ABC):
    """Abstract: knows how to classify images under Gaussian noise of a level that it is told.

    A smoothed classifier asks such a model directly, in place of clipping noisy images to [0, 1].
    """

    @abstractmethod
    def noised_scores(
        self, noisy: Float[Tensor, "batch channels height width"], *, sigma: float
    ) -> Float[Tensor, "batch classes"]:
        """Returns scores of noisy images, differentiable in them; their argmax is the decision.

        Args:
            noisy: x + sigma * eps for images x in [0, 1] and eps ~ N(0, I), not clipped.
            sigma: The standard deviation of the noise.
        """


class Denoises(ABC):
    """Abstract: removes Gaussian noise from images of any class."""

    @abstractmethod
    def overall(
        self, noisy: Float[Tensor, "batch channels height width"], sigma: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the mean of the images that could be behind noisy ones, differentiable.

        Args:
            noisy: Images with noise, which may leave [0, 1].
            sigma: Standard deviation of each image's noise.
        """


class DecidesByEncoder(ABC):
    """Abstract: has an encoder that decides by itself, which an attack can be shown alone."""

    @abstractmethod
    def encoder_view(self) -> "Classifier":
        """Returns the encoder as a classifier, which shares the weights."""


class Searches(ABC):
    """Abstract: optimises latents at inference.

    Attributes:
        budget: How hard it looks.
    """

    budget: "InferenceBudget"


class Tightens(ABC):
    """Abstract: has a variant whose inference is nearer to exact."""

    @abstractmethod
    def tightened(self) -> Self:
        """Returns a slower variant, with the same weights, whose inference ends nearer to the minima.

        Certificates are computed from it. It is also a surrogate: what fools it and not the model itself is
        hidden by inference that has not converged.
        """


class Defended(ABC):
    """Abstract: a defence around a classifier."""

    @abstractmethod
    def bare(self) -> "Classifier":
        """Returns the classifier without its defence."""

    @abstractmethod
    def passed_on(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns images as the bare classifier is shown them."""

    @property
    def generates(self) -> bool:
        """Whether a generator makes the images that are passed on, so that `latents` and `decode` work."""
        return False

    def latents(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent"]:
        """Returns where the defence encodes images, as a constant.

        Raises:
            ValueError: If it has no generator.
        """
        del x
        raise ValueError(f"Expected a defence with a generator, but got {type(self).__name__}")

    def decode(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
        """Returns what the generator makes of latents, differentiable.

        Raises:
            ValueError: If it has no generator.
        """
        del z
        raise ValueError(f"Expected a defence with a generator, but got {type(self).__name__}")


class Reclassifies(ABC):
    """Abstract: looks again at images that it rejected."""

    @abstractmethod
    def reclassified(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """Returns the class of each image, and where it is too far from every class to be believed.

        Raises:
            ValueError: If the model, or what it rejects by, does not allow it.
        """


class Tempered(ABC):
    """Abstract: divides class scores by a temperature.

    Attributes:
        temperature: What class scores are divided by to give logits; a buffer without axes.
        calibrates_temperature: Whether training sets it, on validation data; otherwise it is the paper's.
    """

    temperature: Tensor
    calibrates_temperature: bool


class Trainable(ABC):
    """Abstract: `training.fit` trains it.

    Attributes:
        class_balanced: Whether training batches are (B, K, C, H, W), with as many images of every class;
            otherwise they are (B, C, H, W).
        validation_budget: Fields of `with_inference` for comparing epochs: a fraction of the usual cost.
    """

    class_balanced: bool = False
    validation_budget: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @property
    @abstractmethod
    def phases(self) -> Mapping[str, list[nn.Parameter]]:
        """The parameters that each phase of a step updates, in order."""

    @abstractmethod
    def training_loss(self, phase: str, x: Tensor, y: Int[Tensor, " batch"]) -> Tensor:
        """Returns the loss of one phase, a scalar.

        A model that learns from pairs takes the clean images as a fourth argument.

        Args:
            phase: One of `phases`.
            x: Images.
            y: Their classes; -1 where a data set hides them.
        """

    @property
    def selected_by(self) -> str:
        """Names the score that chooses the epoch that training keeps."""
        return "accuracy"

    def selection_images(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the images on which training compares epochs: the validation images themselves."""
        del y
        return x

    @property
    def max_gradient_norm(self) -> float | None:
        """What the gradient of a step is clipped to; None does not clip."""
        return None

    def make_optimizer(
        self, phase: str, parameters: list[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """Makes the optimiser of a phase: Adam."""
        del phase
        return torch.optim.Adam(parameters, lr=learning_rate)
