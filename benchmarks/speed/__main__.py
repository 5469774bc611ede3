"""Measure latent inference against a plain reference: time, evaluations, memory, decisions, objectives.

Every measurement runs in a separate process, so that its peak memory is its own.
"""

import argparse
import math
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..._files import check_png, write_json
from .measure import measure_against_reference, measure_peak, measure_scaling

FULL = {"batches": (1, 10, 50, 200), "classes": (10, 43, 100), "candidates": (1000, 4000, 16000, 64000)}
QUICK = {"batches": (1, 10), "classes": (10, 20), "candidates": (500, 1000)}
Rows = list[dict[str, Any]]
LEADERS = 2
SCALING_BATCH = 10


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurements, prints them, and writes them and their figure on request."""
    parser = argparse.ArgumentParser(prog="python -m genrobust.benchmarks.speed", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results here, and their figure beside it")
    parser.add_argument("--png", type=Path, help="write the figure to this file in place of there")
    parser.add_argument("--quick", action="store_true", help="a tenth of the budget, to see that it runs")
    parser.add_argument("--models", nargs="+", default=["abs", "eabs"], help="abs, eabs or both")
    parser.add_argument("--repeats", type=int, default=3, help="batches whose median is taken")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    options = parser.parse_args(arguments)
    try:
        check_png(options.png, "--png")
    except ValueError as error:
        parser.error(str(error))
    budget = {"candidates": 800, "steps": 5} if options.quick else {"candidates": 8000, "steps": 50}
    results = {
        "budget": budget,
        "threads": options.threads,
        "torch": torch.__version__,
        **_measure(QUICK if options.quick else FULL, budget, options),
    }
    if options.json:
        write_json(options.json, results)
    if picture := options.png or (options.json and options.json.with_suffix(".png")):
        from .figure import save_figure

        save_figure(results, picture)


def _measure(sizes: dict[str, Any], budget: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    common = {"repeats": options.repeats, "threads": options.threads}
    results: dict[str, Any] = {"against_reference": [], "peak": [], "classes": [], "candidates": []}
    for name in options.models:
        for device in devices:
            for size in sizes["batches"]:
                row = _alone(measure_against_reference, name, size, budget, device=device, **common)
                results["against_reference"].append(row)
                _show_comparison(row)
        for fast in (True, False):
            row = _alone(measure_peak, name, budget, fast=fast, threads=options.threads)
            results["peak"].append(row)
            _show(f"{name} {'fast' if fast else 'plain'}: peak {row['peak_mib']:.0f} MiB")
    for device in devices:
        on_device = {**common, "device": device}
        results["classes"] += _measure_classes(sizes["classes"], budget, on_device)
        results["candidates"] += _measure_candidates(sizes["candidates"], budget, on_device)
    return results


def _measure_classes(sizes: Sequence[int], budget: dict[str, Any], common: dict[str, Any]) -> Rows:
    results: Rows = []
    for label, changes in (("all", {}), ("leading", {"refined_classes": LEADERS})):
        rows = []
        for classes in sizes:
            row = _alone(measure_scaling, classes, SCALING_BATCH, {**budget, **changes}, **common)
            rows.append({**row, "refined": label})
            _show_scaling(f"{row['device']} {classes:>3} classes, {label} refined", row)
        _show(f"{common['device']} time in K, {label} refined: exponent {_exponent(rows):.2f}")
        results += rows
    return results


def _measure_candidates(sizes: Sequence[int], budget: dict[str, Any], common: dict[str, Any]) -> Rows:
    results: Rows = []
    for candidates in sizes:
        row = _alone(measure_scaling, 10, SCALING_BATCH, {**budget, "candidates": candidates}, **common)
        results.append({**row, "candidates": candidates})
        _show_scaling(f"{row['device']} {candidates:>5} candidates", row)
    return results


def _alone(function: Callable[..., dict[str, Any]], *arguments: object, **settings: object) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments, settings)


def _exponent(rows: Rows) -> float:
    first, last = rows[0], rows[-1]
    return math.log(last["ms_per_image"] / first["ms_per_image"]) / math.log(
        last["classes"] / first["classes"]
    )


def _show_comparison(row: dict[str, Any]) -> None:
    _show(
        f"{row['model']} {row['device']} batch {row['batch_size']:>3}: "
        f"{row['ms_per_image']:8.2f} ms an image, "
        f"plain {row['reference_ms_per_image']:8.2f} (ratio {row['ratio']:.1f}); "
        f"{row['evaluations_per_problem']:.1f} evaluations a problem; same decision "
        f"{row['same_decision']:.1%} of {row['images']}; winning objective "
        f"{row['winning_objective_difference']:+.4f}, all {row['objective_difference']:+.4f} nats; "
        f"codebook {row['codebook_seconds']:.1f} s"
    )


def _show_scaling(label: str, row: dict[str, Any]) -> None:
    _show(
        f"{label}: {row['ms_per_image']:8.2f} ms an image (search {row['search_ms_per_image']:.2f}), "
        f"{row['evaluations_per_problem']:.1f} evaluations a problem, peak {row['peak_mib']:.0f} MiB"
    )


def _show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
