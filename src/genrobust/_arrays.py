"""Reads arrays from npz files that anybody may have written."""

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = ["ArrayFile"]

MOST_TIMES = 200  # how much larger than the file its arrays may be; images compress less
ALWAYS = 64 << 20  # bytes that arrays may have, however small the file is


@final
class ArrayFile:
    """An npz file: its arrays by name, whose sizes are checked before memory is spent on them.

    Attributes:
        path: The file.
        names: The names of its arrays.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        self._members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        self.names = tuple(self._members)

    @classmethod
    @contextmanager
    def open(cls, path: str | os.PathLike[str]) -> Iterator["ArrayFile"]:
        """Opens a file for the length of the block.

        Raises:
            OSError: If there is no such file, or it may not be read.
            ValueError: If it is no npz archive, or asks for more memory than a file of its size can fill.
        """
        path = Path(path)
        with path.open("rb") as file:
            try:
                archive = zipfile.ZipFile(file)
            except Exception as error:  # readers of damaged archives raise errors of a dozen kinds
                raise ValueError(
                    f"Expected {path} to be an npz archive, but it is damaged or of another format: {error}"
                ) from error
            with archive:
                found = cls(path, archive)
                wanted = sum(entry.file_size for entry in found._members.values())
                size = path.stat().st_size
                if wanted > ALWAYS + MOST_TIMES * size:
                    raise ValueError(
                        f"Expected arrays in {path} that a file of {size:,} bytes can hold, but they take "
                        f"{wanted:,}"
                    )
                yield found

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an array without reading it.

        Raises:
            ValueError: If the file has no such array, or it is damaged.
        """
        with self._member(name) as stored:
            return _header(stored, self._members[name].file_size)[0]

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the type of an array without reading it.

        Raises:
            ValueError: If the file has no such array, or it is damaged.
        """
        with self._member(name) as stored:
            return _header(stored, self._members[name].file_size)[1]

    def read(self, name: str) -> npt.NDArray[Any]:
        """Returns an array; no code that a file may hold is run.

        Raises:
            ValueError: If the file has no such array, or it is no plain array, or it is damaged.
        """
        with self._member(name) as stored:
            _header(stored, self._members[name].file_size)
        with self._member(name) as stored:
            array: npt.NDArray[Any] = np.lib.format.read_array(stored, allow_pickle=False)
            return array

    @contextmanager
    def _member(self, name: str) -> Iterator[Any]:
        if name not in self._members:
            raise ValueError(
                f"Expected {self.path} to have the key `{name}`, but it has {sorted(self.names)}"
            )
        try:
            with self._archive.open(self._members[name]) as stored:
                yield stored
        except Exception as error:  # as above
            raise ValueError(
                f"Expected `{name}` in {self.path} to be a plain array, but got: {error}"
            ) from error


def _header(stored: Any, size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Reads the header of an array, and checks that the rest of the member is what the header declares."""
    version = np.lib.format.read_magic(stored)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stored)
    if dtype.hasobject:
        raise ValueError("Python objects, which only code could restore")
    if not all(isinstance(length, int) and length >= 0 for length in shape):
        raise ValueError(f"a shape of {shape}")
    if (declared := math.prod(shape) * dtype.itemsize) != size - stored.tell():
        raise ValueError(f"{dtype} of shape {shape}, {declared:,} bytes, in {size - stored.tell():,} bytes")
    return shape, dtype
