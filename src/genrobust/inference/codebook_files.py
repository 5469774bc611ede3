"""Codebooks as safetensors files, bound to the weights and the budget that they were computed with."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..storage import write_atomically
from .budget import InferenceBudget
from .codebook import Codebook
from .objective import LatentObjective

__all__ = ["fingerprint", "read_codebook", "write_codebook"]


def fingerprint(weights: Iterable[Tensor], key: tuple[object, ...]) -> str:
    """Give a hash of the values of the weights and of what else a codebook depends on."""
    digest = hashlib.sha256(repr(key).encode())
    for values in weights:
        digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_codebook(codebook: Codebook, path: str | os.PathLike[str], *, fingerprint: str) -> None:
    """Write a codebook atomically.

    Raises:
        ValueError: If it holds no decoded candidates, for want of memory.
    """
    state = codebook.state()
    if not state:
        raise ValueError("Expected a codebook that fits `max_bytes`, but it decodes at every search")
    tensors = {name: values.detach().cpu().contiguous() for name, values in state.items()}
    with write_atomically(path) as part:
        save_file(tensors, part, metadata={"fingerprint": fingerprint})


def read_codebook(
    path: str | os.PathLike[str],
    objective: LatentObjective,
    budget: InferenceBudget,
    *,
    fingerprint: str,
    like: Tensor,
) -> Codebook:
    """Read the codebook of these weights and this budget.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no codebook, or one of other weights or another budget.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a codebook at {path}, but there is none")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("fingerprint")
    except SafetensorError as error:
        raise ValueError(f"Expected a codebook, but {path} is none: {error}") from error
    if found != fingerprint:
        raise ValueError(
            f"Expected a codebook of these weights and this budget ({fingerprint[:12]}), "
            f"but {path} is one of others ({(found or 'none')[:12]})"
        )
    return Codebook.from_state(load_file(path), objective, budget, like=like)
