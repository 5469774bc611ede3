"""The commands that say what came out of a run: `genrobust report` and `genrobust compare`."""

from pathlib import Path
from typing import Annotated

import typer

from .._console import say, show

__all__ = ["compare", "report"]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or not.", metavar="RUN...")],
    out: Annotated[
        Path | None, typer.Option(help="The file; if not said, report.html in the run's folder.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="html, markdown, latex or json.")] = "html",
) -> None:
    """Write what came out of runs: one page that needs no network, or Markdown, LaTeX, JSON."""
    from ..benchmarks.report import describe, render, write_text
    from ..benchmarks.report.writing import PAGE_FILE
    from ..benchmarks.run.results import load_results

    text = render([describe(load_results(run, partial=True)) for run in runs], form)
    if out is None and form != "html":
        typer.echo(text, nl=False)
        return
    path = out or (runs[0] / PAGE_FILE if len(runs) == 1 else Path(PAGE_FILE))
    write_text(path, text)
    say(f"the report is in {path}")


def compare(
    run_a: Annotated[Path, typer.Argument(help="Folder of a run.")],
    run_b: Annotated[Path, typer.Argument(help="Folder of another.")],
    everything: Annotated[bool, typer.Option("--all", help="Also what does not differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
    level: Annotated[float, typer.Option(help="Chance of any false difference.")] = 0.05,
) -> None:
    """Say which accuracies of two runs differ by more than chance, and which settings differ."""
    from ..benchmarks.report import compare as comparing
    from ..benchmarks.run.results import load_results

    first, second = (load_results(run, partial=True) for run in (run_a, run_b))
    found = comparing.compare_runs(first, second, level=level)
    if as_json:
        typer.echo(comparing.as_json(found, everything=everything))
        return
    titles = {
        model: results.suite.model(model).title for results in (second, first) for model in results.models
    }
    show(comparing.render_comparisons(found, titles, everything=everything))
