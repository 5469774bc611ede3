"""Models as one safetensors file: the weights, and in its metadata the class and the config that built it.

A purified classifier has two parts, each with a class and a config of its own.
"""

import json
import os
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..classifier import Classifier
from ..models import MODELS, PURIFIERS
from ..purification import Purified
from ..storage import write_atomically

__all__ = ["config_from_dict", "read_model", "save_model"]

T = TypeVar("T")


def save_model(model: Classifier, path: str | os.PathLike[str]) -> None:
    """Write a model's weights and config atomically.

    Raises:
        ValueError: If the model is none of this package's.
    """
    description = _description(model, MODELS)
    metadata = {"model": description["model"], "config": json.dumps(description["config"])}
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with write_atomically(path) as part:
        save_file(weights, part, metadata=metadata)


def read_model(path: str | os.PathLike[str]) -> Classifier:
    """Build the model that a file describes, with its weights, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no model of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a model file at {path}, but there is none")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"Expected a safetensors file, but {path} is none: {error}") from error
    model = _build(metadata.get("model"), json.loads(metadata.get("config", "{}")), path)
    model.load_state_dict(weights)
    return model


def _description(model: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(model, Purified):
        parts = {
            "purifier": _description(model.purifier, PURIFIERS),
            "classifier": _description(model.classifier, MODELS),
        }
        return {"model": "Purified", "config": parts}
    name = type(model).__name__
    if name not in known:
        raise ValueError(f"Expected a model out of {sorted(known)}, but got {name}")
    return {"model": name, "config": asdict(model.config)}


def _build(name: str | None, config: Mapping[str, Any], path: Path) -> Classifier:
    if name == "Purified":
        purifier, classifier = config["purifier"], config["classifier"]
        purifier_class, config_class = PURIFIERS[purifier["model"]]
        return Purified(
            purifier_class(config_from_dict(config_class, purifier["config"])),
            _build(classifier["model"], classifier["config"], path),
        )
    if name not in MODELS:
        raise ValueError(f"Expected a model out of {sorted(MODELS)} in {path}, but got {name!r}")
    model_class, model_config_class = MODELS[name]
    return model_class(config_from_dict(model_config_class, config))


def config_from_dict(config_class: type[T], values: Mapping[str, Any]) -> T:
    """Build a (nested) config from the dictionary that `dataclasses.asdict` and JSON made of it.

    Raises:
        ValueError: If a key is no field of the config.
    """
    hints = get_type_hints(config_class)
    known = {field.name for field in fields(config_class)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"Expected fields of {config_class.__name__}, but got {unknown}")
    return config_class(**{name: _restore(hints[name], value) for name, value in values.items()})


def _restore(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    arguments = [argument for argument in get_args(hint) if argument not in (type(None), Ellipsis)]
    if get_origin(hint) is types.UnionType:
        return _restore(arguments[0], value)
    if get_origin(hint) is tuple:
        return tuple(_restore(arguments[0], item) for item in value)
    return config_from_dict(hint, value) if is_dataclass(hint) and isinstance(hint, type) else value
