"""The allocator's settings: asked for where there are some, and never a reason to fail."""

import ctypes
from collections.abc import Callable

import pytest

from genrobust import _malloc
from genrobust._malloc import keep_freed_memory
from genrobust.cli import main

Library = dict[str, Callable[[int, int], int]]


class Loaded:
    def __init__(self, functions: Library) -> None:
        self.__dict__.update(functions)


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_are_left_alone(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:  # as on Windows
        raise TypeError("bad argument type")

    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    keep_freed_memory()


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Loaded({}))
    keep_freed_memory()


def test_glibc_keeps_large_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[int, int] = {}
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Loaded({"mallopt": settings.__setitem__}))  # type: ignore[dict-item]
    keep_freed_memory()
    assert settings == {-1: 2**31 - 1, -2: 2**28, -3: 2**30}


def test_the_commands_ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    assert main.keep_freed_memory is _malloc.keep_freed_memory
    monkeypatch.setattr(main, "keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr(main, "app", lambda: calls.append("app"))
    main.main()
    assert calls == ["keep", "app"]
