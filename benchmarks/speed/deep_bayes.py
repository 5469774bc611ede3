"""Measure Deep Bayes: images per second with 10 samples, batched and in plain loops over classes and samples.

Run `python -m genrobust.benchmarks.speed.deep_bayes`.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._files import write_json
from ..._malloc import keep_freed_memory
from ...models.deep_bayes import DeepBayes

BATCH_SIZES = (1, 32, 128)


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurements, prints them, and writes them as JSON on request."""
    parser = argparse.ArgumentParser(prog="python -m genrobust.benchmarks.speed.deep_bayes")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--device", default="cpu", help="where to measure")
    parser.add_argument("--seconds", type=float, default=10.0, help="for how long calls are repeated")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    rows = []
    for batch_size in options.batch_sizes:
        row = measure(batch_size, device=options.device, seconds=options.seconds)
        rows.append(row)
        sys.stdout.write(
            f"batch {batch_size:>3}: {row['images_per_second']:8.1f} images a second; "
            f"loop over classes {row['class_loop']:.1f} ({row['ratio_to_class_loop']:.1f} x), "
            f"over classes and samples {row['sample_loop']:.1f} ({row['ratio_to_sample_loop']:.1f} x)\n"
        )
        sys.stdout.flush()
    if options.json:
        threads = torch.get_num_threads()
        write_json(options.json, {"rows": rows, "threads": threads, "torch": torch.__version__})


@torch.no_grad()
def measure(batch_size: int, *, device: str, seconds: float) -> dict[str, Any]:
    """Times class scores of random images; both loops encode the image each time, as in the paper's eq. 3."""
    model = DeepBayes().to(device)
    x = torch.rand(batch_size, *model.input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    calls = {
        "images_per_second": lambda: model.class_scores(x),
        "class_loop": lambda: loop(model, x, samples_at_once=model.budget.samples),
        "sample_loop": lambda: loop(model, x, samples_at_once=1),
    }
    torch.testing.assert_close(calls["class_loop"](), calls["images_per_second"](), rtol=1e-4, atol=1e-2)

    rates: dict[str, Any] = {
        name: batch_size / _median_seconds(call, seconds, device=device) for name, call in calls.items()
    }
    rates |= {f"ratio_to_{name}": rates["images_per_second"] / rates[name] for name in list(calls)[1:]}
    return {"batch_size": batch_size, "device": device, **rates}


def loop(model: DeepBayes, x: Tensor, *, samples_at_once: int) -> Tensor:
    """Returns class scores, computed for one class and `samples_at_once` samples at a time."""
    shape = (len(x), model.num_classes, model.budget.samples, model.config.architecture.latent_dim)
    noise = model.noise.stream().normal(shape, like=x)
    scores = []
    for k in range(model.num_classes):
        one_hot = nn.functional.one_hot(torch.tensor(k, device=x.device), model.num_classes).to(x.dtype)
        draws = noise[:, k : k + 1].split(samples_at_once, dim=2)
        weights = [model.log_weights(x, one_hot[None, None, None], draw) for draw in draws]
        scores.append(torch.cat(weights, 2).logsumexp(2) - math.log(model.budget.samples))
    return torch.cat(scores, 1)


def _median_seconds(call: Callable[[], object], seconds: float, *, device: str) -> float:
    times: list[float] = []
    while not times or sum(times) < seconds:
        started = time.perf_counter()
        call()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
