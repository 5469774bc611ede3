"""Models by reference: what a process needs to be told to load one by itself."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import torch

from ..classifier import Classifier, GenerativeClassifier
from ..selective import Detector, SelectiveClassifier, read_detectors
from ..zoo import list_models, load_detectors, load_model, read_model
from ..zoo.recipes import MODEL_NAMES
from .suites import Suite, SuiteModel, check_choice

__all__ = [
    "ModelReference",
    "PickledModel",
    "has_gradient",
    "loaded",
    "missing_weights",
    "reference",
    "with_gradient",
]

WEIGHTS, DETECTORS = "model.safetensors", "detectors.json"
DEFAULT_FOLDER = Path("checkpoints")  # where `genrobust train` leaves models


@final
@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """A shipped model, or one that `genrobust train` left in a folder.

    Attributes:
        entry: The suite's, which may put detectors, a gradient or a budget onto it.
        dataset: What it was trained on.
        folder: Of `<model>-<dataset>/model.safetensors`; what is not there is shipped.
        device: Where it goes.
    """

    entry: SuiteModel
    dataset: str
    folder: Path = DEFAULT_FOLDER
    device: str = "cpu"

    @property
    def trained(self) -> Path:
        """The folder that `genrobust train` writes."""
        return self.folder / f"{self.entry.weights}-{self.dataset}"

    @property
    def path(self) -> Path:
        """The file of trained weights, which need not be there."""
        return self.folder / self.entry.file if self.entry.file else self.trained / WEIGHTS

    @property
    def there(self) -> bool:
        """Whether there are weights."""
        shipped = self.entry.file is None and (self.entry.weights, self.dataset) in list_models()
        return shipped or self.path.is_file()

    @property
    def command(self) -> str:
        """The command that makes the weights."""
        made = f"genrobust train {self.entry.weights} --dataset {self.dataset} --out {self.trained}"
        return self.entry.make or made

    def load(self) -> Classifier:
        """Load the model.

        Raises:
            ValueError: If there are no weights, or the suite asks of the model what it does not have.
        """
        trained = self.path.is_file()
        model = read_model(self.path) if trained else load_model(self.entry.weights, dataset=self.dataset)
        if self.entry.inference:
            model = self._generative(model).with_inference(**self.entry.inference)
        if self.entry.gradient is not None:
            model = with_gradient(model, self.entry.gradient, name=self.entry.name)
        if self.entry.detectors:
            known = self._detectors(trained=trained)
            for detector in self.entry.detectors:
                check_choice(f"detectors of {self.entry.name}", detector, list(known))
            chosen = [known[detector] for detector in self.entry.detectors]
            model = SelectiveClassifier(self._generative(model), chosen)
        return model.to(self.device)

    def _detectors(self, *, trained: bool) -> dict[str, Detector]:
        if trained:
            return read_detectors(self.path.with_name(DETECTORS))
        return load_detectors(self.entry.weights, dataset=self.dataset)

    def _generative(self, model: Classifier) -> GenerativeClassifier:
        if not isinstance(model, GenerativeClassifier):
            raise ValueError(
                f"Expected a generative classifier for `inference` and `detectors` of {self.entry.name!r}, "
                f"but got {type(model).__name__}"
            )
        return model


@final
@dataclass(frozen=True)
class PickledModel:
    """A model that no name stands for.

    Attributes:
        digest: Of the content, which two equal models share.
        content: The model, pickled.
        device: Where it goes.
    """

    digest: str
    content: bytes = field(compare=False, repr=False)
    device: str = "cpu"

    @classmethod
    def of(cls, model: Classifier) -> "PickledModel":
        """Pickle a model, its class too if that was defined in a script."""
        import cloudpickle

        content = cloudpickle.dumps(model)
        device = str(next(model.parameters()).device)
        return cls(hashlib.sha256(content).hexdigest(), content, device)

    def load(self) -> Classifier:
        """Restore the model."""
        import cloudpickle

        model: Classifier = cloudpickle.loads(self.content)
        return model.to(torch.device(self.device))


@lru_cache(maxsize=16)
def loaded(source: ModelReference | PickledModel) -> Classifier:
    """Load a model once in this process; its codebooks stay with it."""
    return source.load()


def reference(suite: Suite, name: str, *, folder: Path | None = None, device: str = "cpu") -> ModelReference:
    """Give the reference of a model of a suite, or of any other model of the zoo.

    Raises:
        ValueError: If there is no recipe of that name; the nearest is named.
    """
    entry = suite.model(name)
    if entry.file is None:
        check_choice("models", entry.weights, MODEL_NAMES)
    return ModelReference(entry=entry, dataset=suite.dataset, folder=folder or DEFAULT_FOLDER, device=device)


def missing_weights(references: Iterable[ModelReference]) -> Mapping[str, str]:
    """Give, for every model without weights, the command that makes them."""
    return {source.entry.name: source.command for source in references if not source.there}


def with_gradient(model: Classifier, gradient: str, *, name: str) -> Classifier:
    """Give a variant that hands out another surrogate gradient.

    Args:
        model: The model.
        gradient: Of those that its `with_gradient` takes.
        name: Of the model, for the error.

    Raises:
        ValueError: If the model has no such gradient.
    """
    change: Any = getattr(model, "with_gradient", None)
    if change is None:
        raise ValueError(f"Expected a model with surrogate gradients, but {name!r} has none")
    changed: Classifier = change(gradient)
    return changed


def has_gradient(model: Classifier, gradient: str) -> bool:
    """Say whether a model has a surrogate gradient of that name."""
    try:
        with_gradient(model, gradient, name="model")
    except ValueError:
        return False
    return True
