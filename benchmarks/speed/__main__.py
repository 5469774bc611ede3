"""Measure E-ABS inference at the published budget: milliseconds an image, peak memory, the bank's gain.

Every batch size runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import multiprocessing
import sys
from pathlib import Path

import torch

from ...storage import write_json
from .measure import PRESET, measure_bank, measure_inference

BATCH_SIZES = (1, 16, 128)


def main(arguments: list[str] | None = None) -> None:
    """Run the measurements and print them; write them as JSON on request."""
    parser = argparse.ArgumentParser(prog="python -m genrobust.benchmarks.speed", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--quick", action="store_true", help="a tenth of the budget, to see that it runs")
    parser.add_argument("--repeats", type=int, default=3, help="calls whose median is taken")
    options = parser.parse_args(arguments)
    budget = {"candidates": 800, "steps": 5} if options.quick else {"candidates": 8000, "steps": 50}
    context = multiprocessing.get_context("spawn")
    inference = []
    for batch_size in BATCH_SIZES:
        with context.Pool(1) as pool:
            row = pool.apply(measure_inference, (batch_size, budget, options.repeats))
        inference.append(row)
        _show(
            f"batch {batch_size:>3}: {row['ms_per_image']:8.2f} ms an image "
            f"(search {row['search_ms_per_image']:.2f}), peak {row['peak_mib']:.0f} MiB, "
            f"codebook built in {row['codebook_seconds']:.1f} s"
        )
    bank = measure_bank(options.repeats)
    _show(
        f"decoder bank: {bank['bank_ms']:.1f} ms, loop over {bank['classes']} decoders: "
        f"{bank['loop_ms']:.1f} ms (forward and backward, batch {bank['batch_size']}), "
        f"ratio {bank['ratio']:.2f}"
    )
    results = {
        "preset": PRESET,
        "budget": budget,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "inference": inference,
        "bank": bank,
    }
    if options.json:
        write_json(options.json, results)


def _show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
