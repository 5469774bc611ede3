"""Commands that are told to stop: SIGTERM ends them as Ctrl-C does, and no worker outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genrobust.cli.stopping import stoppable, terminable

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Has this process heed Ctrl-C, which a shell switches off for what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_stopped_says_what_is_kept(
    number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    def command() -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(number)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Exception) as stop, terminable():  # noqa: PT011
        stoppable(command, "the finished cells are kept")()
    assert stop.value.exit_code == status  # type: ignore[attr-defined]
    assert cleaned == [number]
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().out == "stopped; the finished cells are kept, and the same command goes on\n"


def workers_of(parent: int) -> list[int]:
    """Returns the processes that a process has started, by the list of the system."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = (line.split(None, 2) for line in found.stdout.splitlines())
    return [int(pid) for pid, ppid, command in rows if int(ppid) == parent and "loky" in command]


def lives(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def waited(condition: Any, seconds: float = 300) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a run that takes long, in two workers."""
    pytest.importorskip("foolbox")
    pytest.importorskip("joblib")
    command = [
        sys.executable,
        "-m",
        "genrobust",
        "bench",
        "quick",
        "--models",
        "cnn,abs",  # one is soon at its cells, and the other long
        "--jobs",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_workers_end_with_their_parent(
    bench: subprocess.Popen[str], number: signal.Signals, status: int, tmp_path: Path
) -> None:
    assert waited(lambda: list(tmp_path.rglob("*.parquet"))), "no cell was finished"
    workers = workers_of(bench.pid)
    assert len(workers) >= 2
    bench.send_signal(number)
    output, _ = bench.communicate(timeout=120)
    assert bench.returncode == status
    assert ("stopped; the finished cells are kept" in output) == (number == signal.SIGTERM)
    assert waited(lambda: not any(map(lives, workers)), seconds=30)
