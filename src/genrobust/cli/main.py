"""The command line, put together: `genrobust` and its commands."""

import errno
from typing import Annotated

try:
    import rich as _rich
    import typer
except ImportError as error:
    raise SystemExit(
        "Expected typer and rich for the commands: pip install 'genrobust[train,bench]'"
    ) from error

from .. import __version__
from .._console import prepare_streams, say
from .._malloc import keep_freed_memory
from .attacks import attacks
from .audit import audit
from .bench import bench
from .certify import certify
from .export import export
from .leaderboard import leaderboard
from .models import models
from .reports import compare, report
from .reproduction import reproduction
from .results import results
from .show import show
from .stopping import stoppable, terminable
from .train import train

__all__ = ["app", "main"]

del _rich  # only asked whether it is there

REASONS = {
    errno.EACCES: "permission is denied",
    errno.EEXIST: "a file is in the way",
    errno.EISDIR: "a folder is in the way",
    errno.ENOENT: "it does not exist",
    errno.ENOSPC: "the disk is full",
    errno.ENOTDIR: "a file is in the way",
    errno.EPERM: "permission is denied",
    errno.EROFS: "its disk is read-only",
}

app = typer.Typer(
    help="Generative classifiers for adversarial robustness.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
KEPT = {bench: "the finished cells are kept", train: "the finished epochs are kept"}
for command in (
    models,
    attacks,
    train,
    show,
    bench,
    results,
    report,
    compare,
    export,
    leaderboard,
    reproduction,
    audit,
    certify,
):
    app.command()(stoppable(command, KEPT.get(command, "")))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"genrobust {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Generative classifiers for adversarial robustness."""
    del version


def main() -> None:
    """Runs the command line; a user's mistake ends in one line and exit status 2, not in a traceback."""
    keep_freed_memory()
    prepare_streams()
    try:
        with terminable():
            app()
    except (ValueError, OSError, ImportError) as error:
        say(_message(error), label="Error:", stderr=True)
        raise SystemExit(2) from error


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return f"Expected {package} to be installed: pip install 'genrobust[all]'"
    if isinstance(error, OSError) and error.errno is not None:
        reason = REASONS.get(error.errno, error.strerror)
        where = "a file" if error.filename is None else error.filename
        return f"Expected to read or write {where}, but {reason}"
    return str(error)
