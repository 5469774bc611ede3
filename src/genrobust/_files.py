"""Atomic writes, so that a file is complete or absent; and JSON that anybody may have written."""

import errno
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["check_png", "is_file", "read_json", "sha256_of", "sweep", "write_atomically", "write_json"]

SUFFIX = ".part"
DAY = 24 * 60 * 60  # seconds after which a writer on another machine is taken for dead


@contextmanager
def write_atomically(path: str | os.PathLike[str], *, exclusive: bool = False) -> Iterator[Path]:
    """Yields a temporary path next to `path`, which replaces `path` on success and is deleted on failure.

    The data is on the disk before the name is, so that a kill or a power cut leaves the old file or the new
    one. The temporary name says who writes, so that `sweep` can tell what a kill has left behind.

    Args:
        path: The file.
        exclusive: Whether to leave a file alone that is there; of several writers, one succeeds.

    Raises:
        FileExistsError: If `exclusive`, and the file is there.
        OSError: If it cannot be written; the error names the file.
    """
    target = Path(path)
    if exclusive and target.exists():
        raise FileExistsError(errno.EEXIST, "it is there", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{os.getpid()}@{socket.gethostname()}"
    # `mkstemp` ignores the umask.
    part = target.with_name(f".{target.name}.{writer}.{uuid.uuid4().hex}{SUFFIX}")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        if exclusive:
            os.link(part, target)
        else:
            part.replace(target)
    except OSError as error:
        if error.errno is not None and str(error.filename) in ("None", str(part)):
            error.filename = str(target)  # which the caller knows by this name
        raise
    finally:
        part.unlink(missing_ok=True)


def check_png(path: Path | None, option: str) -> None:
    """Checks that the name of a picture says what is in the file, before anything is drawn.

    Raises:
        ValueError: If it does not end in .png.
    """
    if path is not None and path.suffix.lower() != ".png":
        raise ValueError(f"Expected `{option}` to end in .png, but got {path}")


def is_file(path: Path) -> bool:
    """Returns whether there is such a file; a name that is too long for one is the name of none."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes JSON atomically."""
    with write_atomically(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def sweep(folder: str | os.PathLike[str]) -> None:
    """Deletes the temporary files of killed writers in a folder and in those below it.

    A file whose writer lives stays. If the writer is on another machine, or the machine runs Windows, the
    file counts as left behind a day after it was changed.
    """
    for part in Path(folder).rglob(f".*{SUFFIX}"):
        if not _writer_lives(part):
            part.unlink(missing_ok=True)


def _writer_lives(part: Path) -> bool:
    name = part.name.removesuffix(SUFFIX).rpartition(".")[0]
    writer, _, host = name.rpartition("@")
    process = writer.rpartition(".")[2]
    if os.name == "posix" and host == socket.gethostname() and process.isdecimal():
        return _lives(int(process))
    try:
        return time.time() - part.stat().st_mtime < DAY
    except FileNotFoundError:
        return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads JSON.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ValueError: If it is no JSON; the message names the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected {path} to be JSON, but it cannot be read: {error}") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
