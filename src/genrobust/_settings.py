"""What decides a model's answers, as JSON: its settings, and hashes of its weights."""

import functools
import hashlib
import inspect
import json
import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Described", "digest", "hashed", "probe_images", "rounded", "settings_of"]

_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))  # of every module: its parts, weights and hooks
_READ_IN_FULL = ("torch.nn.", "genrobust.")  # layers whose attributes are settings, and never counters
_PROBES = 4


class Described(ABC):
    """Abstract: says what decides its answers."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Returns everything that changes an answer, as JSON can hold it."""


def settings_of(module: nn.Module, *, left_out: AbstractSet[str]) -> dict[str, Any]:
    """Returns the settings of a module: every attribute, every part, and a hash of the weights.

    An attribute counts unless it is left out: a new one cannot be forgotten.

    Args:
        module: The module.
        left_out: Attributes that no answer depends on.

    Raises:
        TypeError: If an attribute cannot be written down; the message names it.
    """
    found: dict[str, Any] = {"class": _name_of(type(module))}
    for name, value in sorted(vars(module).items()):
        if name not in _OWN_ATTRIBUTES and name not in left_out:
            found[name.removeprefix("_")] = described(value, f"{type(module).__name__}.{name}")
    parts = {name: part for name, part in module.named_children() if isinstance(part, Described)}
    found |= {name: part.settings() for name, part in parts.items()}
    others = {name: part for name, part in module.named_children() if name not in parts}
    if others:
        found["architecture"] = hashed({name: _architecture(part) for name, part in others.items()})
    below = tuple(f"{name}." for name in parts)
    if weights := {key: value for key, value in _weights(module).items() if not key.startswith(below)}:
        found["weights"] = digest(weights)
    return found


def described(value: Any, where: str, holders: tuple[int, ...] = ()) -> Any:
    """Returns a value as JSON can hold it; two values that differ give two results.

    Args:
        value: A number, string, tensor, generator, dataclass, model, function, a collection of these, or any
            object that is made of them.
        where: The name of the value, for the error.
        holders: Identities of the objects that hold it.

    Raises:
        TypeError: If it is something else.
    """
    simple = _simple(value)
    if simple is not _UNKNOWN:
        return simple
    if id(value) in holders:
        return {"class": _name_of(type(value)), "holder": True}
    inside = (*holders, id(value))
    match value:
        case Described():
            return value.settings()
        case nn.Module():
            return {"architecture": hashed(_architecture(value)), "weights": digest(_weights(value))}
        case Mapping():
            return {str(key): described(item, f"{where}[{key!r}]", inside) for key, item in value.items()}
        case AbstractSet():
            return sorted((described(item, where, inside) for item in value), key=json.dumps)
        case Sequence():
            return [described(item, f"{where}[{i}]", inside) for i, item in enumerate(value)]
    if isinstance(value, FunctionType | BuiltinFunctionType | MethodType | functools.partial):
        return _function(value)
    members = {
        name: described(member, f"{where}.{name}", inside) for name, member in _members(value, where).items()
    }
    return {"class": _name_of(type(value)), **members}


def digest(content: Any) -> str:
    """Returns the SHA-256 of tensors, arrays, bytes, and collections of them, whatever their dtype."""
    result = hashlib.sha256()
    for part in _bytes_of(content):
        result.update(part)
    return result.hexdigest()


def hashed(settings: Any) -> str:
    """Returns the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def probe_images(
    input_shape: tuple[int, int, int], *, like: Tensor
) -> Float[Tensor, "batch channels height width"]:
    """Returns a few fixed images of noise, on which behaviour is compared."""
    generator = torch.Generator().manual_seed(0)
    shape = (_PROBES, *input_shape)
    return torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32).to(like)


def rounded(values: Tensor) -> list[Any]:
    """Returns values in steps of a hundredth of the largest one's decimal order; NaN and infinity as text."""
    numbers = values.detach().double().cpu()
    finite = numbers[numbers.isfinite()].abs()
    largest = float(finite.max()) if len(finite) else 0.0
    step = 10.0 ** (math.floor(math.log10(largest)) - 2) if largest else 1.0
    coarse = [
        float(f"{round(value / step) * step:.6g}") if math.isfinite(value) else str(value)
        for value in numbers.flatten().tolist()
    ]
    columns = max(1, numbers[0].numel()) if len(numbers) else 1
    return [coarse[first : first + columns] for first in range(0, len(coarse), columns)]


