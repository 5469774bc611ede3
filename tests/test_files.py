"""What killed writers leave behind, and what is somebody else's."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from genrobust._files import DAY, sweep, write_atomically


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
