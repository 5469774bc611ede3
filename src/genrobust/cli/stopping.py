"""How commands end when they are told to: by Ctrl-C, or by SIGTERM, as schedulers and containers send it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn, ParamSpec

import typer

from .._console import say

__all__ = ["stoppable", "terminable"]

P = ParamSpec("P")
INTERRUPTED, TERMINATED = 130, 143  # 128 and the number of the signal, as shells have it


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: everything that Ctrl-C would clean up is cleaned up."""


@contextmanager
def terminable() -> Iterator[None]:
    """Has SIGTERM act as Ctrl-C inside the block; a second one ends the process at once."""

    def stop(*_: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stoppable(command: Callable[P, None], kept: str = "") -> Callable[P, None]:
    """Returns a command that ends in a sentence when it is stopped.

    Args:
        command: The command.
        kept: What is kept when it stops.
    """

    @wraps(command)
    def stopped(*arguments: P.args, **settings: P.kwargs) -> None:
        try:
            command(*arguments, **settings)
        except KeyboardInterrupt as stop:
            say(f"stopped; {kept}, and the same command goes on" if kept else "stopped")
            raise typer.Exit(TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED) from None

    return stopped
