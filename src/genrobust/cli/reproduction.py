"""`genrobust reproduction`: what papers say, next to what runs measured."""

from pathlib import Path
from typing import Annotated

import typer

from .._console import say, show
from .plugins import PluginOption, load_plugins

__all__ = ["reproduction"]


def reproduction(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or not.", metavar="RUN...")],
    out: Annotated[Path, typer.Option(help="Write the page to this file.")] = Path("REPRODUCTION.md"),
    check: Annotated[
        bool, typer.Option("--check", help="Measure the clean accuracy of every model again.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Check on this number of images.")] = 500,
    data_root: Annotated[Path | None, typer.Option(help="Read <dataset>.npz from this folder.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Take trained models from this folder before shipped ones.")
    ] = None,
    device: Annotated[str, typer.Option(help="Check on this device, such as cpu or cuda.")] = "cpu",
    plugin: PluginOption = None,
) -> None:
    """Write one page of what five papers say and what runs measured, with computed verdicts.

    Exit status 1, with --check: the clean accuracy of a model differs from the run's by more than chance, or
    no model could be checked.
    """
    from ..benchmarks.report import write_text
    from ..benchmarks.report.words import count
    from ..benchmarks.reproduction import (
        check_models,
        check_table,
        measured_run,
        read_papers,
        render_reproduction,
    )
    from ..benchmarks.run.results import load_results

    load_plugins(plugin)
    unlike = {run.resolve(): run for run in runs}
    found = [load_results(run, partial=True) for run in unlike.values()]
    papers = read_papers()
    write_text(out, render_reproduction([measured_run(results, papers) for results in found], papers))
    say(f"the page is in {out}: {count(len(papers), 'paper')}, {count(len(found), 'run')}")
    if not check:
        return
    checked = check_models(found, samples=samples, data_root=data_root, folder=folder, device=device)
    show(check_table(checked))
    if any(entry.differs for entry in checked) or all(entry.now is None for entry in checked):
        raise typer.Exit(1)
