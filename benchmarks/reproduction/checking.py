"""The clean accuracy of a run's models, measured again with the weights that are found here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import final

from ..._brief import one_line
from ..._fields import check_integer
from ..._table import TextColumn, TextTable
from ...data import ImageDataset, load_dataset
from ..report.words import percent, points, range_of
from ..run.references import GIVEN, reference
from ..run.results import Results
from ..run.runner import run_suite
from ..statistics import Proportion, difference_interval, summarise

__all__ = ["CheckedModel", "check_models", "check_table"]

LEVEL = 0.05  # chance of any false difference among all models


@final
@dataclass(frozen=True, kw_only=True)
class CheckedModel:
    """The clean accuracy of a model in a run, and now.

    Attributes:
        run: Name of the run's folder.
        model: The model's title.
        before: Its clean accuracy in the run; None if that is unknown.
        now: Its clean accuracy with the weights that are here; None if it could not be measured.
        reason: Why it could not be measured; empty if it was.
        confidence: Confidence of the comparison.
    """

    run: str
    model: str
    before: Proportion | None = None
    now: Proportion | None = None
    reason: str = ""
    confidence: float = 1 - LEVEL

    __repr__ = one_line

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the difference, now minus before; None if one of them is unknown."""
        if self.before is None or self.now is None:
            return None
        now, before = self.now, self.before
        return difference_interval(
            now.value, now.total, before.value, before.total, confidence=self.confidence
        )

    @property
    def differs(self) -> bool:
        """Whether the difference exceeds chance."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def check_models(
    runs: Sequence[Results],
    *,
    samples: int = 500,
    data_root: Path | None = None,
    folder: Path | None = None,
    device: str = "cpu",
) -> tuple[CheckedModel, ...]:
    """Measures the clean accuracy of every model of some runs again.

    The images are those of the run's split, which the run's seed chooses. The intervals are widened for the
    number of models (Bonferroni). A model that cannot be measured says why, and is no difference.

    Args:
        runs: The runs, finished or not.
        samples: Number of images; all of the split if it has fewer.
        data_root: Folder of `<dataset>.npz`.
        folder: Folder of trained models, which come before shipped ones.
        device: Where the models compute.

    Raises:
        ValueError: If `samples` is not a positive integer.
    """
    samples = check_integer(samples, "samples")
    found = [
        _checked(results, name, samples=samples, data_root=data_root, folder=folder, device=device)
        for results in runs
        for name in results.models
    ]
    compared = sum(entry.interval is not None for entry in found)
    return tuple(replace(entry, confidence=1 - LEVEL / max(compared, 1)) for entry in found)


def check_table(found: Sequence[CheckedModel]) -> TextTable:
    """Builds the table of a check."""
    shares = (TextColumn(title=title, right=True) for title in ("in the run", "now", "difference"))
    table = TextTable("run", "model", *shares, TextColumn(title="verdict", prose=True), keys=2)
    for entry in found:
        difference = ""
        if entry.before is not None and entry.now is not None and entry.interval is not None:
            low, high = map(points, entry.interval)
            difference = f"{points(entry.now.value - entry.before.value)} ({low} to {high})"
        verdict = entry.reason or (
            "differs by more than chance" if entry.differs else "the same up to chance"
        )
        cells = (_written(entry.before), _written(entry.now), difference)
        table.add_row(entry.run, entry.model, *cells, verdict)
    return table


def _written(share: Proportion | None) -> str:
    if share is None:
        return ""
    return f"{percent(share.value, share.total)} ({range_of(share)}) of {share.total:,}"


def _checked(
    results: Results, name: str, *, samples: int, data_root: Path | None, folder: Path | None, device: str
) -> CheckedModel:
    entry = CheckedModel(
        run=Path(results.folder).resolve().name,
        model=results.suite.model(name).title,
        before=_clean_accuracy(results, name),
    )
    if entry.before is None:
        return replace(entry, reason="not checked: the run has no clean accuracy")
    if (results.manifest.get("weights") or {}).get(name) == GIVEN:
        return replace(entry, reason="not checked: the caller gave the model, and no name leads to it")
    try:
        images = _images(results, data_root)
        now = _measured(results, name, images, min(samples, len(images)), folder=folder, device=device)
    except (ValueError, OSError, ImportError) as error:
        return replace(entry, reason=f"not checked: {error}")
    return replace(entry, now=now)


def _clean_accuracy(results: Results, name: str) -> Proportion | None:
    row = next((row for row in summarise(results).rows if row.norm is None), None)
    return row.accuracy(name) if row is not None and name in row.robust else None


def _images(results: Results, root: Path | None) -> ImageDataset:
    recorded = results.manifest["dataset"]
    images = load_dataset(recorded["name"], recorded["split"], root=root)
    if recorded.get("sha256") not in (None, images.sha256):
        raise ValueError(f"Expected the images of the run, but {recorded['name']!r} here has others")
    return images


def _measured(
    results: Results, name: str, images: ImageDataset, samples: int, *, folder: Path | None, device: str
) -> Proportion:
    """Runs the part of the suite that has one model and no attack.

    Raises:
        ValueError: If there are no weights, or the model fails.
    """
    source = reference(results.suite, name, folder=folder, device=device)
    if not source.there:
        raise ValueError(f"Expected weights, but they are neither shipped nor there: `{source.command}`")
    alone = replace(
        results.suite.restricted([name]), attacks=(), expected=(), reclassify=False, baseline=None
    )
    with TemporaryDirectory(prefix="genrobust-check-") as out:
        found = run_suite(
            alone,
            models={name: source},
            dataset=images,
            samples=samples,
            seed=results.manifest["seed"],
            out=Path(out),
            show_progress=False,
        )
        share = _clean_accuracy(found, name)
    if share is None or found.missing:
        raise ValueError(found.failures[0].error if found.failures else "the model gave no answer")
    return share
