import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.testing

from genrobust.adapters import Adapter, AttackEntry, available, contract, list_attacks, registered
from genrobust.adapters.contract import resolve
from genrobust.attacks.registered import Knowledge
from genrobust.cli.main import app

TOOLKITS = (
    "advertorch",
    "advlib",
    "art",
    "foolbox",
    "genrobust",
    "robustbench",
    "secmltorch",
    "torchattacks",
)

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
        point = EntryPoint(name="cleverhans", value=value, group=contract.GROUP)
        found = (*contract._installed(), point)
        monkeypatch.setattr(contract, "_installed", lambda: found)

    monkeypatch.setattr(contract, "THIRD_PARTY", THIRD_PARTY, raising=False)
    return register


def test_every_adapter_is_found_by_its_entry_point() -> None:
    adapters = registered()
    assert tuple(adapters) == TOOLKITS
    assert all(adapter.toolkit == name for name, adapter in adapters.items())


def test_installed_toolkits_are_available() -> None:
    assert available() == {name: a for name, a in registered().items() if a.version is not None}


def test_another_package_adds_a_toolkit(third_party: Callable[[str], None]) -> None:
    third_party("genrobust.adapters.contract:THIRD_PARTY")
    assert registered()["cleverhans"] is THIRD_PARTY
    assert "cleverhans" not in available()
    rows = list_attacks("cleverhans")
    assert [row["name"] for row in rows] == ["fast_gradient_method", "spsa"]
    assert not any(row["runs"] for row in rows)
    assert rows[0]["reason"] == "missing package: pip install cleverhans"
    assert rows[1]["wrapper"] == "wrap_for_cleverhans(model, output='probabilities')"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("genrobust.adapters.contract:GROUP", "TypeError: Expected an Adapter, but got str"),
        ("no_such_package.adapter:ADAPTER", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("sys:exit", "TypeError: Expected an Adapter"),
        ("ending_adapter:ADAPTER", "SystemExit: 7"),
    ],
)
def test_a_broken_entry_point_is_named_and_skipped(
    third_party: Callable[[str], None],
    value: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "ending_adapter.py").write_text("raise SystemExit(7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    third_party(value)
    with pytest.warns(RuntimeWarning, match=f"The adapter 'cleverhans' .* is skipped: {reason}"):
        assert tuple(registered()) == TOOLKITS


@pytest.mark.parametrize("toolkit", TOOLKITS)
def test_a_catalogue_names_each_attack_once_and_fully(toolkit: str) -> None:
    adapter = registered()[toolkit]
    names = [entry.name for entry in adapter.attacks]
    assert names
    assert len(set(names)) == len(names)
    for entry in adapter.attacks:
        assert entry.norm in get_args(contract.AttackNorm)
        assert entry.knowledge in get_args(Knowledge)
        assert adapter.attack(entry.name) is entry
    with pytest.raises(ValueError, match=f"Expected an attack of {adapter.title}, but got 'none'"):
        adapter.attack("none")


ROWS = [(adapter, entry) for adapter in registered().values() for entry in adapter.attacks]


@pytest.mark.parametrize(
    ("adapter", "entry"), ROWS, ids=lambda part: part.toolkit if isinstance(part, Adapter) else part.name
)
def test_one_parameter_leaves_the_catalogues_others(adapter: Adapter, entry: AttackEntry) -> None:
    assert entry.configured({"its_own": 1}).parameters == {**entry.parameters, "its_own": 1}
    for name in entry.parameters:
        changed = entry.configured({name: "another"})
        assert changed.parameters == {**entry.parameters, name: "another"}
        assert replace(changed, parameters=entry.parameters) == entry
    if obstacle := adapter.obstacle(entry, channels=entry.channels or 1):
        pytest.skip(obstacle)
    assert set(entry.parameters) <= set(adapter.load().accepts(entry.name))
    assert entry.starts in {"", *adapter.load().accepts(entry.name)}


def test_no_adapter_takes_parameters_beside_the_entrys() -> None:
    for adapter in available().values():
        kinds = {parameter.kind for parameter in signature(adapter.load().craft).parameters.values()}
        assert Parameter.VAR_KEYWORD not in kinds, adapter.toolkit


def test_a_toolkits_other_public_names_are_known() -> None:
    for adapter in registered().values():
        for alias, name in adapter.aliases.items():
            assert adapter.attack(alias) is adapter.attack(name)
            assert resolve(adapter.toolkit, alias) == (adapter, adapter.attack(name))


@pytest.mark.parametrize(
    ("toolkit", "name", "message"),
    [
        ("foolbox", "LinfPDG", "did you mean 'LinfPGD'"),
        ("torchattacks", "Deepfool", "did you mean 'DeepFool'"),
        ("folbox", "PGD", "`toolkit` to be one of .*'art'.* but got 'folbox'; did you mean 'foolbox'"),
    ],
)
def test_an_unknown_name_lists_the_nearest(toolkit: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(toolkit, name)


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


def test_what_pip_is_told_may_differ_from_the_distribution() -> None:
    adapter = replace(THIRD_PARTY, install="--no-deps cleverhans")
    assert adapter.obstacle(adapter.attacks[0]) == "missing package: pip install --no-deps cleverhans"


def test_every_toolkit_of_others_has_the_month_of_its_last_release() -> None:
    rows = {row["toolkit"]: row for row in list_attacks()}
    for name in set(TOOLKITS) - {"genrobust"}:
        assert re.fullmatch(r"20\d\d-[01]\d", rows[name]["released"]), name
    maintained = {name for name, row in rows.items() if row["maintained"]}
    assert maintained == {"advlib", "secmltorch"}
    assert rows["genrobust"]["maintained"] is None


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
    assert "last release 2023-10, none in a year" in done.output


def test_an_unknown_toolkit_is_refused() -> None:
    done = run("--toolkit", "cleverhans")
    assert isinstance(done.exception, ValueError)
    assert "'foolbox'" in str(done.exception)
