"""The formats by name, and the one function that writes them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ..._fields import check_choice
from ..._files import sweep
from ..run.results import Results, load_results
from ..statistics import summarise
from .content import Content
from .croissant import write_croissant
from .every_eval_ever import write_every_eval_ever
from .hf_eval import write_hf_eval
from .robustbench import write_robustbench

__all__ = ["ExportFormat", "export_run"]

ExportFormat: TypeAlias = Literal["every-eval-ever", "hf-eval", "robustbench", "croissant"]

_FORMATS: Mapping[str, Callable[[Content, Path], tuple[Path, ...]]] = {
    "every-eval-ever": write_every_eval_ever,
    "hf-eval": write_hf_eval,
    "robustbench": write_robustbench,
    "croissant": write_croissant,
}


def export_run(
    run: Path | str | Results,
    form: str,
    out: Path | str | None = None,
    *,
    owner: str | None = None,
    benchmark: str | None = None,
) -> tuple[Path, ...]:
    """Writes what a finished run found in a format that others read.

    Every number is the verified one, by the majority of the model's draws; the first draw and the worst stand
    beside it. Everything comes from the rows of the run, and from the images that it kept.

    Args:
        run: The run, or its folder.
        form: `"every-eval-ever"`: records of the Every Eval Ever data store, an aggregate and one line per
            image for every model. `"hf-eval"`: a folder `.eval_results` for the model's repository on the
            Hugging Face Hub. `"robustbench"`: for every model and norm, the adversarial images of the whole
            test split as a tensor, with the text of RobustBench's issue for external evaluations.
            `"croissant"`: the kept images with their rows as a Croissant data set.
        out: The folder to write into; `exports/<format>` in the run's folder if None.
        owner: Who has the models, as in `owner/model` on the Hugging Face Hub, for `every-eval-ever`.
        benchmark: The benchmark on the Hub that the numbers count for, for `hf-eval`; the name of the run's
            data set if None.

    Returns:
        The files, which replace those of an earlier export.

    Raises:
        ValueError: If the format is unknown, the run is not finished or has no such numbers, or a format
            needs images that the run did not keep.

    Example:
        >>> import tempfile
        >>> from genrobust import evaluate, load_model
        >>> from genrobust.benchmarks.export import export_run
        >>> found = evaluate(load_model("cnn", dataset="digits"), samples=2, show_progress=False)
        >>> [path.name for path in export_run(found.folder, "hf-eval", tempfile.mkdtemp())]
        ['quick.yaml']
    """
    check_choice("format", form, get_args(ExportFormat))
    results = run if isinstance(run, Results) else load_results(Path(run))
    if results.missing:
        raise ValueError(f"Expected a finished run, but {results.missing} cells are missing")
    folder = results.folder / "exports" / form if out is None else Path(out)
    content = Content(results=results, summary=summarise(results), owner=owner, benchmark=benchmark)
    sweep(folder)
    return _FORMATS[form](content, folder)
