"""The import of adv-lib, during which stand-ins take the place of modules that cannot be installed."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn, Self, final

from .contract import importable

__all__ = ["importing_advlib"]


@final
class _Visdom:
    """Visdom's client, which adv-lib makes only for a caller who asks for plots."""

    def __init__(self, **_: object) -> NoReturn:
        raise ImportError(
            "Expected visdom to be installed, which `VisdomLogger` needs: attacks run without a `callback`",
            name="visdom",
        )


@final
class _LooseVersion:
    """The comparison of versions that adv-lib makes with `distutils`, which Python 3.12 does not have."""

    def __init__(self, version: str) -> None:
        self.parts = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]

    def __ge__(self, other: Self) -> bool:
        return self.parts >= other.parts


@contextmanager
def importing_advlib() -> Iterator[None]:
    """Lets adv-lib, and toolkits that build on it, import within this context.

    All of adv-lib imports visdom, whose last release does not build under a current setuptools, and
    `distutils`. Within the context stand-ins have these names. Afterwards `sys.modules` has what it had
    before.
    """
    stand_ins = {"distutils.version": _module("distutils.version", LooseVersion=_LooseVersion)}
    if not importable("visdom"):
        stand_ins["visdom"] = _module("visdom", Visdom=_Visdom)
    before = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    if importable("torchvision"):
        import_module("torchvision")  # which is to see the real ones
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*invalid escape sequence")  # in one of its docstrings
            yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _module(name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(members)
    return module
