from pathlib import Path
from typing import Any

import pytest

from genrobust.benchmarks.run.toolkits import check_attack
from genrobust.benchmarks.suites.files import load_suite, read_suite, scales, shipped_suites
from genrobust.benchmarks.suites.model import CLEAN
from genrobust.data import dataset_info, load_dataset

TABLES = {
    *("quick", "digits", "mnist", "abs-table1"),
    *(f"eabs-table{number}" for number in range(1, 9)),
    *("deepbayes-figure1", "deepbayes-table1", "deepbayes-table2"),
    *("gmvae-table1", "gmvae-figure3", "gmvae-table2", "gmvae-figure5", "gmvae-whitebox", "gmvae-fooling"),
    *("gmvae-figure3-coil", "gmvae-figure3-svhn"),
    *("flows-mnist", "ndc-mnist", "rdc-cifar10", "rdc-mnist"),
    *(f"zhang-table{number}" for number in range(1, 8)),
    *(f"madvae-table{number}" for number in range(1, 5)),
}

MINE = """
title = "Mine"
dataset = "digits"

[[models]]
name = "cnn"
title = "CNN"

[[threat_models]]
norm = "linf"
epsilon = 0.1

[[attacks]]
key = "pgd"
title = "PGD"
norm = "linf"
kind = "fixed epsilon"
name = "LinfProjectedGradientDescentAttack"
parameters = { steps = 40 }

[[expected]]
attack = "pgd"
images = 1000
values = { cnn = 0.5 }

[scale.small]
samples = 10
reduced = ["10 images."]

[scale.small.attacks.pgd]
parameters = { steps = 2 }

[scale.paper]
samples = 100
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def value(suite: Any, model: str, attack: str, **which: Any) -> float:
    found = [
        number
        for number in suite.expected
        if (number.model, number.attack) == (model, attack)
        and all(getattr(number, name) == expected for name, expected in which.items())
    ]
    assert len(found) == 1
    return float(found[0].value)


def test_every_table_is_shipped() -> None:
    assert set(shipped_suites()) >= TABLES


@pytest.mark.parametrize("name", shipped_suites())
def test_a_shipped_suite_makes_sense_at_every_scale(name: str) -> None:
    paper = name not in ("quick", "digits", "mnist")
    for scale in ("small", "paper") if paper else ("small",):
        suite = load_suite(name, scale=scale)  # type: ignore[arg-type]
        assert (suite.name, suite.scale) == (name, scale)
        assert suite.title
        assert suite.paper or name in ("quick", "digits")
        assert suite.reduced or scale == "paper" or name in ("quick", "digits")
        numbers = {(n.model, n.attack, n.norm, n.epsilon, n.quantity) for n in suite.expected}
        assert len(numbers) == len(suite.expected)
        for attack in suite.attacks:
            if attack.toolkit in ("foolbox", "genrobust"):
                check_attack(attack, channels=dataset_info(suite.dataset).input_shape[0])
        for number in suite.expected:
            if number.attack not in (CLEAN, "all"):
                assert suite.attack(number.attack) in suite.attacks_of(number.model)


def test_numbers_are_the_papers() -> None:
    table = load_suite("eabs-table1")
    assert value(table, "eabs", "pgd-l2") == 0.906
    assert value(table, "adv-linf", "all", norm="linf") == 0.903
    assert value(table, "abs", "noise-l2") == 0.744
    assert value(load_suite("abs-table1"), "binary-abs", "all", norm="linf") == 0.77
    assert value(load_suite("eabs-table2"), "eabs", "noise-linf") == 0.009  # as printed
    assert value(load_suite("eabs-table5"), "dv-abs", "clean") == 0.657
    assert value(load_suite("eabs-table8"), "eabs", "steps-30") == 0.635
    assert value(load_suite("deepbayes-table1"), "gc-10", "cw-l2", quantity="error") == 0.2046
    assert value(load_suite("deepbayes-table1"), "gc-1", "cw-l2", quantity="reached") == 0.0265
    assert value(load_suite("deepbayes-table1"), "gc-10", "cw-l2", quantity="mean_distance") == 2.266
    assert value(load_suite("deepbayes-table2"), "cnn", "deepfool", quantity="mean_distance") == 1.745
    assert value(load_suite("gmvae-table1"), "gmvae-selective", "clean", quantity="rejection") == 0.0181
    assert value(load_suite("gmvae-table1-svhn"), "gmvae-semi-selective", "clean", quantity="error") == 0.1364
    assert value(load_suite("gmvae-figure3"), "gmvae-selective", "mim-encoder", quantity="detection") == 1.0
    assert (
        value(load_suite("gmvae-figure3-svhn"), "gmvae-selective", "fgsm-encoder", quantity="detection")
        == 1.0
    )
    assert value(load_suite("zhang-table2"), "vade", "jsma") == 0.4887
    assert value(load_suite("zhang-table7"), "comdefend", "mi-fgsm") == 0.749
    assert value(load_suite("madvae-table1"), "mad-vae-proximity", "pgd") == 0.7789
    assert value(load_suite("madvae-table3"), "substitute-b", "fgsm-b") == 0.0144
    assert value(load_suite("madvae-table4"), "defense-vae", "mi-fgsm") == 0.1146


def test_attacks_without_gradients_are_smaller_at_the_small_scale_and_say_so() -> None:
    paper, small = load_suite("eabs-table4", scale="paper"), load_suite("eabs-table4")
    assert (value(paper, "eabs", "boundary"), value(paper, "eabs", "pgd-linf-estimated")) == (0.92, 0.88)
    assert paper.attack("boundary").parameters["steps"] == 100_000
    estimated = paper.attack("pgd-linf-estimated")
    assert (estimated.gradient, estimated.parameters["steps"], estimated.for_models) == (
        "estimated",
        50,
        ("eabs",),
    )
    assert small.attack("boundary").parameters["steps"] == 25
    assert [attack.key for attack in small.attacks if attack.gradient == "estimated"] == []
    assert any("Boundary attack 25 (100,000)" in sentence for sentence in small.reduced)
    assert any("runs at the paper's scale alone" in sentence for sentence in small.reduced)


def test_scales_differ_in_what_they_say(tmp_path: Path) -> None:
    path = write(tmp_path, MINE)
    small, paper = read_suite(path), read_suite(path, scale="paper")
    assert (small.name, small.samples, paper.samples) == ("mine", 10, 100)
    assert small.attack("pgd").parameters == {"steps": 2}
    assert paper.attack("pgd").parameters == {"steps": 40}
    assert small.reduced == ("10 images.",)
    assert paper.reduced == ()
    assert scales(path) == ("small", "paper")
    assert load_suite(str(path)) == small


def test_a_scale_can_do_without_an_attack(tmp_path: Path) -> None:
    suite = read_suite(
        write(tmp_path, MINE.replace("samples = 10\n", 'samples = 10\nwithout = ["pgd"]\n', 1))
    )
    assert (suite.attacks, suite.expected) == ((), ())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Mine"', 'titel = "Mine"', r"^mine\.toml: .*'titel'; did you mean 'title'"),
        ('name = "cnn"', 'name = "cn"', r"^mine\.toml, \[\[models\]\] 'cn': .*did you mean 'cnn'"),
        (
            "LinfProjectedGradientDescentAttack",
            "LinfProjectedGradientDescent",
            r"\[\[attacks\]\] 'pgd': .*did you mean 'LinfProjectedGradientDescentAttack'",
        ),
        ("parameters = { steps = 40 }", "toolkit = 'artt'", r"\[\[attacks\]\] 'pgd': .*did you mean 'art'"),
        ("parameters = {", "parametres = {", r"\[\[attacks\]\] 'pgd': .*did you mean 'parameters'"),
        ("epsilon = 0.1", "epsilon = -0.1", r"\[\[threat_models\]\] 'linf': .*above 0"),
        ('attack = "pgd"', 'attack = "pdg"', "did you mean 'pgd'"),
        ("cnn = 0.5", "cnn = 50", r"\[\[expected\]\] 'pgd': .*`value`"),
        ("[scale.small.attacks.pgd]", "[scale.small.attacks.pdg]", r"\[scale.small.attacks\]: .*'pgd'"),
        ("[scale.paper]", "[scale.papers]", r"\[scale\]: .*did you mean 'paper'"),
        ('dataset = "digits"', 'dataset = "digits"\nattack_inference = { step = 3 }', "did you mean 'steps'"),
        ("samples = 100", "sampels = 100", r"\[scale.paper\]|did you mean 'samples'"),
        ('norm = "linf"\nepsilon', 'norm = "linff"\nepsilon', r"\[\[threat_models\]\] 'linff'"),
        ("[[models]]", "[[models]", "TOML"),
        (
            "epsilon = 0.1",
            "epsilon = nan",
            r"\[\[threat_models\]\] 'linf': .*`epsilon` to be finite, but got nan",
        ),
        ("epsilon = 0.1", 'epsilon = "8/255"', r"\[\[threat_models\]\] 'linf': .*number, but got '8/255'"),
        ("epsilon = 0.1", "epsilon = true", r"\[\[threat_models\]\] 'linf': .*number, but got True"),
        ("epsilon = 0.1", f"epsilon = 1{'0' * 400}", r"\[\[threat_models\]\] 'linf': .*finite, but got 1000"),
        ("samples = 10\n", "samples = 2.5\n", r"^mine\.toml: .*`samples` to be an integer, but got 2\.5"),
        ('title = "CNN"', "title = 5", r"\[\[models\]\] 'cnn': .*`title` to be a string, but got 5"),
        (
            "values = { cnn = 0.5 }",
            "values = [1]",
            r"\[\[expected\]\] 'pgd': .*`values` to be a table, but got",
        ),
        ("values = { cnn = 0.5 }", "", r"\[\[expected\]\] 'pgd': .*`values` to be a table, but got None"),
        ('reduced = ["10 images."]', 'reduced = "abc"', r"`reduced` to be a sequence, but got 'abc'"),
        ('title = "Mine"', "deep = " + "[" * 10_000, r"mine\.toml to be TOML, but maximum recursion depth"),
        (
            'dataset = "digits"\n\n[[models]]\nname = "cnn"\ntitle = "CNN"\n',
            'dataset = "digits"\nmodels = "cnn"\n',
            r"^mine\.toml: Expected `models` to be a sequence, but got 'cnn'",
        ),
    ],
    ids=lambda text: str(text)[:24],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in MINE
    path = write(tmp_path, MINE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_suite(path, scale="paper" if "sampels" in new else "small")


def test_what_editors_make_of_a_suite_is_the_same_suite(tmp_path: Path) -> None:
    expected = read_suite(write(tmp_path, MINE))
    for text in ("\N{BYTE ORDER MARK}" + MINE, MINE.replace("samples = 10\n", "samples = 10.0\n")):
        assert read_suite(write(tmp_path, text)) == expected
    write(tmp_path, MINE).write_bytes(MINE.replace("\n", "\r\n").encode())
    assert read_suite(tmp_path / "mine.toml") == expected


@pytest.mark.parametrize(
    ("stem", "name"),
    [("my suite", "my-suite"), (".hidden (2)", "hidden-2-"), ("εδ", "suite"), ("a" * 150, "a" * 100)],
    ids=["a blank", "brackets", "no letter", "long"],
)
def test_a_suite_is_named_after_its_file_whatever_that_is_called(
    stem: str, name: str, tmp_path: Path
) -> None:
    path = write(tmp_path, MINE).rename(tmp_path / f"{stem}.toml")
    assert read_suite(path).name == name


def test_unknown_suites_and_scales_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'eabs-table1'"):
        load_suite("eabs-tabel1")
    with pytest.raises(ValueError, match="no such file"):
        load_suite(tmp_path / "none.toml")
    with pytest.raises(ValueError, match=r"quick\.toml: Expected the scale 'small', but got 'paper'"):
        load_suite("quick", scale="paper")


@pytest.mark.realdata("gtsrb")
def test_ten_signs_are_the_most_frequent_ones() -> None:
    training = load_dataset("gtsrb", "train")
    counts = training.labels.bincount(minlength=43)
    signs = sorted(counts.argsort(descending=True)[:10].tolist())
    ten = load_dataset("gtsrb10", "test")
    assert ten.class_names == tuple(f"{sign:02d}" for sign in signs)
    test = load_dataset("gtsrb", "test")
    assert ten.labels.bincount().tolist() == [int((test.labels == sign).sum()) for sign in signs]
