"""Random draws that never touch, and never depend on, the global generators."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, final

import numpy as np
import torch
from torch import Tensor

__all__ = ["FixedNoise", "FreshNoise", "NoiseSource", "NoiseStream", "isolated_rng", "noise_source"]

Mode = Literal["fixed", "fresh"]

_STREAMS = 1 << 31  # apart from the small seeds that candidates are drawn with; torch ignores higher bits


class NoiseStream(Protocol):
    """The noise of one inference: each call gives the next draw."""

    def normal(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """Draw standard normal noise of `shape` (rows first) on the device and in the dtype of `like`."""
        ...


class NoiseSource(Protocol):
    """Where a model's noise comes from."""

    def stream(self, part: int = 0) -> NoiseStream:
        """Begin the noise of one part of an inference."""
        ...


@final
class FixedNoise:
    """The same sequence of noise at every call and for every row.

    A batch therefore gives the same logits twice, and a row's result does not depend on the rows beside it.
    Successive draws of one stream differ: a single repeated draw would turn a variational distribution into a
    point.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def stream(self, part: int = 0) -> NoiseStream:
        """Begin the sequence of this part anew; different parts have different sequences."""
        return _FixedStream(torch.Generator().manual_seed(_STREAMS + 1000 * self.seed + part))


@final
class _FixedStream:
    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def normal(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        row = torch.randn((1, *shape[1:]), generator=self._generator)
        return row.to(device=like.device, dtype=like.dtype).expand(tuple(shape))


@final
class FreshNoise:
    """Independent noise for every call and every row, from a generator that advances with each draw."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def stream(self, part: int = 0) -> NoiseStream:
        """Go on where the last stream stopped."""
        del part
        return self

    def normal(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """Draw from the generator's own device, so that a seed means the same noise on every device."""
        noise = torch.randn(tuple(shape), generator=self.generator, device=self.generator.device)
        return noise.to(device=like.device, dtype=like.dtype)


def noise_source(
    mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None
) -> FixedNoise | FreshNoise:
    """Make the noise source of a mode.

    Args:
        mode: `"fixed"` (a sequence from `seed`) or `"fresh"` (a generator that advances).
        seed: The seed of the sequence, or of the generator that is made when none is given.
        generator: The generator of the fresh mode.

    Raises:
        ValueError: If the mode is unknown, or a generator is given to the fixed mode.
    """
    if mode == "fixed":
        if generator is not None:
            raise ValueError("Expected no `generator` in mode 'fixed': its noise comes from `seed`")
        return FixedNoise(seed)
    if mode == "fresh":
        return FreshNoise(torch.Generator().manual_seed(seed) if generator is None else generator)
    raise ValueError(f"Expected `mode` to be 'fixed' or 'fresh', but got {mode!r}")


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python inside the block, and restore them after it.

    For code that can only draw globally: `nn` initialisers, dropout, the toolkits' attacks.
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
