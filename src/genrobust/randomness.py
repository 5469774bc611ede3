"""Random draws that neither change nor depend on the global generators."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, final

import numpy as np
import torch
from torch import Tensor

from ._fields import check_seed

__all__ = [
    "FixedNoise",
    "FreshNoise",
    "NoiseSource",
    "NoiseStream",
    "isolated_rng",
    "noise_source",
    "standard_normal",
]

Mode = Literal["fixed", "fresh"]

_STREAMS = 1 << 31  # differs from the small seeds of the candidates; torch ignores higher bits


def standard_normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws standard normal noise in float32 on the generator's device, whatever torch's defaults are.

    A seed gives other draws in another dtype, so that the default dtype would change a model's answers.
    """
    return torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=torch.float32)


class NoiseStream(Protocol):
    """The noise of one inference; each call returns the next draw."""

    def normal(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """Draws standard normal noise of `shape` (rows first) on the device and in the dtype of `like`."""
        ...


class NoiseSource(Protocol):
    """The source of a model's noise."""

    def stream(self, part: int = 0) -> NoiseStream:
        """Starts the noise of one part of an inference."""
        ...

    def mark(self) -> Callable[[], None]:
        """Returns a function that goes back to this place, so that later draws repeat."""
        ...


@final
@dataclass(frozen=True)
class FixedNoise:
    """The same sequence of noise at every call and for every row.

    A batch therefore gives the same logits twice, and a row's result does not depend on the other rows.
    Successive draws of one stream differ, because a single repeated draw would turn a variational
    distribution into a point.
    """

    seed: int

    def stream(self, part: int = 0) -> NoiseStream:
        """Starts the sequence of this part again; different parts have different sequences."""
        return _FixedStream(torch.Generator().manual_seed(_STREAMS + 1000 * self.seed + part))

    def mark(self) -> Callable[[], None]:
        """Returns a function that does nothing: every stream repeats."""
        return lambda: None


@final
class _FixedStream:
    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def normal(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        row = standard_normal((1, *shape[1:]), self._generator)
        return row.to(device=like.device, dtype=like.dtype).expand(tuple(shape))


@final
@dataclass(frozen=True)
class FreshNoise:
    """Independent noise for every call and every row, from a generator that advances with each draw."""

    generator: torch.Generator

    def stream(self, part: int = 0) -> NoiseStream:
        """Continues where the last stream stopped."""
        del part
        return self

    def mark(self) -> Callable[[], None]:
        """Returns a function that restores the generator's present state."""
        state = self.generator.get_state()

        def rewind() -> None:
            self.generator.set_state(state)

        return rewind

    def normal(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """Draws on the generator's own device, so that a seed gives the same noise on every device."""
        return standard_normal(shape, self.generator).to(device=like.device, dtype=like.dtype)


def noise_source(
    mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None
) -> FixedNoise | FreshNoise:
    """Builds the noise source of a mode.

    Args:
        mode: `"fixed"` (a sequence from `seed`) or `"fresh"` (a generator that advances).
        seed: Seed of the sequence, or of the generator that is built when `generator` is None.
        generator: The generator of the fresh mode.

    Raises:
        ValueError: If the mode is unknown, the seed is no integer of at least 0, or a generator is given to
            the fixed mode.
        TypeError: If the generator is another object.
    """
    seed = check_seed(seed)
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"Expected `generator` to be a torch.Generator, but got {type(generator).__name__}")
    if mode == "fixed":
        if generator is not None:
            raise ValueError("Expected no `generator` in mode 'fixed': its noise comes from `seed`")
        return FixedNoise(seed)
    if mode == "fresh":
        return FreshNoise(torch.Generator().manual_seed(seed) if generator is None else generator)
    raise ValueError(f"Expected `mode` to be 'fixed' or 'fresh', but got {mode!r}")


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seeds the global generators of torch, NumPy and Python inside the block and restores them after it.

    It serves code that can only draw from these: `nn` initialisers, dropout and the toolkits' attacks.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
