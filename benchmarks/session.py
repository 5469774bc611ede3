"""What `genrobust bench` and `genrobust results` do."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich import box
from rich.table import Table

from ..data import load_dataset
from .engines import Engine
from .evaluation import for_dataset
from .references import ModelReference, missing_weights, reference
from .results import Results, load_results
from .runner import run_suite
from .suite_files import load_suite, shipped_suites
from .suites import BARE, ENCODER, Scale, Suite

__all__ = ["BenchOptions", "as_csv", "as_json", "as_table", "run_bench", "suites_table", "summary_table"]

SHOWN_ROWS = 200  # of an answer on a terminal


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What a run of a suite is told; see `genrobust bench --help`."""

    suite: str
    scale: Scale = "small"
    out: Path | None = None
    samples: int | None = None
    seed: int = 0
    models: str | None = None
    dataset: str | None = None
    data_root: Path | None = None
    folder: Path | None = None
    skip_missing: bool = False
    device: str = "cpu"
    engine: Engine = field(default_factory=Engine)
    keep_examples: bool = False
    command: str | None = None


def run_bench(options: BenchOptions) -> Results:
    """Run a suite, or go on with it.

    Raises:
        ValueError: If something is unknown, or weights are missing: the message has the commands that make
            them.
    """
    suite = load_suite(options.suite, scale=options.scale)
    if options.dataset is not None:
        suite = for_dataset(suite, options.dataset)
    suite, references = _with_weights(suite, options)
    count = suite.samples if options.samples is None else options.samples
    _check_device(options.device)
    return run_suite(
        suite,
        models=references,
        dataset=load_dataset(suite.dataset, "test", root=options.data_root),
        samples=count,
        seed=options.seed,
        out=options.out or _folder(suite, count, options),
        engine=options.engine,
        keep_examples=options.keep_examples,
        command=options.command,
    )


def _folder(suite: Suite, count: int, options: BenchOptions) -> Path:
    scale = "" if options.scale == "small" else f"-{options.scale}"
    dataset = "" if options.dataset is None else f"-{options.dataset}"
    return Path("runs") / f"{suite.name}{scale}{dataset}-{count}-samples-seed-{options.seed}"


def _with_weights(suite: Suite, options: BenchOptions) -> tuple[Suite, dict[str, ModelReference]]:
    """Give references of the models, and the part of the suite that they can run."""
    names = [part.strip() for part in options.models.split(",")] if options.models else None
    chosen = names or [model.name for model in suite.models]
    references = {
        name: reference(suite, name, folder=options.folder, device=options.device) for name in chosen
    }
    missing = missing_weights(references.values())
    if missing and not (options.skip_missing and len(missing) < len(references)):
        commands = "; ".join(f"{name}: `{command}`" for name, command in missing.items())
        raise ValueError(
            f"Expected weights of every model, but {', '.join(missing)} of {suite.name!r} on {suite.dataset} "
            f"are not shipped, and not in {next(iter(references.values())).folder}. Make them ({commands}), "
            "name another --folder, or run with those that are there by --skip-missing"
        )
    there = {name: source for name, source in references.items() if name not in missing}
    needed = {attack.against for attack in suite.attacks} - {None, BARE, ENCODER}
    if names and (sources := needed - set(there)) and not options.skip_missing:
        raise ValueError(
            f"Expected {', '.join(sorted(map(str, sources)))} among --models, whose examples are "
            "transferred; --skip-missing leaves these attacks out"
        )
    return suite.restricted(list(there)), there


def _check_device(device: str) -> None:
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"Expected a `device` that is here, but got {device!r}: {reason}") from error


def suites_table() -> Table:
    """Give the shipped suites as a table."""
    table = Table("suite", "what", "paper", "data set", "models", "attacks", "images", box=box.SIMPLE_HEAD)
    for name in shipped_suites():
        suite = load_suite(name)
        counts = (len(suite.models), len(suite.attacks), suite.samples)
        table.add_row(name, suite.title, suite.paper, suite.dataset, *map(str, counts))
    return table


def summary_table(folder: Path) -> Table:
    """Give what a run has, model by model and attack by attack; it need not be finished."""
    results = load_results(folder, partial=True)
    suite = results.suite
    table = Table(
        *("model", "attack", "ε", "images", "right", "rejected", "median L2", "queries", "seconds"),
        title=f"{suite.name}: {suite.dataset}, {results.missing} cells missing",
        box=box.SIMPLE_HEAD,
    )
    rows = results.rows
    right = pc.and_(pc.equal(rows["clean_prediction"], rows["label"]), pc.invert(rows["success"]))
    found = pa.table(
        {
            **{name: rows[name] for name in ("model", "attack", "epsilon", "rejected", "queries", "seconds")},
            "right": right,
            "distance": pc.if_else(rows["success"], rows["distance_l2"], None),
        }
    )
    groups = found.group_by(["model", "attack", "epsilon"], use_threads=False).aggregate(
        [
            ("right", "count"),
            ("right", "mean"),
            ("rejected", "mean"),
            ("distance", "approximate_median"),
            ("queries", "mean"),
            ("seconds", "sum"),
        ]
    )
    for row in groups.to_pylist():
        median = row["distance_approximate_median"]
        table.add_row(
            row["model"],
            row["attack"],
            "" if row["epsilon"] is None else f"{row['epsilon']:g}",
            str(row["right_count"]),
            f"{row['right_mean']:.1%}",
            f"{row['rejected_mean']:.1%}",
            "" if median is None or math.isnan(median) else f"{median:.2f}",
            f"{row['queries_mean']:.0f}",
            f"{row['seconds_sum']:.1f}",
        )
    for failure in results.failures:
        table.add_row(f"[red]failed[/red] {failure.cell}", failure.error)
    return table


def as_table(answer: pa.Table) -> Table:
    """Give the answer to a query as a table, of which a terminal is shown the first rows."""
    title = None
    if len(answer) > SHOWN_ROWS:
        title = f"the first {SHOWN_ROWS} of {len(answer)} rows; --csv or --json gives all"
    table = Table(*answer.column_names, title=title, box=box.SIMPLE_HEAD)
    for row in _rows(answer.slice(0, SHOWN_ROWS)):
        table.add_row(*("" if value is None else str(value) for value in row))
    return table


def as_json(answer: pa.Table) -> str:
    """Give the answer as a JSON list of objects; what is not finite is null."""
    names = answer.column_names
    return json.dumps([dict(zip(names, map(_plain, row), strict=True)) for row in _rows(answer)], indent=2)


def as_csv(answer: pa.Table) -> str:
    """Give the answer as CSV with a line of names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(answer.column_names)
    writer.writerows(_rows(answer))
    return text.getvalue().rstrip("\n")


def _rows(answer: pa.Table) -> list[Sequence[Any]]:
    columns = [column.to_pylist() for column in answer.columns]
    return list(zip(*columns, strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return float(value) if hasattr(value, "as_integer_ratio") else str(value)
