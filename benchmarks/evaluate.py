"""Suites from Python: `genrobust.evaluate(model, "quick")` for anybody's module."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, final

import pyarrow as pa
from torch import Tensor

from .._fields import checked
from .._table import TextTable
from ..adapters.catalogues.own import TOOLKIT
from ..attacks import named_attack
from ..contract import Classifier
from ..data import ImageDataset, Split, is_test_split_of, load_dataset
from ..external import PROBE_IMAGES, as_classifier
from .export import ExportFormat, export_run
from .report import render_table, write_report
from .run.engines import Engine, EngineName
from .run.references import reference
from .run.results import Results
from .run.runner import run_suite
from .statistics import Summary, summarise
from .suites.files import load_suite
from .suites.model import Attack, Scale, Suite, SuiteModel

AnyAttack: TypeAlias = str | Callable[..., Tensor] | Attack

__all__ = ["Evaluation", "IncompleteRunError", "evaluate", "for_dataset"]


@final
@dataclass(frozen=True)
class Evaluation:
    """What a suite found about models.

    Attributes:
        results: The run, with its per-sample rows.
    """

    results: Results

    def __repr__(self) -> str:
        return f"Evaluation({self.results.in_a_line()})"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    @property
    def folder(self) -> Path:
        """Where the run lies; the same folder goes on with it."""
        return self.results.folder

    @property
    def rows(self) -> pa.Table:
        """Per-sample rows; see `cells.SCHEMA`."""
        return self.results.rows

    @cached_property
    def _summary(self) -> Summary:
        return summarise(self.results)

    def summary(self) -> Summary:
        """Returns robust accuracies, unions of attacks, comparisons and curves."""
        return self._summary

    def table(self) -> TextTable:
        """Returns the table, for `rich.print` or a notebook."""
        return render_table(self.results, self._summary)

    def query(self, sql: str) -> pa.Table:
        """Answers an SQL query over the view `rows`."""
        from .run.query import query_rows

        return query_rows(self.folder, sql)

    def report(self) -> tuple[Path, ...]:
        """Writes the report into the run's folder; give the paths of its files."""
        return tuple(write_report(self.results))

    def export(self, form: ExportFormat, out: Path | str | None = None) -> tuple[Path, ...]:
        """Writes the run in a format of others, and returns the paths; see `export.export_run`."""
        return export_run(self.results, form, out)


