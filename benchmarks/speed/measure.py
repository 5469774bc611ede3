"""The measurements, importable so that each can run in a separate process."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._malloc import keep_freed_memory
from ...models._latent import LatentClassifier
from ...models.abs import ABS, ABSConfig
from ...zoo import load_model
from .reference import PlainInference

__all__ = ["measure_against_reference", "measure_peak", "measure_scaling"]

WEIGHTS = "mnist"
PERTURBATION = 0.1


def measure_against_reference(
    name: str, batch_size: int, budget: dict[str, Any], *, repeats: int, device: str, threads: int
) -> dict[str, Any]:
    """Times both in turn on the same images, and compares their decisions and objectives."""
    model = _prepared(name, budget, device=device, threads=threads)
    reference = PlainInference(model)
    batches = [_images(model, batch_size, seed=seed) for seed in range(repeats + 1)]
    codebook_seconds = _seconds(lambda: model.search(batches[0][:1]), device)
    seconds: dict[str, list[float]] = {"fast": [], "reference": []}
    losses: dict[str, list[Tensor]] = {"fast": [], "reference": []}

    def fast(x: Tensor) -> Tensor:
        with torch.no_grad():
            return -model.scores_to_logits(model.class_scores(x)) * model.temperature

    for number, x in enumerate(batches):
        for label, call in (("fast", fast), ("reference", reference.losses)):
            spent = _seconds(lambda call=call, x=x, label=label: losses[label].append(call(x)), device)  # type: ignore[misc]
            if number:  # the first batch of each is a warm-up
                seconds[label].append(spent)
    ours, theirs = torch.cat(losses["fast"]), torch.cat(losses["reference"])
    per_image = {label: 1e3 * statistics.median(values) / batch_size for label, values in seconds.items()}
    return {
        "model": name,
        "device": device,
        "batch_size": batch_size,
        "ms_per_image": per_image["fast"],
        "reference_ms_per_image": per_image["reference"],
        "ratio": per_image["reference"] / per_image["fast"],
        "evaluations_per_problem": _evaluations(model, batches[-1]),
        "codebook_seconds": codebook_seconds,
        "same_decision": float((ours.argmin(1) == theirs.argmin(1)).float().mean()),
        "winning_objective_difference": float((ours.amin(1) - theirs.amin(1)).mean()),
        "objective_difference": float((ours - theirs).mean()),
        "images": len(ours),
    }


def measure_scaling(
    classes: int, batch_size: int, budget: dict[str, Any], *, repeats: int, device: str, threads: int
) -> dict[str, Any]:
    """Times an ABS of any number of classes, whose decoders are the shipped ones, perturbed."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    model = _of_classes(classes).to(device).with_inference(**budget)
    batches = [_images(model, batch_size, seed=seed) for seed in range(repeats + 1)]
    with torch.no_grad():
        model.class_scores(batches[0])
        seconds = [_seconds(lambda x=x: model.class_scores(x), device) for x in batches[1:]]  # type: ignore[misc]
        search = [_seconds(lambda x=x: model.search(x), device) for x in batches[1:]]  # type: ignore[misc]
    return {
        "classes": classes,
        "budget": budget,
        "device": device,
        "batch_size": batch_size,
        "ms_per_image": 1e3 * statistics.median(seconds) / batch_size,
        "search_ms_per_image": 1e3 * statistics.median(search) / batch_size,
        "evaluations_per_problem": _evaluations(model, batches[-1]),
        "peak_mib": _peak_mib() if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20,
    }


def measure_peak(name: str, budget: dict[str, Any], *, fast: bool, threads: int) -> dict[str, Any]:
    """Measures the peak memory of a process that scores one batch of 50 images."""
    model = _prepared(name, budget, device="cpu", threads=threads)
    before, x = _peak_mib(), _images(model, 50, seed=0)
    with torch.no_grad() if fast else torch.enable_grad():
        _ = model.class_scores(x) if fast else PlainInference(model).losses(x)
    return {"model": name, "fast": fast, "peak_mib": _peak_mib(), "imports_mib": before}


def _prepared(name: str, budget: dict[str, Any], *, device: str, threads: int) -> LatentClassifier:
    torch.set_num_threads(threads)
    keep_freed_memory()
    model = load_model(name, dataset=WEIGHTS, device=device)
    assert isinstance(model, LatentClassifier)  # noqa: S101
    return model.with_inference(**budget)


def _images(model: LatentClassifier, count: int, *, seed: int) -> Tensor:
    """Builds images that resemble the data: decoded prior draws of random classes, with noise."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, model.num_classes, model.latent_dim, generator=generator)
    device = next(model.parameters()).device
    classes = torch.randint(model.num_classes, (count,), generator=generator)
    with torch.no_grad():
        decoded = model.objective.decoders(z.to(device))[torch.arange(count), classes.to(device)]
    noise = 0.1 * torch.randn(decoded.shape, generator=generator).to(device)
    return (decoded + noise).clamp(0, 1)


def _of_classes(classes: int) -> ABS:
    shipped = load_model("abs", dataset=WEIGHTS)
    model = ABS(ABSConfig(num_classes=classes))
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for name, values in shipped.state_dict().items():
        if values.ndim and values.is_floating_point():
            repeated = values.repeat(-(-classes // 10), *[1] * (values.ndim - 1))[: len(state[name])]
            noise = torch.randn(repeated.shape, generator=generator)
            state[name] = repeated * (
                1
                + PERTURBATION
                * noise
                * (torch.arange(len(repeated)) >= len(values)).reshape(-1, *[1] * (values.ndim - 1))
            )
    model.load_state_dict(state)
    return model


def _evaluations(model: LatentClassifier, x: Tensor) -> float:
    """Counts the decoded latents with a gradient, per image and class."""
    decoded: list[int] = []

    def count(_: object, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        if torch.is_grad_enabled():
            decoded.append(inputs[0][..., 0].numel())

    decoders = model.objective.decoders
    assert isinstance(decoders, torch.nn.Module)  # noqa: S101
    hook = decoders.register_forward_hook(count)
    with torch.no_grad():
        model.class_scores(x)
    hook.remove()
    return sum(decoded) / (len(x) * model.num_classes)


def _seconds(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
