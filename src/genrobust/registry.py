"""One open registry of models, attacks, data sets and suites: a call, an entry point or a file adds to it."""

import difflib
import hashlib
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Generic, TypeVar, final

from ._files import is_file

__all__ = ["PluginSource", "Registry", "load_only", "load_plugin", "plugin_sources"]

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_PICKLERS = ("cloudpickle", "joblib.externals.cloudpickle")  # older versions of joblib have a copy


@dataclass(frozen=True)
class _Entry(Generic[T]):
    """A registered thing, the code that defines it, and the plug-in file that registered it."""

    value: T
    source: tuple[str, str] | None
    plugin: Path | None


@final
class Registry(Generic[T]):
    """Values of one kind by name, open to other packages and to users' files.

    Entry points of `group` are loaded when a name is first asked for. An entry point names a module; the
    import of that module registers. One that fails is named in a warning and skipped.

    Args:
        kind: The kind of value, for messages, such as `"model"`.
        group: The group of entry points, such as `"genrobust.models"`.
        own: Modules of this package that register what ships with it.
    """

    def __init__(self, kind: str, group: str, *, own: tuple[str, ...] = ()) -> None:
        self.kind, self.group = kind, group
        self._own, self._own_loaded, self._points_loaded = own, False, False
        self._entries: dict[str, _Entry[T]] = {}
        _REGISTRIES.append(self)

    def register(self, name: str, value: T, *, source: object = None) -> T:
        """Adds a value under a name, and returns it.

        Args:
            name: Letters, digits, dots, pluses, dashes and underscores.
            value: The value.
            source: The function or class that defines it; by default `value` itself. A function or class that
                is defined again, as when a notebook's cell runs again, replaces its earlier definition.

        Raises:
            ValueError: If the name is not allowed, or another value has it.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"Expected the name of a {self.kind} of letters, digits and `._+-`, but got {name!r}"
            )
        self._load_own()
        defined = _definition(value if source is None else source)
        taken = self._entries.get(name)
        if taken is not None and taken.value != value and (defined is None or taken.source != defined):
            raise ValueError(f"Expected another name for this {self.kind}: {name!r} is taken")
        self._entries[name] = _Entry(value, defined, _loading[-1] if _loading else None)
        return value

    def get(self, name: str) -> T:
        """Returns the value of a name.

        Raises:
            ValueError: If the name is unknown; the message suggests the nearest.
        """
        self._load_all()
        if name not in self._entries:
            nearest = difflib.get_close_matches(str(name), self._entries, n=1)
            hint = (
                f"did you mean {nearest[0]!r}?"
                if nearest
                else f"known are {', '.join(map(repr, self.names())) or 'none'}"
            )
            raise ValueError(f"Expected the name of a {self.kind}, but got {name!r}; {hint}")
        return self._entries[name].value

    def names(self) -> tuple[str, ...]:
        """Returns every name, sorted."""
        self._load_all()
        return tuple(sorted(self._entries))

    def items(self) -> Mapping[str, T]:
        """Returns everything by name, in the order of the names."""
        return {name: self._entries[name].value for name in self.names()}

    def plugin_of(self, name: str) -> Path | None:
        """Returns the user's file that registered a name; None if it was no such file."""
        self.get(name)
        return self._entries[name].plugin

    def of_plugin(self, path: Path) -> tuple[str, ...]:
        """Returns the names that a user's file registered, sorted."""
        path = path.expanduser().resolve()
        return tuple(sorted(name for name, entry in self._entries.items() if entry.plugin == path))

    @contextmanager
    def lent(self, values: Mapping[str, T]) -> Iterator[None]:
        """Adds values of another process for the length of the block, in place of what has their names."""
        self._load_all()
        kept = self._entries
        self._entries = kept | {name: _Entry(value, None, None) for name, value in values.items()}
        try:
            yield
        finally:
            self._entries = kept

    def __contains__(self, name: object) -> bool:
        self._load_all()
        return name in self._entries

    def _load_own(self) -> None:
        if not self._own_loaded:
            self._own_loaded = True
            _loading.append(None)  # what ships with the package belongs to no plug-in that first asks for it
            try:
                for module in self._own:
                    import_module(module)
            finally:
                _loading.pop()

    def _load_all(self) -> None:
        self._load_own()
        if not self._points_loaded:
            self._points_loaded = True
            for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
                self._load_point(point)

    def _load_point(self, point: EntryPoint) -> None:
        if (point.group, point.name, point.value) in _tried:  # another registry has the same group
            return
        _tried.add((point.group, point.name, point.value))
        try:
            with _undone_on_failure():
                point.load()
        except (Exception, SystemExit) as error:  # another package's code: it stops nothing else
            warnings.warn(
                f"The plug-in {point.name!r} ({point.value}) of {self.group} is skipped: {_last_line(error)}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _forget(self, plugin: Path) -> None:
        self._entries = {name: entry for name, entry in self._entries.items() if entry.plugin != plugin}


_REGISTRIES: list[Registry[Any]] = []
_tried: set[tuple[str, str, str]] = set()  # entry points that were loaded, or failed
_loading: list[Path | None] = []  # the plug-in files whose code runs now
_plugins: dict[Path, tuple[bytes, ModuleType]] = {}  # by path: the source, and the module


def load_plugin(path: str | Path) -> ModuleType:
    """Imports a user's file, so that what it registers is known; returns its module.

    The module's name follows from the path alone. Its classes and functions travel to other processes by
    value, so that a worker needs neither the file nor this call. The same file is not run twice; after a
    change it is run again, and replaces what it registered before.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a Python file, or its code raises.
        TypeError: If `path` is no path.
    """
    if not isinstance(path, str | Path):
        raise TypeError(f"Expected `path` to be a string or a Path, but got {type(path).__name__}")
    path = Path(path).expanduser().resolve()
    if not is_file(path):
        raise FileNotFoundError(f"Expected a plug-in at {path}, but there is no such file")
    if path.suffix != ".py":
        raise ValueError(f"Expected a plug-in to be a Python file, but got {path}")
    return PluginSource(path, path.read_bytes()).load()


@final
@dataclass(frozen=True)
class PluginSource:
    """A user's file as it was loaded: what another process needs to know the same names.

    Attributes:
        path: Where it was.
        content: What it said.
    """

    path: Path
    content: bytes

    def load(self) -> ModuleType:
        """Imports the file from its content, unless this process has done so; returns its module.

        Raises:
            ValueError: If its code raises.
        """
        known = _plugins.get(self.path)
        if known is None or known[0] != self.content:
            known = _plugins[self.path] = (self.content, _run(self.path, self.content))
        return known[1]


def plugin_sources() -> tuple[PluginSource, ...]:
    """Returns the users' files that this process has loaded."""
    return tuple(PluginSource(path, content) for path, (content, _) in _plugins.items())


def load_only(plugins: Sequence[PluginSource]) -> None:
    """Has this process know the users' files of another process, and no others.

    A worker outlives the run that started it: what it loaded for an earlier run may have been edited, renamed
    or dropped since.

    Raises:
        ValueError: If the code of a file raises.
    """
    wanted = {plugin.path: plugin.content for plugin in plugins}
    for path in [path for path, (content, _) in _plugins.items() if wanted.get(path) != content]:
        del _plugins[path]
        for registry in _REGISTRIES:
            registry._forget(path)
    for plugin in plugins:
        plugin.load()


def _run(path: Path, content: bytes) -> ModuleType:
    stem = re.sub(r"\W", "_", path.stem)
    name = f"genrobust_plugin_{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"Expected a plug-in to be a Python file, but got {path}")
    module, before = module_from_spec(spec), sys.modules.get(name)
    sys.modules[name] = module
    _loading.append(path)
    try:
        with _undone_on_failure():
            for registry in _REGISTRIES:
                registry._forget(path)
            # Not by the loader, whose cache would miss a second change within a second.
            exec(compile(content, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise ValueError(
            f"Expected the plug-in {path} to import, but it raised {_last_line(error)}"
        ) from error
    finally:
        _loading.pop()
    _pickle_by_value(module)
    return module


@contextmanager
def _undone_on_failure() -> Iterator[None]:
    """Takes back what is registered inside the block, in every registry, if the block raises."""
    for registry in _REGISTRIES:
        registry._load_own()
    kept = [(registry, dict(registry._entries)) for registry in _REGISTRIES]
    try:
        yield
    except BaseException:
        for registry, entries in kept:
            registry._entries = entries
        raise


def _pickle_by_value(module: ModuleType) -> None:
    for name in _PICKLERS:
        with suppress(ModuleNotFoundError):
            import_module(name).register_pickle_by_value(module)


def _definition(source: object) -> tuple[str, str] | None:
    """Returns where a function or class is defined; None for anything that cannot be told apart so."""
    if isinstance(source, type | FunctionType) and "<lambda>" not in source.__qualname__:
        return source.__module__, source.__qualname__
    return None


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()
