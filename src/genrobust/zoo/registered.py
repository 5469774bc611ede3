"""Models by name: how each is built for a data set and trained, and which classes a file of weights names."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, final

from torch import nn

from .._brief import one_line
from .._fields import AtLeastOne, AtLeastZero, check_fields
from ..contract import Classifier
from ..data import DatasetInfo, ImageDataset
from ..registry import Registry
from ..selective import Detector
from ..training.pairs import PairsConfig

__all__ = [
    "CLASSES",
    "MODELS",
    "Build",
    "Composition",
    "Half",
    "Recipe",
    "RegisteredModel",
    "SavedClass",
    "model_with_recipe",
    "register_composition",
    "register_model",
]

Half: TypeAlias = Literal["first", "second"]
Build: TypeAlias = Callable[[DatasetInfo], Classifier]
B = TypeVar("B", bound=Build)
C = TypeVar("C", bound=Callable[..., Classifier])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training's outcome beside model and data set.

    Attributes:
        training: Fields of `training.loop.TrainingConfig`.
        initial: Name of the model whose weights the training starts from, if any; of a purifier, the
            classifier that it cleans for.
        labels_per_class: Labels that training may see; None is all of them.
        half: The half of the training images that training may see; None is all of them.
        pairs: The adversarial images that a purifier is trained on, if it is.
        detectors: Calibrates the trained model's detectors on the images that it has learned from, by name;
            None makes none.
        images_per_class: Labelled images of every class that `detectors` needs; fewer are an error before
            the training, not after it.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    initial: str | None = None
    labels_per_class: AtLeastOne | None = None
    half: Half | None = None
    pairs: PairsConfig | None = None
    detectors: Callable[[Any, ImageDataset], Mapping[str, Detector]] | None = None
    images_per_class: AtLeastZero = 0

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)


@final
@dataclass(frozen=True)
class SavedClass:
    """A class of modules that a file of weights can name.

    Attributes:
        module: The class; its only argument is the config, which it keeps as `config`.
        config: The class of the config, a dataclass.
    """

    module: Callable[[Any], nn.Module]
    config: type


@final
@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A model that has a name.

    Attributes:
        name: The name.
        builder: Builds the untrained model for a data set.
        recipe: Returns how it is trained on a data set.
    """

    name: str
    builder: Build
    recipe: Callable[[DatasetInfo], Recipe]

    def build(self, info: DatasetInfo) -> Classifier:
        """Builds the untrained model, sized for a data set.

        Raises:
            ValueError: If the builder made something that does not take the images of the data set.
        """
        model = self.builder(info)
        if (model.input_shape, model.num_classes) != (info.input_shape, info.num_classes):
            raise ValueError(
                f"Expected {self.name!r} to be built for images of shape {info.input_shape} and "
                f"{info.num_classes} classes, but it takes {model.input_shape} and {model.num_classes}"
            )
        return model

    @property
    def plugin(self) -> Path | None:
        """The user's file that registered it, if one did."""
        return MODELS.plugin_of(self.name)

    def train_command(self, dataset: str) -> str:
        """Returns the command that trains it."""
        words = ["genrobust", "train", self.name, "--dataset", dataset]
        if self.plugin is not None:
            here = self.plugin.is_relative_to(Path.cwd())
            words += ["--plugin", str(self.plugin.relative_to(Path.cwd()) if here else self.plugin)]
        return shlex.join(words)


@final
@dataclass(frozen=True, kw_only=True)
class Composition:
    """A model that is put together from others, and has no weights of its own.

    Attributes:
        name: The name.
        parts: Names of the models that it is made of.
        compose: Puts the loaded models together, in the order of their names.
    """

    name: str
    parts: tuple[str, ...]
    compose: Callable[..., Classifier]

    __repr__ = one_line

    def of(self, load: Callable[[str], Classifier]) -> Classifier:
        """Puts the model together.

        Args:
            load: Loads a part by its name.

        Raises:
            ValueError: If the parts make no classifier.
        """
        made = self.compose(*map(load, self.parts))
        if not isinstance(made, Classifier):
            raise ValueError(
                f"Expected {self.name!r} to be put together as a Classifier, but got {type(made).__name__}"
            )
        return made


