"""The registry: names, entry points that fail alone, and users' files that other processes can run."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from genrobust import registry as registry_module
from genrobust.registry import PluginSource, Registry, load_only, load_plugin, plugin_sources

pytestmark = pytest.mark.usefixtures("registrations_taken_back")


@pytest.fixture
def registry() -> Iterator[Registry[Any]]:
    made: Registry[Any] = Registry("thing", "genrobust.things")
    yield made
    registry_module._REGISTRIES.remove(made)


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Writes modules that nobody has imported, and declares them as entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def declare(**sources: str) -> None:
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        found = [EntryPoint(name, name, "genrobust.things") for name in sources]
        monkeypatch.setattr(registry_module, "entry_points", lambda **_: found)

    return declare


def test_a_registered_thing_is_found_by_its_name(registry: Registry[Any]) -> None:
    assert registry.register("one", 1) == 1
    registry.register("another", 2)
    assert registry.get("one") == 1
    assert registry.names() == ("another", "one")
    assert "one" in registry
    assert "two" not in registry


def test_an_unknown_name_gets_the_nearest_one(registry: Registry[Any]) -> None:
    registry.register("gaussian", 1)
    with pytest.raises(ValueError, match="name of a thing, but got 'gausian'; did you mean 'gaussian'"):
        registry.get("gausian")
    with pytest.raises(ValueError, match="known are 'gaussian'"):
        registry.get("zzz")


def test_a_taken_name_is_kept(registry: Registry[Any]) -> None:
    registry.register("one", "first")
    with pytest.raises(ValueError, match="'one' is taken"):
        registry.register("one", "second")
    assert registry.get("one") == "first"


def test_the_same_thing_may_be_registered_again(registry: Registry[Any]) -> None:
    def defined() -> Any:
        def function() -> None: ...

        return function

    first, again = defined(), defined()
    registry.register("one", first)
    registry.register("one", first)
    registry.register("one", again)  # as when a notebook's cell runs again
    assert registry.get("one") is again
    with pytest.raises(ValueError, match="taken"):
        registry.register("one", lambda: None)


@pytest.mark.parametrize("name", ["", "a/b", "../a", "-a", "a b"])
def test_a_name_can_be_a_file_name(registry: Registry[Any], name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        registry.register(name, 1)


def test_an_entry_point_is_loaded_when_a_name_is_asked_for(
    registry: Registry[Any], points: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_things", registry, raising=False)
    points(lazy_thing="from genrobust import registry\nregistry._things.register('lazy', 7)\n")
    registry.register("mine", 1)
    assert "lazy_thing" not in sys.modules
    assert registry.names() == ("lazy", "mine")


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("import no_such", "ModuleNotFoundError.*no_such"),
        ("raise SystemExit(7)", "SystemExit: 7"),
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
    ],
)
def test_a_failing_entry_point_is_named_once_and_stops_nothing(
    fault: str, named: str, registry: Registry[Any], points: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_tried", set())
    monkeypatch.delitem(sys.modules, "sound_thing", raising=False)
    monkeypatch.setattr(registry_module, "_things", registry, raising=False)
    points(
        broken_thing=f"from genrobust import registry\nregistry._things.register('half', 1)\n{fault}\n",
        sound_thing="from genrobust import registry\nregistry._things.register('sound', 2)\n",
    )
    with pytest.warns(RuntimeWarning, match=f"'broken_thing'.*skipped: {named}") as found:
        assert registry.names() == ("sound",)
    assert len(found) == 1
    assert registry.get("sound") == 2  # a second warning would be an error


def write(path: Path, source: str) -> Path:
    path.write_text(source)
    return path


def test_a_plugin_is_not_run_twice_unless_it_changed(
    registry: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_things", registry, raising=False)
    source = "from genrobust import registry\nregistry._things.register('one', [1])\n"
    path = write(tmp_path / "mine.py", source)
    module = load_plugin(path)
    assert load_plugin(path) is module
    assert path.resolve() in [plugin.path for plugin in plugin_sources()]
    write(path, source.replace("[1]", "[2]"))
    assert load_plugin(path).__name__ == module.__name__
    assert registry.get("one") == [2]
    write(path, source.replace("'one'", "'other'"))
    load_plugin(path)
    assert registry.names() == ("other",)


def test_a_process_takes_over_the_plugins_of_another(
    registry: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_things", registry, raising=False)
    monkeypatch.setattr(registry_module, "_plugins", {})
    source = b"from genrobust import registry\nregistry._things.register('one', 1)\n"
    first, second = (PluginSource(tmp_path / name, source) for name in ("a.py", "b.py"))
    load_only([first])
    with registry.lent({"lent": 5, "one": 6}):
        assert registry.items() == {"lent": 5, "one": 6}
    load_only([second])  # which would be refused if the first were still known
    assert registry.items() == {"one": 1}
    assert registry.plugin_of("one") == second.path
    load_only([])
    assert registry.names() == ()


@pytest.mark.parametrize(
    ("fault", "named"),
    [("raise KeyError('lost')", "KeyError: 'lost'"), ("raise SystemExit(7)", "SystemExit: 7")],
)
def test_a_plugin_that_raises_changes_nothing(
    fault: str, named: str, registry: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_things", registry, raising=False)
    source = "from genrobust import registry\nregistry._things.register('one', 1)\n"
    path = write(tmp_path / "mine.py", source)
    load_plugin(path)
    write(path, source.replace("'one'", "'two'") + f"{fault}\n")
    with pytest.raises(ValueError, match=rf"mine\.py to import, but it raised {named}"):
        load_plugin(path)
    assert registry.names() == ("one",)


def test_a_plugin_does_not_own_what_ships_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    own: Registry[Any] = Registry("thing", "genrobust.things", own=("shipped_things",))
    monkeypatch.setattr(registry_module, "_things", own, raising=False)
    shipped = "from genrobust import registry\nregistry._things.register('ours', 1)\n"
    write(tmp_path / "shipped_things.py", shipped)
    path = write(tmp_path / "mine.py", shipped.replace("'ours'", "'theirs'"))
    load_plugin(path)
    assert own.names() == ("ours", "theirs")
    assert (own.plugin_of("ours"), own.plugin_of("theirs")) == (None, path.resolve())
    write(path, shipped.replace("'ours'", "'other'"))
    load_plugin(path)
    assert own.names() == ("other", "ours")
    registry_module._REGISTRIES.remove(own)


def test_a_plugin_must_be_a_python_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_plugin(tmp_path / "absent.py")
    with pytest.raises(ValueError, match="to be a Python file"):
        load_plugin(write(tmp_path / "suite.toml", ""))


@pytest.mark.parametrize("pickler", ["cloudpickle", "joblib.externals.cloudpickle"])
def test_a_plugin_works_in_a_process_that_has_not_loaded_it(tmp_path: Path, pickler: str) -> None:
    cloudpickle = pytest.importorskip(pickler)
    source = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "SIZE = 3\n"
        "@dataclass(frozen=True)\n"
        "class Config:\n"
        "    width: int = SIZE\n"
        "def double(config: Config) -> int:\n"
        "    return 2 * config.width * SIZE\n"
    )
    module = load_plugin(write(tmp_path / "mine.py", source))
    pickled = cloudpickle.dumps((module.double, module.Config(width=5)))
    script = "import pickle, sys; f, c = pickle.load(sys.stdin.buffer); print(f(c))"
    done = subprocess.run([sys.executable, "-c", script], input=pickled, capture_output=True, check=True)
    assert done.stdout.strip() == b"30"
    assert pickle.loads(pickled)[1] == module.Config(width=5)
