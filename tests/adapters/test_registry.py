import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any, get_args

import pytest
import typer.testing

from genrobust.adapters import Adapter, AttackEntry, available, list_attacks, registered, registry
from genrobust.cli import app

TOOLKITS = ("advertorch", "art", "foolbox", "robustbench", "torchattacks")

THIRD_PARTY = Adapter(
    toolkit="cleverhans",
    title="CleverHans",
    distribution="cleverhans",
    package="no_such_package",
    attacks=(
        AttackEntry(name="fast_gradient_method", norm="linf", knowledge="white", needs_epsilon=True),
        AttackEntry(name="spsa", norm="linf", knowledge="score", options={"output": "probabilities"}),
    ),
    implementation="no_such_module",
)


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Registers an adapter as another package's entry point does."""

    def register(value: str) -> None:
        point = EntryPoint(name="cleverhans", value=value, group=registry.GROUP)
        own = tuple(registry.entry_points(group=registry.GROUP))
        found = {registry.GROUP: EntryPoints((*own, point))}
        monkeypatch.setattr(registry, "entry_points", lambda group: found[group])

    monkeypatch.setattr(registry, "THIRD_PARTY", THIRD_PARTY, raising=False)
    return register


def test_every_adapter_is_found_by_its_entry_point() -> None:
    adapters = registered()
    assert tuple(adapters) == TOOLKITS
    assert all(adapter.toolkit == name for name, adapter in adapters.items())


def test_installed_toolkits_are_available() -> None:
    assert available() == {name: a for name, a in registered().items() if a.version is not None}


def test_another_package_adds_a_toolkit(third_party: Callable[[str], None]) -> None:
    third_party("genrobust.adapters.registry:THIRD_PARTY")
    assert registered()["cleverhans"] is THIRD_PARTY
    assert "cleverhans" not in available()
    rows = list_attacks("cleverhans")
    assert [row["name"] for row in rows] == ["fast_gradient_method", "spsa"]
    assert not any(row["runs"] for row in rows)
    assert rows[0]["reason"] == "missing package: pip install cleverhans"
    assert rows[1]["wrapper"] == "wrap_for_cleverhans(model, output='probabilities')"


def test_an_entry_point_that_is_no_adapter_is_named(third_party: Callable[[str], None]) -> None:
    third_party("genrobust.adapters.registry:GROUP")
    with pytest.raises(TypeError, match=r"entry point 'cleverhans' .* to be an Adapter, but got str"):
        registered()


@pytest.mark.parametrize("toolkit", TOOLKITS)
def test_a_catalogue_names_each_attack_once_and_fully(toolkit: str) -> None:
    adapter = registered()[toolkit]
    names = [entry.name for entry in adapter.attacks]
    assert names
    assert len(set(names)) == len(names)
    for entry in adapter.attacks:
        assert entry.norm in get_args(registry.Norm)
        assert entry.knowledge in get_args(registry.Knowledge)
        assert adapter.attack(entry.name) is entry
    with pytest.raises(ValueError, match=f"Expected an attack of {adapter.title}, but got 'none'"):
        adapter.attack("none")


@pytest.mark.parametrize(
    ("change", "channels", "obstacle"),
    [
        ({}, 1, ""),
        ({"broken": "it divides by zero"}, 1, "it divides by zero"),
        ({"requires": {"no_such_package": "some-distribution"}}, 1, "pip install some-distribution"),
        ({"requires": {"torch": "torch"}}, 1, ""),
        ({"requires": {"torch.no_such_module.inner": "some-distribution"}}, 1, "missing package"),
        ({"channels": 3}, 1, "3 channels only"),
        ({"channels": 3}, 3, ""),
    ],
)
def test_what_stands_in_the_way_of_an_attack(change: Any, channels: int, obstacle: str) -> None:
    entry = replace(AttackEntry(name="a", norm="l2", knowledge="white"), **change)
    found = replace(THIRD_PARTY, package="torch", distribution="torch").obstacle(entry, channels=channels)
    assert obstacle in found
    assert bool(found) == bool(obstacle)


def test_the_installed_version() -> None:
    adapter = replace(THIRD_PARTY, package="torch", distribution="torch")
    assert adapter.version is not None
    assert adapter.version[0].isdigit()
    assert replace(adapter, distribution="no-such-distribution").version == "unknown"
    assert THIRD_PARTY.version is None
    assert replace(THIRD_PARTY, alternatives={"torch": "torch"}).version == adapter.version


# The command.


def run(*arguments: str) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, ["attacks", *arguments])


def test_the_command_gives_rows_as_json() -> None:
    done = run("--json")
    assert done.exit_code == 0
    rows = json.loads(done.output)
    assert {row["toolkit"] for row in rows} == set(TOOLKITS)
    assert rows == json.loads(json.dumps(list_attacks()))
    assert {"toolkit", "name", "norm", "knowledge", "runs", "reason"} <= set(rows[0])
    assert all(row["reason"] for row in rows if not row["runs"])


def test_the_command_tells_what_only_colour_images_can_be_attacked_with() -> None:
    gray, colour = (json.loads(run("--json", "--channels", c).output) for c in "13")
    differ = {a["name"] for a, b in zip(gray, colour, strict=True) if a["reason"] != b["reason"]}
    assert differ == {e.name for a in available().values() for e in a.attacks if e.channels == 3}
    assert "torchattacks" not in available() or {"TIFGSM", "PIFGSM"} <= differ


def test_the_command_prints_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    done = run("--toolkit", "torchattacks")
    assert done.exit_code == 0
    assert "torchattacks" in done.output
    assert "PIFGSMPP" in done.output
    assert "DDNAttack" not in done.output


def test_an_unknown_toolkit_is_refused() -> None:
    done = run("--toolkit", "cleverhans")
    assert isinstance(done.exception, ValueError)
    assert "'foolbox'" in str(done.exception)
