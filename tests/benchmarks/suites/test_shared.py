"""Attacks that suites share, and suites that extend others."""

import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from genrobust.benchmarks.suites import shared
from genrobust.benchmarks.suites.files import load_suite, read_suite, shipped_suites
from genrobust.benchmarks.suites.model import Attack
from genrobust.benchmarks.suites.shared import expanded_attacks, merged, shared_attacks

FOLDER = Path(shared.__file__).parent
RAW = {
    name: tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8")) for name in shipped_suites()
}
NAMES = ("key", "title", "use")

TOP = """
dataset = "digits"
models = [{ name = "cnn", title = "CNN" }, { name = "eabs", title = "E-ABS" }]
threat_models = [{ norm = "linf", epsilon = 0.1 }, { norm = "l2", epsilon = 2.0 }]
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shared_attack_is_complete_and_used() -> None:
    used = {
        name
        for suite in RAW.values()
        for entry in suite.get("attacks", [])
        if "use" in entry
        for name in ([entry["use"]] if isinstance(entry["use"], str) else entry["use"])
    }
    assert used == set(shared_attacks())
    for name in shared_attacks():
        for scale in ("small", "paper"):
            (entry,) = expanded_attacks([{"use": name}], scale)  # type: ignore[arg-type]
            assert Attack(**entry).key == name.partition(".")[2]


def test_no_attack_is_written_twice() -> None:
    own = [entry for suite in RAW.values() for entry in suite.get("attacks", []) if "use" not in entry]
    settings = [
        json.dumps({name: value for name, value in entry.items() if name not in NAMES}, sort_keys=True)
        for entry in [*own, *shared_attacks().values()]
    ]
    repeated = {text: count for text, count in Counter(settings).items() if count > 1}
    assert repeated == {}


def test_attacks_are_taken_one_by_one_or_together_and_changed(tmp_path: Path) -> None:
    suite = read_suite(
        write(
            tmp_path,
            f"""{TOP}
attacks = [
  {{ use = ["eabs.pgd-linf", "eabs.ddn"], against = "cnn" }},
  {{ use = "eabs.pgd-l2", key = "mine", restarts = 7 }},
]
[scale.small]
[scale.paper]
[scale.paper.attacks]
ddn = {{ eot = 2 }}
""",
        )
    )
    assert [attack.key for attack in suite.attacks] == ["pgd-linf", "ddn", "mine"]
    assert [attack.against for attack in suite.attacks] == ["cnn", "cnn", None]
    assert suite.attack("pgd-linf").parameters == {"steps": 20, "rel_stepsize": 0.125}
    assert (suite.attack("mine").restarts, suite.attack("mine").eot) == (7, 1)
    published = read_suite(tmp_path / "mine.toml", scale="paper")
    assert published.attack("pgd-linf").parameters == {"steps": 80, "rel_stepsize": 0.05}
    assert (published.attack("ddn").eot, published.attack("mine").eot) == (2, 5)


def test_gradients_become_attacks_of_their_own() -> None:
    models = ["eabs"]
    entry = {"use": ["eabs.pgd-linf", "eabs.pgd-l2"], "gradients": ["joint", "bpda"], "for_models": models}
    found = [Attack(**attack) for attack in expanded_attacks([entry], "small")]
    assert [(attack.key, attack.title, attack.gradient) for attack in found] == [
        ("pgd-linf-joint", "PGD, joint gradient", "joint"),
        ("pgd-l2-joint", "PGD, joint gradient", "joint"),
        ("pgd-linf-bpda", "PGD by BPDA", "bpda"),
        ("pgd-l2-bpda", "PGD by BPDA", "bpda"),
    ]


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ('[{ use = "eabs.pgd-lin" }]', r"mine\.toml, \[\[attacks\]\]: .*did you mean 'eabs.pgd-linf'"),
        ('[{ use = ["eabs.ddn", "madvae.pdg"] }]', "did you mean 'madvae.pgd'"),
        ('[{ use = "eabs.ddn", resarts = 2 }]', r"\[\[attacks\]\] 'ddn': .*did you mean 'restarts'"),
        ('[{ use = ["eabs.ddn", "eabs.ddn"] }]', "every attack once.*'ddn'"),
        ('[{ key = "a", gradients = ["joint"] }]', "`use` beside `gradients`"),
        ('"eabs.ddn"', "`attacks` to be a sequence, but got 'eabs.ddn'"),
    ],
)
def test_a_mistake_is_named(attacks: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_suite(write(tmp_path, f"{TOP}attacks = {attacks}\n"))


def test_a_suite_begins_where_another_ends(tmp_path: Path) -> None:
    write(tmp_path, f'title = "Base"\nsamples = 7\n{TOP}attacks = [{{ use = "eabs.ddn" }}]\n', "base.toml")
    suite = read_suite(write(tmp_path, 'extends = "base.toml"\ntitle = "Mine"\nbatch_size = 5\n'))
    assert (suite.name, suite.title, suite.samples, suite.batch_size) == ("mine", "Mine", 7, 5)
    assert [attack.key for attack in suite.attacks] == ["ddn"]
    table = read_suite(write(tmp_path, 'extends = "eabs-table3"\n[scale.small]\nsamples = 3\n'))
    assert (table.samples, table.batch_size) == (3, load_suite("eabs-table3").batch_size)
    assert table.expected == load_suite("eabs-table3").expected


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("mine.toml", r"^mine\.toml: .*'mine\.toml' extends itself"),
        ("none.toml", "no such file"),
        ("eabs-tabel1", r"^mine\.toml: .*did you mean 'eabs-table1'"),
    ],
)
def test_what_cannot_be_extended(base: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_suite(write(tmp_path, f'extends = "{base}"\n'))


def test_tables_are_merged_and_everything_else_is_replaced() -> None:
    base: dict[str, Any] = {"a": {"x": 1, "y": [1, 2]}, "b": [1], "c": 3}
    assert merged(base, {"a": {"y": [3]}, "b": [], "d": 4}) == {
        "a": {"x": 1, "y": [3]},
        "b": [],
        "c": 3,
        "d": 4,
    }
    assert base["a"] == {"x": 1, "y": [1, 2]}


def test_what_is_reduced_at_every_scale_is_said_once(tmp_path: Path) -> None:
    path = write(tmp_path, f'reduced = ["Always."]\n{TOP}[scale.small]\nreduced = ["Here."]\n[scale.paper]\n')
    assert read_suite(path).reduced == ("Here.", "Always.")
    assert read_suite(path, scale="paper").reduced == ("Always.",)
