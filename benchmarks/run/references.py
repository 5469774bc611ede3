"""Where the models of a run come from, and how other processes get them."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import final

import torch

from ..._fields import check_choice
from ...contract import Classifier, GenerativeClassifier
from ...selective import Detector, GuardedClassifier, SelectiveClassifier, read_detectors
from ...zoo import list_models, load_detectors, load_model, read_model
from ...zoo.registered import MODELS, Composition, model_with_recipe
from ...zoo.weight_files import WEIGHTS, check_card
from ..suites.model import Suite, SuiteModel

__all__ = [
    "GIVEN",
    "ModelReference",
    "PickledModel",
    "loaded",
    "missing_weights",
    "reference",
]

DETECTORS = "detectors.json"
GIVEN = "given by the caller"  # in place of where weights come from: the model is no reference
DEFAULT_FOLDER = Path("checkpoints")  # where `genrobust train` leaves models


@final
@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """A shipped model, one that `genrobust train` left in a folder, or one that is made of such models.

    Attributes:
        entry: The suite's, which may put detectors, a gradient or a budget onto it.
        dataset: What it was trained on.
        folder: Folder of `<model>-<dataset>/model.safetensors`, whose weights come before shipped ones; None
            takes shipped weights, and those of `checkpoints` only where none are shipped.
        device: Where it goes.
    """

    entry: SuiteModel
    dataset: str
    folder: Path | None = None
    device: str = "cpu"

    @property
    def trained(self) -> Path:
        """The folder that `genrobust train` writes."""
        return (self.folder or DEFAULT_FOLDER) / f"{self.entry.weights}-{self.dataset}"

    @property
    def path(self) -> Path:
        """The file of trained weights, which need not be there."""
        return self.trained / WEIGHTS

    @property
    def shipped(self) -> bool:
        """Whether the package's own weights are taken."""
        here = self.folder is not None and self.path.is_file()
        return not here and (self.entry.weights, self.dataset) in list_models()

    @property
    def origin(self) -> str:
        """Returns where the weights come from: shipped, or a path; of several parts, for each of them."""
        if self.parts:
            return ", ".join(f"{part.entry.name} {part.origin}" for part in self.parts)
        own = "shipped" if self.shipped else f"from {self.path}"
        return own if self.guard is None else f"{own}, guard {self.guard.origin}"

    @property
    def parts(self) -> tuple["ModelReference", ...]:
        """The models that this one is put together from; empty if it has weights of its own."""
        found = MODELS.get(self.entry.weights)
        names = found.parts if isinstance(found, Composition) else ()
        return tuple(replace(self, entry=SuiteModel(name=name, title=name)) for name in names)

    @property
    def there(self) -> bool:
        """Whether there are weights, of the parts and of the guard too."""
        own = self.shipped or self.path.is_file()
        here = all(part.there for part in self.parts) if self.parts else own
        return here and (self.guard is None or self.guard.there)

    @property
    def guard(self) -> "ModelReference | None":
        """The model that guards this one, without its detectors."""
        if self.entry.guard is None:
            return None
        return replace(self, entry=SuiteModel(name=self.entry.guard, title=self.entry.guard))

    @property
    def command(self) -> str:
        """The command that makes the weights; those of the guard, if the model's own are there."""
        if self.guard is not None and replace(self, entry=replace(self.entry, guard=None)).there:
            return self.guard.command
        if self.parts:
            return " && ".join(part.command for part in self.parts if not part.there)
        return f"{model_with_recipe(self.entry.weights).train_command(self.dataset)} --out {self.trained}"

    def load(self) -> Classifier:
        """Loads the model.

        Raises:
            ValueError: If there are no weights, or the suite asks of the model what it does not have.
        """
        model = self._as_named()
        if self.entry.inference:
            model = self._generative(model).with_inference(**self.entry.inference)
        if self.entry.gradient is not None:
            model = model.with_gradient(self.entry.gradient)
        if self.guard is not None:
            guard = self._generative(self.guard.load())
            model = GuardedClassifier(model, guard, self.guard._chosen(self.entry))
        elif self.entry.detectors:
            model = SelectiveClassifier(self._generative(model), self._chosen(self.entry))
        return model.to(self.device)

    def _as_named(self) -> Classifier:
        """Returns the model without what the suite's entry puts onto it."""
        found = MODELS.get(self.entry.weights)
        if isinstance(found, Composition):
            parts = {part.entry.name: part for part in self.parts}
            return found.of(lambda name: parts[name].load())
        if self.shipped:
            return load_model(self.entry.weights, dataset=self.dataset)
        return read_model(self.path)

    def _chosen(self, entry: SuiteModel) -> list[Detector]:
        """Returns those of this model's detectors that an entry of the suite names."""
        if self.shipped:
            known = load_detectors(self.entry.weights, dataset=self.dataset)
        else:
            check_card(self.path, file=self.path.with_name(DETECTORS), entry="detectors_sha256")
            known = read_detectors(self.path.with_name(DETECTORS))
        for detector in entry.detectors:
            check_choice(f"detectors of {entry.name}", detector, list(known))
        return [known[detector] for detector in entry.detectors]

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
    """A model as it is sent to other processes: by value, so that they need none of its files.

    Attributes:
        digest: Digest of the content, which two equal models share.
        content: The model, pickled.
        device: Where it goes.
    """

    digest: str
    content: bytes = field(compare=False, repr=False)
    device: str = "cpu"

    @classmethod
    def of(cls, model: Classifier) -> "PickledModel":
        """Pickles a model, its class too if that was defined in a script."""
        import cloudpickle

        content = cloudpickle.dumps(model)
        device = str(model.like.device)
        return cls(hashlib.sha256(content).hexdigest(), content, device)

    def load(self) -> Classifier:
        """Restores the model."""
        import cloudpickle

        model: Classifier = cloudpickle.loads(self.content)
        return model.to(torch.device(self.device))


@lru_cache(maxsize=16)
def loaded(source: PickledModel) -> Classifier:
    """Restores a model once in this process; its codebooks stay with it."""
    return source.load()


def reference(suite: Suite, name: str, *, folder: Path | None = None, device: str = "cpu") -> ModelReference:
    """Returns the reference of a model of a suite, or of any other model of the zoo.

    Raises:
        ValueError: If there is no recipe of that name; the nearest is named.
    """
    entry = suite.model(name)
    MODELS.get(entry.weights)
    return ModelReference(entry=entry, dataset=suite.dataset, folder=folder, device=device)


def missing_weights(references: Iterable[ModelReference]) -> Mapping[str, str]:
    """Returns, for every model without weights, the command that makes them."""
    return {source.entry.name: source.command for source in references if not source.there}
