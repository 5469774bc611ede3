"""What writers say who cannot write, and what killed ones leave behind."""

import errno
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from genrobust._files import DAY, check_png, sweep, write_atomically, write_json
from genrobust._tensors import write_tensors, write_torch


def killed_writer(path: Path) -> None:
    """Kills a process in the middle of a write."""
    child = os.fork()
    if child == 0:
        with write_atomically(path) as part:
            part.write_text("half of a")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.skipif("not hasattr(os, 'fork')", reason="kills a process")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_temporary_files_of_killed_writers_are_swept(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    for name in ("manifest.json", "cells/0.parquet"):
        killed_writer(tmp_path / name)
    assert len(left(tmp_path)) == 2
    sweep(tmp_path)
    assert left(tmp_path) == []


def test_files_of_living_writers_stay(tmp_path: Path) -> None:
    with write_atomically(tmp_path / "a.json") as part:
        part.write_text("whole")
        sweep(tmp_path)
    assert (tmp_path / "a.json").read_text() == "whole"


@pytest.mark.parametrize(("age", "kept"), [(0, True), (DAY + 60, False)])
@pytest.mark.parametrize("writer", [f"1@not-{socket.gethostname()}", "of-an-earlier-version"])
def test_files_of_other_machines_stay_for_a_day(writer: str, age: float, kept: bool, tmp_path: Path) -> None:
    part = tmp_path / f".a.json.{writer}.0f.part"
    part.write_text("half")
    os.utime(part, (time.time() - age, time.time() - age))
    sweep(tmp_path)
    assert part.exists() == kept


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    for name in ("model.part", ".hidden", "a.json"):
        (tmp_path / name).write_text("mine")
    sweep(tmp_path)
    assert left(tmp_path) == [".hidden", "a.json", "model.part"]
    sweep(tmp_path / "nowhere")


@contextmanager
def full_disk() -> Iterator[None]:
    """Has every file end after a thousand bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS: dict[str, Callable[[Path], None]] = {
    "json": lambda path: write_json(path, list(range(10_000))),
    "safetensors": lambda path: write_tensors(path, {"a": torch.zeros(10_000)}, metadata={"b": "c"}),
    "torch": lambda path: write_torch(path, {"a": torch.zeros(10_000)}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_where_the_disk_is_full_the_old_file_stays_and_the_error_names_it(
    writer: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with full_disk(), pytest.raises(OSError, match="File too large") as error:
        WRITERS[writer](path)
    assert str(path) in str(error.value)
    assert ".part" not in str(error.value)
    assert path.read_text() == "old"
    assert left(tmp_path) == ["file"]
    WRITERS[writer](path)
    assert path.stat().st_size > 1000


def test_an_error_about_the_temporary_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(PermissionError) as error, write_atomically(tmp_path / "a.json") as part:
        raise PermissionError(errno.EACCES, "Permission denied", str(part))
    assert error.value.filename == str(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError) as other, write_atomically(tmp_path / "a.json"):
        (tmp_path / "another").read_text()
    assert other.value.filename == str(tmp_path / "another")


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.png.txt"])
def test_the_name_of_a_picture_says_that_it_is_a_png(name: str) -> None:
    with pytest.raises(ValueError, match=f"`--out` to end in .png, but got {name}"):
        check_png(Path(name), "--out")
    for right in (Path("a.png"), Path("a.PNG"), None):
        check_png(right, "--out")
