"""The modules of a package that the process has imported."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def modules_of(package: str) -> dict[str, ModuleType]:
    """Those of a package and of what is below it, by name."""
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package}


@contextmanager
def unimported_within(package: str) -> Iterator[None]:
    """Takes a package out of the process within the block, and puts it back."""
    before = modules_of(package)
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in modules_of(package):
            del sys.modules[name]
        sys.modules.update(before)
