"""The measurements themselves: importable, so that each can run in a process of its own."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from ...models.eabs import EABS, EABSConfig
from ...nets import DecoderBank, architecture

__all__ = ["PRESET", "measure_bank", "measure_inference"]

PRESET = "eabs-mnist"


def measure_inference(batch_size: int, budget: dict[str, int], repeats: int) -> dict[str, Any]:
    """Time class scores of random images, the codebook's construction apart."""
    model = EABS(EABSConfig(architecture=architecture(PRESET))).with_inference(**budget)
    x = torch.rand(batch_size, *model.input_shape, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    model.search(x[:1])
    codebook_seconds = time.perf_counter() - started
    with torch.no_grad():
        total = _median_seconds(lambda: model.class_scores(x), repeats)
        search = _median_seconds(lambda: model.search(x), repeats)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return {
        "batch_size": batch_size,
        "ms_per_image": 1e3 * total / batch_size,
        "search_ms_per_image": 1e3 * search / batch_size,
        "codebook_seconds": codebook_seconds,
        "peak_mib": peak_kib / 1024,
    }


def measure_bank(repeats: int, *, batch_size: int = 16, classes: int = 10) -> dict[str, Any]:
    """Compare one refinement step's decoder work: the bank against K decoders in a Python loop."""
    arch = architecture(PRESET)
    bank = DecoderBank(arch, decoders=classes).eval()
    decoders = [DecoderBank(arch, decoders=1).eval() for _ in range(classes)]
    z = torch.randn(batch_size, classes, arch.latent_dim, requires_grad=True)

    def together() -> None:
        torch.autograd.grad(bank(z).sum(), z)

    def one_by_one() -> None:
        images = torch.cat([decoder(z[:, k : k + 1]) for k, decoder in enumerate(decoders)], dim=1)
        torch.autograd.grad(images.sum(), z)

    bank_seconds, loop_seconds = (
        _median_seconds(together, 5 * repeats),
        _median_seconds(one_by_one, 5 * repeats),
    )
    return {
        "batch_size": batch_size,
        "classes": classes,
        "bank_ms": 1e3 * bank_seconds,
        "loop_ms": 1e3 * loop_seconds,
        "ratio": loop_seconds / bank_seconds,
    }


def _median_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
