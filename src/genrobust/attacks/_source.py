"""A hash of what a function does, and of what it uses of its own module."""

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn

from .._settings import described, hashed

__all__ = ["source_digest"]

_VALUES = (bool, int, float, complex, str, bytes, tuple, list, dict, set, Tensor, np.ndarray, nn.Module)


def source_digest(function: Any) -> str:
    """Returns a SHA-256 of a function's code, and of what it uses: a run is bound to it.

    What it uses are its defaults, the variables that it closes over, and the functions, classes and values of
    its own module that it names, with what these use in turn. Other modules are left out. The code is that
    which runs, whatever the file has become since, and differs between versions of Python.
    """
    result = hashlib.sha256()
    for text in _texts(inspect.unwrap(function), seen=set()):
        result.update(text.encode())
    return result.hexdigest()


def _texts(thing: Any, *, seen: set[int]) -> Iterator[str]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, MethodType):
        holder = thing.__self__
        held = {} if isinstance(holder, type) else _attributes(holder)
        yield from (f"{name} = {_value(value)}" for name, value in sorted(held.items()))
        yield from _texts(holder if isinstance(holder, type) else type(holder), seen=seen)
        thing = thing.__func__
    yield thing.__qualname__
    for function in _methods(thing) if isinstance(thing, type) else [thing]:
        yield _code(function.__code__)
        for name, value in _used(function).items():
            if isinstance(value, type | FunctionType | MethodType):
                if value.__module__ == thing.__module__:
                    yield from _texts(value, seen=seen)
            else:
                yield f"{name} = {_value(value)}"


def _code(code: CodeType) -> str:
    # The order of a set of texts differs between processes.
    plain = [
        sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)
        for value in code.co_consts
        if not isinstance(value, CodeType)
    ]
    inner = "".join(map(_code, _inner(code)))
    return f"{code.co_code.hex()} {plain} {code.co_names} {code.co_varnames} {inner}"


def _inner(code: CodeType) -> list[CodeType]:
    return [value for value in code.co_consts if isinstance(value, CodeType)]


def _attributes(holder: object) -> dict[str, Any]:
    try:
        return vars(holder)
    except TypeError:  # it has slots
        return {}


def _methods(kind: type) -> list[FunctionType]:
    return [value for value in vars(kind).values() if isinstance(value, FunctionType)]


def _used(function: FunctionType) -> dict[str, Any]:
    """Returns the values that a function's code names: globals, closed-over variables and defaults."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    shared = function.__globals__
    return {
        **{name: shared[name] for name in sorted(set(_names(function.__code__))) if name in shared},
        **{name: cell.cell_contents for name, cell in cells},
        **{f"default {i}": value for i, value in enumerate(function.__defaults__ or ())},
        **{f"default {name}": value for name, value in (function.__kwdefaults__ or {}).items()},
    }


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for part in _inner(code):
        yield from _names(part)


def _value(value: Any) -> str:
    """Returns a hash of a value; of one that is no number, text, tensor or collection, its class."""
    if value is None or isinstance(value, _VALUES) or (is_dataclass(value) and not isinstance(value, type)):
        try:
            return hashed(described(value, "value"))
        except (TypeError, RecursionError):
            pass
    return type(value).__qualname__
