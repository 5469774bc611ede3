"""A run is a folder: a manifest that says what was run, and the cells."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from ..._claims import create_json, differences
from ..._fields import AtLeastZero, Seed, checked
from ..._files import read_json, write_json
from ...zoo.weight_files import config_from_dict
from ..suites.model import Suite, suite_from_dict
from .cells import SCHEMA, Cell, plan, read_cell

__all__ = ["MANIFEST", "Failure", "Results", "begin_run", "load_results", "record_failure", "record_success"]

MANIFEST = "manifest.json"
FAILURES = "failures"
_LAYOUT: Mapping[str, Any] = {
    "suite": dict[str, Any],
    "dataset": dict[str, Any],
    "samples": tuple[AtLeastZero, ...],
    "models": dict[str, dict[str, Any]],
    "versions": dict[str, str],
    "seed": Seed,
    "environment": dict[str, Any] | None,
    "command": str | None,
    "weights": dict[str, str] | None,
    "kinds": dict[str, tuple[str, ...]] | None,
    "began": str | None,
}
_BEHAVIOUR = ".behaviour."  # of a model, in the name of an entry
FORMAT = 1  # of the manifest; another one means other keys
# Entries of the manifest that a run is not bound to.
CIRCUMSTANCES = ("environment", "command", "weights", "kinds", "began")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that could not be computed; the same command tries it again.

    Attributes:
        cell: Its key.
        error: What went wrong, in a line.
        traceback: Where.
        when: When, in UTC.
    """

    cell: str
    error: str
    traceback: str
    when: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """A run.

    Attributes:
        folder: Where it lies.
        suite: What was run.
        models: Names of the models, in the order of the columns.
        manifest: Settings, versions and fingerprints.
        rows: Per-sample rows of all finished cells; see `cells.SCHEMA`.
        failures: The cells that failed when they were last tried.
        missing: Number of cells that are not finished, the failed ones among them.
    """

    folder: Path
    suite: Suite
    models: tuple[str, ...]
    manifest: Mapping[str, Any]
    rows: pa.Table
    failures: tuple[Failure, ...] = ()
    missing: int = 0

    def __repr__(self) -> str:
        return f"Results({self.in_a_line()})"

    def in_a_line(self) -> str:
        """Returns what was run, and how much of it is there."""
        names = f"{self.suite.name[:40]} on {self.suite.dataset[:40]}"
        counts = f"{len(self.models)} models, {len(self.samples)} images, {len(self.rows)} rows"
        return f"{names}: {counts}, {self.missing} cells missing"

    @property
    def run(self) -> str:
        """The fingerprint of the run, which its cells and its examples carry."""
        return _fingerprint(self.manifest)

    @property
    def samples(self) -> Int[np.ndarray, " samples"]:
        """Indices of the attacked images in the test split, in the order of the run."""
        return np.asarray(self.manifest["samples"], dtype=np.int64)


def begin_run(
    folder: Path, manifest: Mapping[str, Any], circumstances: Mapping[str, Any] | None = None
) -> str:
    """Writes the manifest, or check that the folder's run has the same one.

    Args:
        folder: Folder of the run.
        manifest: What decides the results.
        circumstances: What is written beside it, and may differ when the run is gone on with.

    Returns:
        The run's fingerprint, which every cell carries.

    Raises:
        ValueError: If the folder holds a run with other settings, or a manifest that cannot be read.
    """
    mine: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **manifest}))
    created = create_json(folder / MANIFEST, {**mine, **(circumstances or {})})
    if not created and (different := differences(_settings(_read_manifest(folder)), mine, alike=_answers)):
        raise ValueError(
            f"Expected the settings of the run in {folder}, but these differ: {'; '.join(different)}. "
            "Choose another --out, or the same settings to go on with that run"
        )
    return _fingerprint(_read_manifest(folder))