_UNKNOWN = object()


def _simple(value: Any) -> Any:
    """Returns what a value without members is written as; `_UNKNOWN` if it has members."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case complex() | bytes() | PurePath() | range() | slice() | torch.dtype() | torch.device():
            return str(value)
        case Enum() | type():
            return f"{_name_of(type(value))}.{value.name}" if isinstance(value, Enum) else _name_of(value)
        case np.generic():
            return _simple(value.item())
        case Tensor() | np.ndarray():
            return digest(value)
        case torch.Generator():
            return {"class": "Generator", "seed": value.initial_seed(), "device": str(value.device)}
    return _UNKNOWN


def _members(value: Any, where: str) -> dict[str, Any]:
    """Returns the attributes of an object; of a dataclass, its fields."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    try:
        return dict(sorted(vars(value).items()))
    except TypeError:
        raise TypeError(
            f"Expected settings that can be written down, but `{where}` is a {type(value).__name__}: make it "
            "a dataclass, or name it in `caches` if no answer depends on it"
        ) from None


def _function(function: Any) -> dict[str, Any]:
    """Returns a function's name, and the models and tensors that it holds; its behaviour says the rest."""
    held: dict[str, Any] = {}
    if isinstance(function, functools.partial):
        held |= {str(i): value for i, value in enumerate(function.args)} | function.keywords
        function = function.func
    if isinstance(function, MethodType):
        held["self"] = function.__self__
        function = function.__func__
    if isinstance(function, FunctionType):
        held |= inspect.getclosurevars(function).nonlocals
    captured = {
        name: described(value, name)
        for name, value in held.items()
        if isinstance(value, Described | nn.Module | Tensor | np.ndarray)
    }
    return {"function": f"{function.__module__}.{function.__qualname__}", **captured}


def _architecture(module: nn.Module) -> dict[str, Any]:
    """Returns the classes of a module's parts, and the attributes of torch's and this package's layers."""
    if isinstance(module, Described):
        return module.settings()
    found: dict[str, Any] = {"class": _name_of(type(module))}
    if f"{type(module).__module__}.".startswith(_READ_IN_FULL):
        own = {name: value for name, value in vars(module).items() if name not in _OWN_ATTRIBUTES}
        found |= {name: described(value, f"{type(module).__name__}.{name}") for name, value in own.items()}
    return found | {f"{name}.": _architecture(part) for name, part in module.named_children()}


def _weights(module: nn.Module) -> dict[str, Any]:
    """Returns the state, with buffers that a state dict leaves out."""
    return {**dict(module.named_buffers(remove_duplicate=False)), **module.state_dict()}


def _bytes_of(content: Any) -> Iterator[bytes]:
    match content:
        case Tensor():
            yield from _bytes_of_tensor(content.detach().cpu())
        case np.ndarray():
            yield f"{content.dtype} {content.shape}".encode()
            yield np.ascontiguousarray(content).tobytes()
        case Mapping():
            for key, value in sorted(content.items(), key=lambda item: str(item[0])):
                yield f"{key} ".encode()
                yield from _bytes_of(value)
        case str() | bytes():
            yield content.encode() if isinstance(content, str) else content
        case Sequence():
            yield f"{len(content)} entries".encode()
            for value in content:
                yield from _bytes_of(value)
        case _:
            yield pickle.dumps(content)


def _bytes_of_tensor(tensor: Tensor) -> Iterator[bytes]:
    yield f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    if tensor.is_quantized:
        yield str(tensor.qscheme()).encode()
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield f"{tensor.q_scale()} {tensor.q_zero_point()}".encode()
        else:
            yield from _bytes_of([tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()])
        tensor = tensor.int_repr()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    # NumPy lacks bfloat16 and its kin: the bytes are read as they are.
    yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _name_of(kind: type) -> str:
    """Returns a class's name, with its module where that is not of this package."""
    here = kind.__module__.partition(".")[0] in ("genrobust", "builtins")
    return kind.__qualname__ if here else f"{kind.__module__}.{kind.__qualname__}"
