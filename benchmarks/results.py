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

from ..storage import write_json
from .cells import SCHEMA, Cell, plan, read_cell
from .suites import Suite, suite_from_dict

__all__ = ["MANIFEST", "Failure", "Results", "begin_run", "load_results", "record_failure", "record_success"]

MANIFEST = "manifest.json"
FAILURES = "failures"
CIRCUMSTANCES = ("environment", "command")  # entries of the manifest that a run is not bound to


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

    @property
    def samples(self) -> Int[np.ndarray, " samples"]:
        """Indices of the attacked images in the test split, in the order of the run."""
        return np.asarray(self.manifest["samples"], dtype=np.int64)


def begin_run(
    folder: Path, manifest: Mapping[str, Any], circumstances: Mapping[str, Any] | None = None
) -> str:
    """Write the manifest, or check that the folder's run has the same one.

    Args:
        folder: Of the run.
        manifest: What decides the results.
        circumstances: What is written beside it, and may differ when the run is gone on with.

    Returns:
        The run's fingerprint, which every cell carries.

    Raises:
        ValueError: If the folder holds a run with other settings, or a manifest that cannot be read.
    """
    mine: dict[str, Any] = json.loads(json.dumps(manifest))
    path = folder / MANIFEST
    if not path.exists():
        write_json(path, {**mine, **(circumstances or {})})
    elif different := _differences(_settings(_read_manifest(folder)), mine):
        raise ValueError(
            f"Expected the settings of the run in {folder}, but these differ: {'; '.join(different)}. "
            "Choose another --out, or the same settings to go on with that run"
        )
    return _fingerprint(mine)


def load_results(folder: Path, *, partial: bool = False) -> Results:
    """Load a run from its folder.

    Args:
        folder: Of the run.
        partial: Load an unfinished one too.

    Raises:
        ValueError: If the folder holds no run, or, unless `partial`, one that is not finished.
    """
    manifest = _read_manifest(folder)
    suite, models = suite_from_dict(manifest["suite"]), tuple(manifest["models"])
    cells = list(plan(suite, models, len(manifest["samples"])))
    run = _fingerprint(manifest)
    tables = [table for cell in cells if (table := read_cell(folder, cell, run=run)) is not None]
    failures = _read_failures(folder, cells)
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
    """Write down that a cell failed."""
    write_json(_failure_path(folder, failure.cell), asdict(failure))


def record_success(folder: Path, cell: Cell) -> None:
    """Forget that a cell failed once."""
    _failure_path(folder, cell.key).unlink(missing_ok=True)


def _failure_path(folder: Path, key: str) -> Path:
    return folder / FAILURES / f"{key}.json"


def _read_failures(folder: Path, cells: Sequence[Cell]) -> tuple[Failure, ...]:
    paths = [path for cell in cells if (path := _failure_path(folder, cell.key)).is_file()]
    return tuple(Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in paths)


def _settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name not in CIRCUMSTANCES}


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    manifest = _settings(manifest)
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"Expected a run in {folder}, but it has no {MANIFEST}") from None
    except ValueError as error:
        raise ValueError(
            f"Expected {path} to be JSON, but it cannot be read ({error}): choose another --out"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"Expected {path} to hold an object, but got {type(content).__name__}")
    return content


def _differences(theirs: Any, mine: Any, where: str = "") -> list[str]:
    """Name what differs between two JSON values, as dotted paths, with both values where these are short."""
    if theirs == mine:
        return []
    if isinstance(theirs, dict) and isinstance(mine, dict):
        pairs = [(f"{where}.{key}".lstrip("."), theirs.get(key), mine.get(key)) for key in {**theirs, **mine}]
        return [line for name, a, b in pairs for line in _differences(a, b, name)]
    if isinstance(theirs, list) and isinstance(mine, list):
        if len(theirs) != len(mine):
            return [f"{where} ({len(theirs)} entries there, {len(mine)} here)"]
        if any(isinstance(value, list | dict) for value in mine):
            numbered = enumerate(zip(theirs, mine, strict=True))
            return [line for i, (a, b) in numbered for line in _differences(a, b, f"{where}[{i}]")]
    return [f"{where} ({_shortened(theirs)} there, {_shortened(mine)} here)"]


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}…{text[-4:]}"
