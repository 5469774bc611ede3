"""`genrobust bench`: the shipped suites, and a run of one."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from .._console import say, show
from .._table import TextColumn, TextTable
from .plugins import PluginOption, load_plugins, suite_of

__all__ = ["bench", "suites_table"]


def bench(
    suite: Annotated[
        str | None,
        typer.Argument(
            help="A suite, a TOML file, or a Python file that registers one; without it, the list."
        ),
    ] = None,
    scale: Annotated[str, typer.Option(help="small, or paper: as published.")] = "small",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; the same folder resumes.")] = None,
    samples: Annotated[int | None, typer.Option(help="Images, in place of the suite's.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples, attacks and noise.")] = 0,
    models: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    dataset: Annotated[str | None, typer.Option(help="In place of the suite's, such as digits.")] = None,
    split: Annotated[str, typer.Option(help="Attacked images: test, or validation to tune on.")] = "test",
    data_root: Annotated[Path | None, typer.Option(help="Folder of <dataset>.npz.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Of trained models, taken before shipped ones.")] = None,
    skip_missing: Annotated[bool, typer.Option(help="Leave out models without weights.")] = False,
    device: Annotated[str, typer.Option(help="Such as cpu, cuda or cuda:1.")] = "cpu",
    jobs: Annotated[int | None, typer.Option(help="Cells at once.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch in every process.")] = None,
    engine: Annotated[str, typer.Option(help="local, or dask or ray for a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the cluster's scheduler.")] = None,
    keep_examples: Annotated[bool, typer.Option(help="Keep every adversarial image.")] = False,
    fail_under: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="In percent: exit status 1 if a model's lowest accuracy is below."),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Run a suite of attacks; killed, the same command goes on.

    Exit status 1: some cells failed, or a model's lowest accuracy is below --fail-under, of clean images,
    under a single attack, or under all attacks of a norm.
    """
    from ..benchmarks.report import render_table, shortfalls, write_report
    from ..benchmarks.run.engines import Engine, EngineName
    from ..benchmarks.statistics import summarise
    from ..benchmarks.suites.model import Scale
    from ..data import Split
    from .running import BenchOptions, run_bench

    load_plugins(plugin)
    if suite is None:
        show(suites_table())
        return
    if suite.endswith(".py"):
        suite = suite_of(Path(suite))
    options = BenchOptions(
        suite=suite,
        scale=cast(Scale, scale),
        out=out,
        samples=samples,
        seed=seed,
        models=models,
        dataset=dataset,
        split=cast(Split, split),
        data_root=data_root,
        folder=folder,
        skip_missing=skip_missing,
        device=device,
        engine=Engine(name=cast(EngineName, engine), address=address, jobs=jobs, threads=threads),
        keep_examples=keep_examples,
        command=shlex.join(["genrobust", *sys.argv[1:]]),
    )
    found = run_bench(options)
    for sentence in found.suite.reduced:
        say(sentence, style="dim")
    if found.missing:
        for failure in found.failures:
            say(f"{failure.cell}: {failure.error}", label="failed")
        say(
            f"{found.missing} cells are missing in {found.folder}; the same command tries them again, and "
            "`genrobust report` shows the others"
        )
        raise typer.Exit(1)
    write_report(found)
    summary = summarise(found)
    show(render_table(found, summary))
    say(f"the report is {found.folder / 'report.html'}; rows, table and curves are beside it")
    low = [] if fail_under is None else shortfalls(found, summary, fail_under)
    for sentence in low:
        say(sentence, label="failed")
    if low:
        raise typer.Exit(1)


def suites_table() -> TextTable:
    """Builds the table of the shipped suites."""
    from ..benchmarks.suites.files import SUITES, load_suite, shipped_suites

    counts = (TextColumn(title=title, right=True) for title in ("models", "attacks", "images"))
    prose = (TextColumn(title=title, prose=True) for title in ("what", "paper"))
    table = TextTable("suite", "data set", *counts, *prose)
    for name in sorted({*shipped_suites(), *SUITES.names()}):
        suite = load_suite(name)
        numbers = (len(suite.models), len(suite.attacks), suite.samples)
        table.add_row(name, suite.dataset, *map(str, numbers), suite.title, suite.paper)
    return table
