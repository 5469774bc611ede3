"""The command line as a process sees it: its streams, their encoding, and an exit status."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from genrobust.cli.main import main


@dataclass(frozen=True)
class Ran:
    """What a command printed, and its exit status."""

    status: int
    output: str
    errors: str


@pytest.fixture
def genrobust(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs a command on streams of an encoding: a pipe, or a terminal of so many columns."""

    def run(*arguments: str, encoding: str = "utf-8", columns: int | None = None) -> Ran:
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(columns or 80))
            patch.delenv("FORCE_COLOR", raising=False)
            if columns is not None:
                patch.setenv("FORCE_COLOR", "1")
            patch.setattr("sys.argv", ["genrobust", *arguments])
            for name, stream in streams.items():
                patch.setattr(f"sys.{name}", stream)
            try:
                main()
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
            else:
                status = 0
        texts = {}
        for name, stream in streams.items():
            stream.flush()
            texts[name] = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        return Ran(status, texts["stdout"], texts["stderr"])

    return run