@final
class IncompleteRunError(RuntimeError):
    """Some cells of a run failed: a table without them would show a model as more robust than it is.

    Attributes:
        evaluation: What is there.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        results = evaluation.results
        shown = "; ".join(f"{failure.cell}: {failure.error}" for failure in results.failures[:3])
        super().__init__(
            f"Expected every cell to be computed, but {results.missing} are missing ({shown}). The same call "
            f"with `out` of {results.folder} tries them again, and the attribute `evaluation` has the others"
        )
        self.evaluation = evaluation


def evaluate(
    model: Callable[[Tensor], Tensor] | Mapping[str, Callable[[Tensor], Tensor]],
    suite: str | Path | Suite = "quick",
    *,
    attacks: Sequence[AnyAttack] = (),
    dataset: ImageDataset | str | None = None,
    split: Split = "test",
    scale: Scale = "small",
    compare_with: tuple[str, ...] = (),
    out: Path | str | None = None,
    samples: int | None = None,
    seed: int = 0,
    jobs: int | None = None,
    engine: EngineName = "local",
    address: str | None = None,
    keep_examples: bool = False,
    show_progress: bool = True,
) -> Evaluation:
    """Runs a suite as `genrobust.evaluate` says.

    A model whose logits differ when it is shown an image again is attacked with as many draws of its noise as
    the suite asks for, and judged with draws that no attack has seen. Attacks beside the suite's own are
    verified and reported like a toolkit's.
    """
    if not isinstance(attacks, Sequence) or isinstance(attacks, str):
        raise ValueError(f"Expected `attacks` to be a list of attacks, but got {attacks!r}")
    others = checked(compare_with, tuple[str, ...], "`compare_with`")
    chosen = suite if isinstance(suite, Suite) else load_suite(suite, scale=scale)
    images = _images(chosen.dataset if dataset is None else dataset, split)
    chosen = for_dataset(chosen, images)
    images = replace(images, name=chosen.dataset)
    chosen = replace(chosen, attacks=(*chosen.attacks, *map(_as_entry, attacks)))
    mine = model if isinstance(model, Mapping) else {"model": model}
    if twice := sorted(mine.keys() & set(others)):
        raise ValueError(
            f"Expected other names in `compare_with` than in `model`, but both have {twice[0]!r}"
        )
    probes, _ = images.batch(slice(PROBE_IMAGES))
    models: dict[str, Any] = {name: as_classifier(part, probes) for name, part in mine.items()}
    chosen = _with_second_gradients(chosen, models)
    models |= {name: reference(chosen, name) for name in others}
    results = run_suite(
        chosen.restricted(list(models)),
        models=models,
        dataset=images,
        out=Path(tempfile.mkdtemp(prefix=f"genrobust-{chosen.name}-")) if out is None else Path(out),
        samples=samples,
        seed=seed,
        engine=Engine(name=engine, address=address, jobs=jobs),
        keep_examples=keep_examples,
        show_progress=show_progress,
    )
    if results.missing:
        raise IncompleteRunError(Evaluation(results))
    return Evaluation(results)


def _images(dataset: ImageDataset | str, split: Split) -> ImageDataset:
    if not isinstance(dataset, ImageDataset):
        return load_dataset(checked(dataset, str, "`dataset`"), split)
    if split not in ("test", dataset.split):
        raise ValueError(
            f"Expected `split` with the name of a data set, but got {split!r} and images of {dataset.split!r}"
        )
    return dataset


def _as_entry(attack: AnyAttack) -> Attack:
    """Returns the suite's entry of an attack."""
    if isinstance(attack, Attack):
        return attack
    own = named_attack(attack)
    return Attack(
        key=own.name,
        title=own.name,
        norm=own.norm,
        kind="fixed epsilon" if own.needs_epsilon else "minimal norm",
        name=own.name,
        toolkit=TOOLKIT,
    )


def _with_second_gradients(suite: Suite, models: Mapping[str, Classifier]) -> Suite:
    """Has attacks by a gradient of their own run on every given model that has it, as on the suite's."""

    def extended(attack: Attack) -> Attack:
        if attack.gradient is None:
            return attack
        able = [name for name, model in models.items() if attack.gradient in model.gradients]
        return replace(attack, for_models=tuple(dict.fromkeys((*attack.for_models, *able))))

    known = [model.name for model in suite.models]
    entries = (SuiteModel(name=name, title=name) for name in models if name not in known)
    return replace(suite, models=(*suite.models, *entries), attacks=tuple(map(extended, suite.attacks)))


def for_dataset(suite: Suite, images: ImageDataset, *, root: Path | None = None) -> Suite:
    """Returns a suite on other images; the paper's numbers stay only beside the suite's own test images.

    The images are recognised by their content, whatever their name. They are to bear the name of the dataset
    of the suite that is returned.

    Args:
        suite: The suite.
        images: The test images.
        root: Folder of `<dataset>.npz`, for a dataset whose content is not recorded.
    """
    if is_test_split_of(suite.dataset, images, root=root):
        return suite
    if images.name == suite.dataset:
        note = f"The images are not the test images of {suite.dataset}: the paper's numbers are left out."
    else:
        note = f"The images are {images.name}, not {suite.dataset}: the paper's numbers are left out."
    reduced = (*suite.reduced, note) if suite.paper else ()
    return replace(suite, dataset=images.name, expected=(), reduced=reduced)
