"""Tensors in files: written atomically, and read from what anybody may have written."""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ._brief import one_line
from ._files import write_atomically

__all__ = ["TensorFile", "shapes_alone", "write_tensors", "write_torch"]

FLOATS = ("F16", "BF16", "F32", "F64")
OTHERS = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}


@final
@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header was read, and no tensor yet.

    Attributes:
        path: The file.
        metadata: What its writer put beside the tensors.
        shapes: The type, as safetensors calls it, and the shape of every tensor by name.
    """

    path: Path
    metadata: Mapping[str, str] = field(repr=False)
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]

    __repr__ = one_line

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "TensorFile":
        """Reads the header of a file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no safetensors file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"Expected a safetensors file at {path}, but there is none")
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
                return cls(path, file.metadata() or {}, shapes)
        except SafetensorError as error:
            raise ValueError(f"Expected {path} to be a safetensors file, but it failed: {error}") from error

    def check(self, expected: Mapping[str, Tensor]) -> None:
        """Checks that the file has these tensors and no others, before memory is spent on them.

        Args:
            expected: Tensors by name, which may be on the device `meta`. Any float fits a float.

        Raises:
            ValueError: If a name, a type or a shape differs; the message names the first one.
        """
        if missing := sorted(expected.keys() - self.shapes.keys()):
            raise ValueError(f"Expected {self.path} to hold the tensor {missing[0]!r}, but it has none")
        if surplus := sorted(self.shapes.keys() - expected.keys()):
            raise ValueError(f"Expected {self.path} to hold no tensor {surplus[0]!r}, but it does")
        for name, wanted in expected.items():
            kind, shape = self.shapes[name]
            kinds = FLOATS if wanted.dtype.is_floating_point else (OTHERS.get(wanted.dtype, ""),)
            if shape != tuple(wanted.shape) or kind not in kinds:
                raise ValueError(
                    f"Expected {name!r} in {self.path} of shape {tuple(wanted.shape)} and type "
                    f"{' or '.join(kinds)}, but got shape {shape} and type {kind}"
                )

    def read(self, *, infinite: Sequence[str] = ()) -> dict[str, Tensor]:
        """Reads the tensors.

        Args:
            infinite: Names of tensors that may hold infinite numbers.

        Raises:
            ValueError: If the file cannot be read, or a number in it is NaN or infinite.
        """
        try:
            tensors = load_file(self.path)
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise ValueError(f"Expected tensors in {self.path}, but reading failed: {error}") from error
        for name, values in tensors.items():
            wrong = values.isnan() if name in infinite else ~values.isfinite()
            if wrong.any():
                raise ValueError(f"Expected finite numbers in {self.path}, but {name!r} has others")
        return tensors


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file atomically.

    Raises:
        OSError: If it cannot be written, as where the disk is full.
    """
    with write_atomically(path) as part:
        try:
            save_file(dict(tensors), part, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:
            raise OSError(f"Expected to write {path}, but it failed: {error}") from error


def write_torch(path: str | os.PathLike[str], content: Any) -> None:
    """Writes what `torch.load` reads, atomically.

    Raises:
        OSError: If it cannot be written, as where the disk is full.
    """
    made = io.BytesIO()  # of a full disk torch says that a position is unexpected
    torch.save(content, made)
    with write_atomically(path) as part:
        part.write_bytes(made.getvalue())  # not a view, which the error's traceback would keep alive


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Makes tensors of the block with a shape and a type, and without memory."""
    with torch.device("meta"), _Unfilled():
        yield


@final
class _Unfilled(TorchFunctionMode):
    """Leaves tensors as they are where torch would import its compiler to fill what has no memory."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        if func is Tensor.normal_ or (func is Tensor.mul and isinstance(args[1], int | float)):
            return args[0]
        if func is torch.eye:
            return torch.empty(args[0], args[-1])
        if func is torch.randn:
            return torch.empty(*args)
        return func(*args, **(kwargs or {}))
