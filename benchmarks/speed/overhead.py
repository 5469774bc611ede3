"""Measure the time that each adapter adds to a query: `python -m genrobust.benchmarks.speed.overhead`.

A query computes logits, cross-entropy and its gradient, as every step of a gradient attack does. The bare
module and the adapters take turns, so that other load slows all of them equally.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._files import write_json
from ..._malloc import keep_freed_memory
from ...adapters import available
from ...contract import Classifier
from ...models.eabs import EABS, EABSConfig

__all__ = ["measure_overhead"]

TimedQuery = Callable[[], object]


def measure_overhead(*, batch_size: int, budget: dict[str, int], repeats: int) -> dict[str, Any]:
    """Returns the median time of a query, bare and through every installed toolkit's adapter.

    Args:
        batch_size: Images per query.
        budget: Fields of `InferenceBudget`.
        repeats: Number of rounds; a round queries each adapter once.

    Returns:
        The settings, `bare_ms`, and for each toolkit `ms` and `overhead`. The overhead is the median ratio to
        the bare query of the same round, minus one.
    """
    model = EABS(EABSConfig()).with_inference(**budget)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch_size, *model.input_shape, generator=generator)
    y = torch.randint(model.num_classes, (batch_size,), generator=generator)
    queries: dict[str, TimedQuery] = {"bare": partial(_query, model, x, y)}
    queries |= {name: _through(name, model, x, y) for name in available()}
    rounds = [{name: _milliseconds(query) for name, query in queries.items()} for _ in range(repeats + 1)]
    rounds = rounds[1:]  # the first query builds the codebook
    toolkits = {
        name: {
            "ms": statistics.median(times[name] for times in rounds),
            "overhead": statistics.median(times[name] / times["bare"] for times in rounds) - 1,
        }
        for name in queries
        if name != "bare"
    }
    return {
        "batch_size": batch_size,
        "budget": budget,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": repeats,
        "bare_ms": statistics.median(times["bare"] for times in rounds),
        "toolkits": toolkits,
    }


def _query(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
    return torch.autograd.grad(loss, leaf)[0]


def _through(toolkit: str, model: Classifier, x: Tensor, y: Tensor) -> TimedQuery:
    target = available()[toolkit].load().wrap(model)
    if toolkit == "art":  # its input and output are arrays
        one_hot = nn.functional.one_hot(y, model.num_classes).float()
        return partial(target.loss_gradient, x.numpy(), one_hot.numpy())
    return partial(_query, target, x, y)


def _milliseconds(query: TimedQuery) -> float:
    started = time.perf_counter()
    query()
    return 1e3 * (time.perf_counter() - started)


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurement, prints it, and writes it as JSON on request."""
    parser = argparse.ArgumentParser(
        prog="python -m genrobust.benchmarks.speed.overhead", description=__doc__.partition(":")[0]
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9, help="rounds whose median is taken")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    budget = {"candidates": options.candidates, "steps": options.steps}
    results = measure_overhead(batch_size=options.batch_size, budget=budget, repeats=options.repeats)
    lines = [f"{'bare module':14} {results['bare_ms']:8.1f} ms a query of {options.batch_size} images"]
    lines += [
        f"{name:14} {row['ms']:8.1f} ms, {row['overhead']:+.2%}" for name, row in results["toolkits"].items()
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
