import hashlib
from pathlib import Path
from typing import Any

import pytest

from genrobust.benchmarks.run.cells import SCHEMA, Cell, derived_seed, read_cell, write_cell

CELL = Cell(model="cnn", attack="fgsm", epsilon=0.2, batch=3)
COLUMNS: dict[str, Any] = {
    "suite": ["s"] * 2,
    "model": ["cnn"] * 2,
    "attack": ["fgsm"] * 2,
    "toolkit": ["foolbox"] * 2,
    "target": [None] * 2,
    "norm": ["linf"] * 2,
    "epsilon": [0.2] * 2,
    "sample": [5, 7],
    "label": [0, 1],
    "goal": [None, 2],
    "clean_prediction": [0, 1],
    "prediction": [None, 2],
    "entropy": [None, 0.25],
    "rejected": [False, True],
    "margin": [None, 1.5],
    "reclassified": [None, 1],
    "fooling": [None, False],
    "claimed": [True, True],
    "fell_first": [True, False],
    "attempts": [2, 1],
    **{name: [True, False] for name in ("right_first", "right", "right_worst")},
    **{name: [True, False] for name in ("success_first", "success_worst")},
    "valid": [False, True],
    "success": [False, True],
    "unstable": [False, False],
    "zero_gradient": [False, True],
    "distance_l0": [float("inf"), 4.0],
    "distance_l1": [float("inf"), 2.0],
    "distance_l2": [float("inf"), 1.0],
    "distance_linf": [float("inf"), 0.2],
    "overshoot": [1.0, 1.0],
    "queries": [20, 20],
    "gradients": [10, 10],
    "seconds": [0.1, 0.1],
    "seed": [1, 1],
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_cell(tmp_path, CELL, run="abc", columns=COLUMNS, versions={"torch": "1.2.3"})
    return tmp_path


def test_a_cell_comes_back_with_its_versions(written: Path) -> None:
    table = read_cell(written, CELL, run="abc")
    assert table is not None
    assert table.schema.equals(SCHEMA)
    assert table.to_pydict() == COLUMNS
    assert table.schema.metadata[b"torch"] == b"1.2.3"
    assert [path.name for path in CELL.path(written).parent.iterdir()] == ["0003.parquet"]


def test_a_cell_of_another_run_or_place_is_not_taken(written: Path) -> None:
    assert read_cell(written, CELL, run="abd") is None
    other = Cell(model="abs", attack="fgsm", epsilon=0.2, batch=3)
    assert read_cell(written, other, run="abc") is None
    other.path(written).parent.mkdir(parents=True)
    CELL.path(written).rename(other.path(written))
    assert read_cell(written, other, run="abc") is None


def test_every_torn_or_damaged_file_is_noticed(written: Path) -> None:
    path = CELL.path(written)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert read_cell(written, CELL, run="abc") is None
    path.write_bytes(b"\0" * len(whole))
    assert read_cell(written, CELL, run="abc") is None
    path.write_bytes(whole)
    assert read_cell(written, CELL, run="abc") is not None


def test_keys_tell_epsilons_apart() -> None:
    keys = {Cell(model="m", attack="a", epsilon=e, batch=0).key for e in (None, 0.1, 0.1000001, 1.0)}
    assert len(keys) == 4


def test_derived_seeds_are_stable_and_differ() -> None:
    expected = hashlib.sha256(b"0\0cnn/fgsm@0.2/0000").hexdigest()[:8]
    assert derived_seed(0, "cnn/fgsm@0.2/0000") == int(expected, 16)
    assert (
        len({derived_seed(0, key) for key in range(1000)} | {derived_seed(1, key) for key in range(1000)})
        == 2000
    )
    assert derived_seed(1, "1") != derived_seed(11, "")
    assert all(0 <= derived_seed(seed) < 2**32 for seed in range(100))
