"""Models as one safetensors file, which holds the weights and, as metadata, the class and its config.

A purified classifier has two parts, each with its own class and config.
"""

import json
import os
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._fields import checked
from .._files import read_json, sha256_of
from .._tensors import TensorFile, shapes_alone, write_tensors
from ..capabilities import Tempered
from ..contract import Classifier, ImageModule
from ..nets.absent import Absent
from ..purifiers.base import Purified
from ..randomness import isolated_rng
from .registered import CLASSES, SavedClass

__all__ = ["CARD", "WEIGHTS", "Precision", "check_card", "config_from_dict", "read_model", "save_model"]

WEIGHTS, CARD = "model.safetensors", "card.json"  # as a training names them

T = TypeVar("T")
Precision = Literal["float32", "float16", "bfloat16"]
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_PURIFIED = "Purified"  # stands for two modules, each of a class of its own
_PARTS = ("purifier", "classifier")
_FAILURES = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)  # of a config


def save_model(
    model: Classifier,
    path: str | os.PathLike[str],
    *,
    precision: Precision = "float32",
    for_inference: bool = False,
) -> None:
    """Writes a model's weights and config atomically.

    Args:
        model: The model.
        path: The file.
        precision: How weights with two or more axes are stored. Vectors and scalars, such as biases, batch
            normalisation and temperature, keep their own precision.
        for_inference: Whether to leave out the parts that only training reads.

    Raises:
        ValueError: If the class of the model, or of a part, is not registered by `register_model`, the
            precision is unknown, or a weight is too large for it.
    """
    if precision not in _DTYPES:
        raise ValueError(f"Expected `precision` out of {list(_DTYPES)}, but got {precision!r}")
    description = _description(model)
    metadata = {"model": description["model"], "config": json.dumps(description["config"])}
    if plugins := sorted(_plugins(description)):
        metadata["plugins"] = json.dumps(plugins)
    left_out = _training_only(model) if for_inference else frozenset()
    weights = {
        key: _stored(key, value, precision)
        for key, value in model.state_dict().items()
        if not any(key.startswith(f"{part}.") for part in left_out)
    }
    write_tensors(path, weights, metadata=metadata)


def read_model(path: str | os.PathLike[str]) -> Classifier:
    """Builds the model that a file describes, with its weights in float32, on the CPU.

    The file holds data alone: the name of a registered class, and its config. No code comes from it. What the
    config asks for is compared with the tensors that are there before memory is spent on it. Where a card
    lies beside the file, it has to be the card of these weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no model of a registered class (the message names the plug-in that
            registers it), or is damaged: it lacks tensors, or has others, or a number is not finite, or is
            nothing that a model can decide with. Or if the card beside it is one of other weights.
    """
    file = TensorFile.open(path)
    plan = _Plan.of(file)
    # A user's class may need numbers while it is built, which the device `meta` lacks.
    if plan.ours:
        with shapes_alone():
            blank = _without_absent(plan.build(), file)
        file.check(blank.state_dict())
    with isolated_rng(0):  # initial weights are drawn, and then replaced
        built = plan.build().to(device="cpu", dtype=torch.float32)
    model: Classifier = _without_absent(built, file)
    file.check(model.state_dict())
    check_card(file.path)
    model.load_state_dict(file.read())  # which casts to the parameters' float32
    _check_usable(model, file.path)
    return model


def check_card(path: Path, *, file: Path | None = None, entry: str = "weights_sha256") -> None:
    """Checks that the card beside a file of weights, if there is one, is the card of these weights.

    Args:
        path: The weights.
        file: The file that the card has the hash of; None is the weights.
        entry: The entry of the card that holds the hash; a card without it says nothing.

    Raises:
        ValueError: If the card was written for another file, or cannot be read.
    """
    card = path.with_name(CARD) if path.name == WEIGHTS else path.with_suffix(".json")
    content = read_json(card) if card.is_file() else None
    known = content.get(entry) if isinstance(content, Mapping) else None
    if known is not None and known != sha256_of(file or path):
        raise ValueError(
            f"Expected {file or path} to be the file that {card} describes, but its content is another: "
            "train again, or remove the card"
        )


@dataclass(frozen=True)
class _Plan:
    """The class that a file names, with its config; of a purified classifier, those of both parts."""

    path: Path
    classes: tuple[SavedClass, ...]
    configs: tuple[Any, ...]

    @classmethod
    def of(cls, file: TensorFile) -> "_Plan":
        path, metadata = file.path, file.metadata
        plugins, config = (_parsed(metadata, name, path) for name in ("plugins", "config"))
        described: list[Any] = [{"model": metadata.get("model", ""), "config": config}]
        if described[0]["model"] == _PURIFIED:
            described = [config.get(part) if isinstance(config, Mapping) else None for part in _PARTS]
        if not all(isinstance(part, Mapping) and {"model", "config"} <= part.keys() for part in described):
            raise ValueError(
                f"Expected {path} to describe both {' and '.join(_PARTS)}, but got {config!r:.60}"
            )
        classes = tuple(_class_named(str(part["model"]), path, plugins) for part in described)
        with _naming(path):
            pairs = zip(classes, described, strict=True)
            configs: tuple[Any, ...] = tuple(
                config_from_dict(kind.config, part["config"]) for kind, part in pairs
            )
        return cls(path, classes, tuple(configs))

    @property
    def ours(self) -> bool:
        """Whether all classes are this package's."""
        return all(_package_of(saved) == __package__.partition(".")[0] for saved in self.classes)

    def build(self) -> Any:
        """Builds the model, without its weights.

        Raises:
            ValueError: If the config describes nothing that can be built.
        """
        with _naming(self.path):
            built: list[Any] = [
                saved.module(config) for saved, config in zip(self.classes, self.configs, strict=True)
            ]
            return Purified(*built) if len(built) > 1 else built[0]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file in whatever its config leads to: no config of a trained model raises anything."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"Expected {path} to describe a model, but its config fails: {error}") from error


