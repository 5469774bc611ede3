"""Codebooks as safetensors files, bound to the weights and the budget that they were computed with."""

import hashlib
import os
from collections.abc import Iterable

import torch
from torch import Tensor

from ..._tensors import TensorFile, write_tensors
from ..budget import InferenceBudget
from ..objective import LatentObjective
from .codebook import Codebook

__all__ = ["fingerprint", "read_codebook", "write_codebook"]


def fingerprint(weights: Iterable[Tensor], key: tuple[object, ...]) -> str:
    """Returns a hash of the weights' values and of the budget fields (`key`) that a codebook depends on."""
    digest = hashlib.sha256(repr(key).encode())
    for values in weights:
        digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_codebook(codebook: Codebook, path: str | os.PathLike[str], *, fingerprint: str) -> None:
    """Writes a codebook atomically.

    Raises:
        ValueError: If the codebook holds no decoded candidates, because `max_bytes` is too small.
    """
    state = codebook.state()
    if not state:
        raise ValueError("Expected a codebook that fits `max_bytes`, but it decodes at every search")
    tensors = {name: values.detach().cpu().contiguous() for name, values in state.items()}
    write_tensors(path, tensors, metadata={"fingerprint": fingerprint})


def read_codebook(
    path: str | os.PathLike[str],
    objective: LatentObjective,
    budget: InferenceBudget,
    *,
    fingerprint: str,
    like: Tensor,
) -> Codebook:
    """Reads the codebook of these weights and this budget.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a codebook, is damaged, or was made with other weights or another
            budget.
    """
    file = TensorFile.open(path)
    found = file.metadata.get("fingerprint", "none")
    if found != fingerprint:
        raise ValueError(
            f"Expected a codebook of these weights and this budget ({fingerprint[:12]}), "
            f"but {path} is one of others ({found[:12]})"
        )
    file.check(Codebook.blank(objective, budget, like=like))
    return Codebook.from_state(
        file.read(infinite=("offsets",)), objective, budget, like=like, source=str(path)
    )
