"""Run folders that are damaged, edited or shared: each fault is named, and none reads as a result."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import add_galleries, make_run

from genrobust.benchmarks.report import describe, render
from genrobust.benchmarks.run.cells import Cell
from genrobust.benchmarks.run.gallery import read_gallery
from genrobust.benchmarks.run.results import MANIFEST, Failure, begin_run, load_results, record_failure

CELL = Cell(model="eabs", attack="fgsm", epsilon=0.1, batch=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "run")
    add_galleries(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return write


def replaced(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
        lambda path: path.write_text("[1]"),
        lambda path: path.write_text("{}"),
        edited(lambda content: content.pop("suite")),
        edited(lambda content: content.pop("format")),
        edited(lambda content: content.update(format=2)),
        edited(lambda content: content.update(samples=["a", None])),
        edited(lambda content: content.update(samples=True)),
        edited(lambda content: content.update(models=["cnn"])),
        edited(lambda content: content["models"].update({"../../cnn": {}})),
        edited(lambda content: content.update(environment=[1])),
        edited(lambda content: content["suite"].update(batch_size=0)),
        edited(lambda content: content["suite"].update(attacks=[[[1]]])),
        edited(lambda content: content["suite"]["attacks"][0].update(key="../x")),
        edited(lambda content: content.update(dataset=3)),
    ],
    ids=range(18),
)
def test_a_manifest_that_is_none_is_named(damage: Callable[[Path], object], folder: Path) -> None:
    damage(folder / MANIFEST)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        load_results(folder, partial=True)


def test_a_folder_in_the_place_of_a_manifest(folder: Path) -> None:
    replaced(folder / MANIFEST)
    with pytest.raises(OSError, match=r"manifest\.json"):
        load_results(folder, partial=True)


def test_cells_of_another_run_are_no_empty_run(folder: Path) -> None:
    edited(lambda content: content.update(seed=5))(folder / MANIFEST)
    with pytest.raises(ValueError, match=r"\d+ are damaged or of another run: the manifest was changed"):
        load_results(folder, partial=True)


@pytest.mark.parametrize("text", ["{garbage", "[]", '{"cell": 1}', "[" * 100_000], ids=range(4))
def test_a_damaged_failure_blocks_nothing(text: str, folder: Path) -> None:
    CELL.path(folder).unlink()
    path = folder / "failures" / f"{CELL.key}.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    found = load_results(folder, partial=True)
    assert [failure.cell for failure in found.failures] == [CELL.key]
    assert "Expected" in found.failures[0].error
    assert found.missing == 1


def test_a_failure_beside_its_finished_cell_is_past(folder: Path) -> None:
    record_failure(folder, Failure(cell=CELL.key, error="e", traceback="t", when="w"))
    found = load_results(folder)
    assert (found.failures, found.missing) == ((), 0)


def rewritten(**changes: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with np.load(path) as archive:
            arrays = dict(archive) | changes
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})

    return write


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage" * 50),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        replaced,
        rewritten(class_names=None),
        rewritten(adversarial=np.zeros((1, 1, 8, 5), "f4")),
        rewritten(prediction=np.array(["a", "b"])),
        rewritten(sample=np.array(3)),
        rewritten(clean=np.zeros((2, 2, 8, 8), "f4"), adversarial=np.zeros((2, 2, 8, 8), "f4")),
        rewritten(reconstructions=np.zeros((2, 10), "f4")),
        rewritten(run=np.array("another")),
        rewritten(run=None),
    ],
    ids=range(13),
)
def test_damaged_examples_are_left_out(damage: Callable[[Path], object], folder: Path) -> None:
    run = load_results(folder).run
    assert read_gallery(folder, CELL, run=run) is not None
    damage(folder / "gallery" / f"{CELL.key}.npz")
    assert read_gallery(folder, CELL, run=run) is None
    assert "E-ABS" in render([describe(load_results(folder))], "html")


def test_two_runs_that_begin_at_once_share_no_folder(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"suite": {}, "dataset": {}, "samples": [], "models": {}, "versions": {}}
    manifests = [{**parts, "seed": number} for number in range(8)]
    refused, begun, barrier = [], [], threading.Barrier(len(manifests))

    def begin(manifest: dict[str, Any]) -> None:
        barrier.wait()
        try:
            begun.append((begin_run(tmp_path, manifest), manifest))
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin, args=(manifest,)) for manifest in manifests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 1
    assert len(refused) == 7
    assert json.loads((tmp_path / MANIFEST).read_text())["seed"] == begun[0][1]["seed"]
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_the_page_says_where_weights_come_from(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    for origins, shown in (
        ({"cnn": "shipped", "eabs": "shipped"}, "shipped with genrobust"),
        (
            {"cnn": "shipped", "eabs": "from mine/e.safetensors"},
            "E-ABS from mine/",
        ),
    ):
        edited(lambda content, origins=origins: content.update(weights=origins))(folder / MANIFEST)
        assert shown in render([describe(load_results(folder))], "html")
