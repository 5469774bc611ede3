"""`genrobust leaderboard`: a page of the models that RobustBench excludes, with verified submissions."""

from pathlib import Path
from typing import Annotated

import typer

from .._console import say
from .plugins import PluginOption, load_plugins

__all__ = ["leaderboard"]


def leaderboard(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs on test images.", metavar="RUN...")
    ],
    submissions: Annotated[
        Path | None, typer.Option(help="Verify the submissions in this folder, a folder each.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Write the page to this file.")] = Path("leaderboard.html"),
    draws: Annotated[
        int, typer.Option(min=1, help="Judge a submitted image by this many draws of a random model.")
    ] = 5,
    data_root: Annotated[Path | None, typer.Option(help="Read <dataset>.npz from this folder.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Take trained models from this folder before shipped ones.")
    ] = None,
    device: Annotated[str, typer.Option(help="Verify on this device, such as cpu or cuda.")] = "cpu",
    plugin: PluginOption = None,
) -> None:
    """Write one page of the models that RobustBench excludes: the worst verified number of each.

    A submission is a folder with card.json and images.npz. It is verified before it counts; one that fails
    says why on the page, and changes no exit status.
    """
    from ..benchmarks.leaderboard import build_leaderboard, render_leaderboard
    from ..benchmarks.report import write_text
    from ..benchmarks.report.words import count

    load_plugins(plugin)
    board = build_leaderboard(
        runs, submissions=submissions, draws=draws, data_root=data_root, folder=folder, device=device
    )
    write_text(out, render_leaderboard(board))
    failed = [verdict for verdict in board.verdicts if verdict.reason]
    for verdict in failed:
        say(f"{verdict.folder}: {verdict.reason}", label="failed")
    say(
        f"the leaderboard is in {out}: {count(len(board.standings), 'row')}, "
        f"{len(board.verdicts) - len(failed)} of {len(board.verdicts)} submissions count"
    )