MODELS: Registry[RegisteredModel | Composition] = Registry(
    "model", "genrobust.models", own=("genrobust.training.recipes", "genrobust.training.likelihood_recipes")
)
CLASSES: Registry[SavedClass] = Registry(
    "class of models",
    "genrobust.models",
    own=("genrobust.training.recipes", "genrobust.training.likelihood_recipes"),
)


def register_model(
    name: str,
    *,
    classes: Mapping[Callable[[Any], nn.Module], type],
    recipe: Recipe | Callable[[DatasetInfo], Recipe] | None = None,
) -> Callable[[B], B]:
    """Returns a decorator that adds a model, so that training, files, suites and the commands know its name.

    The decorated function builds the untrained model from what is known of a data set.

    Args:
        name: Its name.
        classes: The class of the model, with the class of its config, a dataclass of numbers, strings, tuples
            and dataclasses. A file of weights names the class and holds the config; `read_model` calls the
            class with the config. A purified classifier needs the classes of both parts.
        recipe: The recipe of its training, or a function from the facts about a data set to a recipe; by
            default the defaults of `training.loop.TrainingConfig`.

    Raises:
        ValueError: If another model or another class has the name.

    Example:
        >>> from genrobust import register_model
        >>> from genrobust.models import MLP, MLPConfig
        >>> @register_model("small-mlp", classes={MLP: MLPConfig})
        ... def small_mlp(info):
        ...     shape, classes = info.input_shape, info.num_classes
        ...     return MLP(MLPConfig(input_shape=shape, num_classes=classes, hidden=(20,)))
    """
    for module, config in classes.items():
        CLASSES.register(_class_name(module), SavedClass(module, config), source=module)

    def decorate(build: B) -> B:
        plan = _always(recipe or Recipe()) if recipe is None or isinstance(recipe, Recipe) else recipe
        MODELS.register(name, RegisteredModel(name=name, builder=build, recipe=plan), source=build)
        return build

    return decorate


def register_composition(name: str, *, parts: tuple[str, ...]) -> Callable[[C], C]:
    """Returns a decorator that adds a model made of others, so that suites and `load_model` know its name.

    The decorated function takes the loaded parts, in the order of their names, and returns a classifier. The
    composition is there for a data set if all its parts are, shipped or trained.

    Args:
        name: Its name.
        parts: Names of the models that it is made of.

    Raises:
        ValueError: If another model has the name, or there are no parts.

    Example:
        >>> from genrobust import Purified, load_model
        >>> from genrobust.zoo import register_composition
        >>> @register_composition("comdefend-mlp", parts=("comdefend", "mlp"))
        ... def comdefend_mlp(comdefend, mlp):
        ...     return Purified(comdefend.purifier, mlp)
        >>> load_model("comdefend-mlp", dataset="digits").num_classes
        10
    """
    if not parts or isinstance(parts, str) or name in parts:
        raise ValueError(f"Expected `parts` of {name!r} to be names of other models, but got {parts!r}")

    def decorate(compose: C) -> C:
        MODELS.register(name, Composition(name=name, parts=tuple(parts), compose=compose), source=compose)
        return compose

    return decorate


def model_with_recipe(name: str) -> RegisteredModel:
    """Returns a model that can be trained by its name.

    Raises:
        ValueError: If the name is unknown, or is that of a composition; the message names its parts.
    """
    found = MODELS.get(name)
    if isinstance(found, Composition):
        raise ValueError(
            f"Expected a model with a recipe, but {name!r} is put together from {' and '.join(found.parts)}: "
            "train these"
        )
    return found


def _always(recipe: Recipe) -> Callable[[DatasetInfo], Recipe]:
    return lambda _: recipe


def _class_name(module: Callable[[Any], nn.Module]) -> str:
    if not isinstance(module, type):
        raise ValueError(f"Expected `classes` to map a class to the class of its config, but got {module!r}")
    return module.__name__