def load_results(folder: Path, *, partial: bool = False) -> Results:
    """Loads a run from its folder.

    Args:
        folder: Folder of the run.
        partial: Load an unfinished one too.

    Raises:
        ValueError: If the folder holds no run, or, unless `partial`, one that is not finished.
    """
    manifest = _read_manifest(folder)
    suite, models = _suite_of(manifest, folder / MANIFEST), tuple(manifest["models"])
    cells = list(plan(suite, models, len(manifest["samples"])))
    run = _fingerprint(manifest)
    found = {cell: table for cell in cells if (table := read_cell(folder, cell, run=run)) is not None}
    tables = list(found.values())
    if not tables and (others := [cell for cell in cells if cell.path(folder).is_file()]):
        raise ValueError(
            f"Expected cells of the run that {folder / MANIFEST} describes, but {len(others)} are damaged or "
            "of another run: the manifest was changed, or files were mixed"
        )
    failures = _read_failures(folder, [cell for cell in cells if cell not in found])
    if len(tables) < len(cells) and not partial:
        failed = f", and {len(failures)} failed ({failures[0].error})" if failures else ""
        raise ValueError(
            f"Expected a finished run in {folder}, but it has {len(tables)} of {len(cells)} cells{failed}: "
            "the command that began it goes on with it"
        )
    rows = pa.concat_tables([SCHEMA.empty_table(), *(t.replace_schema_metadata(None) for t in tables)])
    return Results(
        folder=folder,
        suite=suite,
        models=models,
        manifest=manifest,
        rows=rows,
        failures=failures,
        missing=len(cells) - len(tables),
    )


def record_failure(folder: Path, failure: Failure) -> None:
    """Writes down that a cell failed."""
    write_json(_failure_path(folder, failure.cell), asdict(failure))


def record_success(folder: Path, cell: Cell) -> None:
    """Forgets that a cell failed once."""
    _failure_path(folder, cell.key).unlink(missing_ok=True)


def _failure_path(folder: Path, key: str) -> Path:
    return folder / FAILURES / f"{key}.json"


def _read_failures(folder: Path, cells: Sequence[Cell]) -> tuple[Failure, ...]:
    found = []
    for cell in cells:
        path = _failure_path(folder, cell.key)
        if path.is_file():
            try:
                found.append(config_from_dict(Failure, read_json(path)))
            except ValueError as error:  # it says why a cell is missing, which is known anyway
                found.append(Failure(cell=cell.key, error=str(error), traceback="", when=""))
    return tuple(found)


def _settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name not in CIRCUMSTANCES}


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    manifest = _settings(manifest)
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"Expected a run in {folder}, but it has no {MANIFEST}") from None
    except ValueError as error:
        raise ValueError(f"{error}; choose another --out") from error
    if not isinstance(content, dict):
        raise ValueError(f"Expected {path} to hold an object, but got {type(content).__name__}")
    if content.get("format") != FORMAT:
        raise ValueError(
            f"Expected {path} to be of format {FORMAT}, but got {content.get('format')!r:.20}: another "
            "version of genrobust wrote it, or it was changed; choose another --out"
        )
    for name, hint in _LAYOUT.items():
        checked(content.get(name), hint, f"`{name}` in {path}")
    return content


def _suite_of(manifest: Mapping[str, Any], path: Path) -> Suite:
    """Returns the suite of a manifest, whose models have names that no path can leave the folder by."""
    try:
        suite = suite_from_dict(manifest["suite"])
        for name in manifest["models"]:
            suite.model(name)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected {path} to describe a run, but: {error}") from error
    return suite


def _answers(where: str, theirs: Any, mine: Any) -> bool:
    """Returns whether two values are the rounded answers of one model."""
    return _BEHAVIOUR in f"{where}." and _alike(theirs, mine)


def _alike(theirs: Any, mine: Any) -> bool:
    """Returns whether rounded answers are the same up to the rounding, which other threads may tip over."""
    if isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        if all(isinstance(value, float | int) for value in (*theirs, *mine)):
            largest = max(map(abs, (*theirs, *mine)), default=0.0)
            return all(abs(a - b) <= 0.02 * largest for a, b in zip(theirs, mine, strict=True))
        return all(_alike(a, b) for a, b in zip(theirs, mine, strict=True))
    return bool(theirs == mine)
