"""`genrobust export`: a run in the formats of others."""

from pathlib import Path
from typing import Annotated

import typer

from .._console import say

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    form: Annotated[
        str, typer.Option("--format", help="every-eval-ever, hf-eval, robustbench or croissant.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write into this folder; if not said, exports/FORMAT in the run's.")
    ] = None,
    owner: Annotated[
        str | None, typer.Option(help="Name who has the models, as in owner/model; for every-eval-ever.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="Name the benchmark on the Hugging Face Hub; for hf-eval.")
    ] = None,
) -> None:
    """Write a finished run in a format that others read.

    every-eval-ever: write one record per model for the data store of Every Eval Ever, and one line per image.

    hf-eval: write .eval_results/*.yaml for each model's repository on the Hugging Face Hub.

    robustbench: write the adversarial images of the whole test split as a .pt file, and the text of
    RobustBench's issue for external evaluations. Run the suite on all test images with --keep-examples.

    croissant: write the kept images and their rows as a Croissant data set. Run with --keep-examples.

    Numbers are verified, by the majority of the model's draws. The first draw and the worst stand beside
    them.
    """
    from ..benchmarks.export import export_run

    for path in export_run(run, form, out, owner=owner, benchmark=benchmark):
        say(f"wrote {path}")