def _parsed(metadata: Mapping[str, str], name: str, path: Path) -> Any:
    try:
        return json.loads(metadata.get(name, "[]" if name == "plugins" else "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected `{name}` in {path} to be JSON, but it failed: {error}") from error


def _class_named(name: str, path: Path, plugins: Any) -> SavedClass:
    if name not in CLASSES:
        known = isinstance(plugins, list) and plugins
        remedy = (
            f"load {' and '.join(map(str, plugins))} first, by `--plugin` or `genrobust.load_plugin`"
            if known
            else f"known are {', '.join(CLASSES.names())}"
        )
        raise ValueError(f"Expected a model of a registered class in {path}, but got {name!r}; {remedy}")
    return CLASSES.get(name)


def _without_absent(model: Any, file: TensorFile) -> Any:
    """Replaces what only training reads, where the file leaves it out."""
    for part in _training_only(model):
        if not any(key.startswith(f"{part}.") for key in file.shapes):
            parent, _, name = part.rpartition(".")
            setattr(model.get_submodule(parent), name, Absent(name))
    return model


def _check_usable(model: nn.Module, path: Path) -> None:
    """Checks the weights that not every number suits."""
    for name, part in model.named_modules():
        where = f"{name}." if name else ""
        if isinstance(part, Tempered) and not (part.temperature > 0).all():
            raise ValueError(
                f"Expected `{where}temperature` in {path} to be above 0, but got {float(part.temperature)}"
            )
        variance = part.running_var if isinstance(part, _BatchNorm) else None
        if variance is not None and (variance < 0).any():
            raise ValueError(
                f"Expected variances of at least 0 in {path}, but `{where}running_var` has a minimum of "
                f"{float(variance.min())}"
            )


def _training_only(model: Classifier) -> frozenset[str]:
    modules = ((path, module) for path, module in model.named_modules() if isinstance(module, ImageModule))
    return frozenset(
        f"{path}.{name}".lstrip(".") for path, module in modules for name in module.training_only
    )


def _stored(key: str, value: Tensor, precision: Precision) -> Tensor:
    value = value.detach().cpu().contiguous()
    if value.ndim < 2 or value.dtype != torch.float32:
        return value
    stored = value.to(_DTYPES[precision])
    if not torch.equal(stored.isfinite(), value.isfinite()):
        raise ValueError(
            f"Expected weights that fit {precision}, but {key} has a maximum of {value.abs().max()}"
        )
    return stored


def _description(model: Any) -> dict[str, Any]:
    if isinstance(model, Purified):
        parts = {"purifier": _description(model.purifier), "classifier": _description(model.classifier)}
        return {"model": _PURIFIED, "config": parts}
    name = type(model).__name__
    if name not in CLASSES or CLASSES.get(name).module is not type(model):
        raise ValueError(
            f"Expected a model of a class that `register_model` was told, {', '.join(CLASSES.names())}, but "
            f"got {name}"
        )
    return {"model": name, "config": asdict(model.config)}


def _plugins(description: Mapping[str, Any]) -> set[str]:
    """Names what has to be loaded before a file can be read: a user's file, or an installed package."""
    if description["model"] == _PURIFIED:
        return set().union(*map(_plugins, description["config"].values()))
    name = description["model"]
    plugin = CLASSES.plugin_of(name)
    if plugin is not None:
        return {plugin.name}
    package = _package_of(CLASSES.get(name))
    return set() if package == __package__.partition(".")[0] else {package}


def _package_of(saved: SavedClass) -> str:
    return saved.module.__module__.partition(".")[0]


def config_from_dict(config_class: type[T], values: Mapping[str, Any]) -> T:
    """Builds a (nested) config from the dictionary that `dataclasses.asdict` and JSON made of it.

    Raises:
        ValueError: If a key is no field of the config, a field is missing, or a value does not fit its type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"Expected a table of the fields of {config_class.__name__}, but got {values!r:.60}")
    hints = get_type_hints(config_class, include_extras=True)
    known = fields(config_class)  # type: ignore[arg-type]
    if unknown := sorted(map(str, values.keys() - {field.name for field in known})):
        raise ValueError(f"Expected fields of {config_class.__name__}, but got {unknown}")
    needed = (field for field in known if field.default is MISSING and field.default_factory is MISSING)
    if missing := [field.name for field in needed if field.name not in values]:
        raise ValueError(f"Expected `{missing[0]}` of {config_class.__name__}, but got none")
    restored = {name: _restore(hints[name], value) for name, value in values.items()}
    return config_class(
        **{name: checked(value, hints[name], f"`{name}`") for name, value in restored.items()}
    )


def _restore(hint: Any, value: Any) -> Any:
    """Returns a value with dataclasses in the place of tables where the hint has them."""
    arguments = get_args(hint)
    if get_origin(hint) is types.UnionType:
        fitting = (kind for kind in arguments if _like(kind, value))
        return _restore(next(fitting, None), value)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        whole = len(kinds) == len(value)  # another length is an error that `checked` names
        return tuple(map(_restore, kinds, value)) if whole else value
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
        return config_from_dict(hint, value)
    return value


def _like(hint: Any, value: Any) -> bool:
    """Returns whether the value is a table for a dataclass, or a sequence for a tuple."""
    if isinstance(hint, type) and is_dataclass(hint):
        return isinstance(value, Mapping)
    return get_origin(hint) is tuple and isinstance(value, list | tuple)
