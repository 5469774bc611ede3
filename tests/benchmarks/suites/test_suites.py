import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from genrobust.adapters.contract import resolve
from genrobust.benchmarks.run.cells import plan
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import (
    Attack,
    Expected,
    Suite,
    SuiteModel,
    ThreatModel,
    suite_from_dict,
)

DIGITS = load_suite("digits")

FGSM = DIGITS.attack("fgsm")


def test_a_suite_survives_a_round_trip_through_json() -> None:
    assert suite_from_dict(json.loads(json.dumps(asdict(DIGITS)))) == DIGITS


def test_digits_holds_the_published_attacks_and_the_toolkit_knows_them() -> None:
    names = {resolve(attack.toolkit, attack.name)[1].name for attack in DIGITS.attacks}
    assert names >= {
        "LinfFastGradientAttack",
        "LinfProjectedGradientDescentAttack",
        "L2ProjectedGradientDescentAttack",
        "L2DeepFoolAttack",
        "L2CarliniWagnerAttack",
        "DDNAttack",
        "BoundaryAttack",
    }
    assert [model.name for model in DIGITS.models] == ["cnn", "abs", "eabs"]
    assert DIGITS.threat_model("linf").epsilon == 0.1
    assert DIGITS.threat_model("l2").epsilon == 2.0


def test_quick_is_short_and_still_honest() -> None:
    quick = load_suite("quick")
    assert [model.name for model in quick.models] == ["cnn", "abs", "eabs"]
    for norm in ("linf", "l2"):
        attacks = [attack for attack in quick.attacks if attack.norm == norm]
        known = {resolve(attack.toolkit, attack.name)[1].knowledge for attack in attacks}
        assert "white" in known
        assert "score" in known
    full = load_suite("digits")
    assert {attack.gradient for attack in full.attacks if attack.for_models == ("eabs",)} == {"joint"}
    assert {attack.key for attack in quick.attacks} < {attack.key for attack in full.attacks}
    assert {t.norm: t.epsilon for t in quick.threat_models} == {t.norm: t.epsilon for t in full.threat_models}


def test_find_suite_names_the_nearest() -> None:
    assert load_suite("digits") == DIGITS
    with pytest.raises(ValueError, match="'quikc'; did you mean 'quick'"):
        load_suite("quikc")


def test_epsilons_of_an_attack() -> None:
    curve = DIGITS.threat_model("linf").epsilons
    assert list(curve) == sorted(curve)
    assert 0.1 in curve
    assert DIGITS.epsilons(FGSM) == curve
    assert DIGITS.epsilons(replace(FGSM, every_epsilon=False)) == (0.1,)
    assert DIGITS.epsilons(DIGITS.attack("ddn")) == (None,)


def test_plan_covers_every_sample_once_and_starts_clean() -> None:
    suite = replace(DIGITS, batch_size=8, attacks=tuple(a for a in DIGITS.attacks if not a.for_models))
    cells = list(plan(suite, ("a", "b"), 20))
    assert len({cell.key for cell in cells}) == len(cells)
    assert [cell.attack for cell in cells[:6]] == ["clean"] * 6
    runs = 1 + sum(len(suite.epsilons(attack)) for attack in suite.attacks)
    assert len(cells) == runs * 2 * 3


def test_a_model_that_the_suite_does_not_know_gets_an_entry() -> None:
    assert DIGITS.model("mine") == SuiteModel(name="mine", title="mine")
    with pytest.raises(ValueError, match="'my/model'"):
        DIGITS.model("my/model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "a/b"}, "`key`"),
        ({"key": "clean"}, "unperturbed"),
        ({"key": "all"}, "union"),
        ({"norm": "l3"}, "`norm`.*'l3'"),
        ({"kind": "fixed epsilom"}, "did you mean 'fixed epsilon'"),
        ({"restarts": 0}, "`restarts`"),
        ({"eot": 0}, "`eot`"),
        ({"kind": "minimal norm"}, "`every_epsilon`"),
        ({"start_from_images": True, "eot": 2}, "starting points"),
        ({"key": "k" * 300}, "`key` of letters"),
        ({"title": 5}, "`title` to be a string, but got 5"),
        ({"restarts": True}, "`restarts` to be an integer, but got True"),
        ({"eot": 1.5}, "`eot` to be an integer, but got 1.5"),
        ({"every_epsilon": "no"}, "`every_epsilon` to be true or false, but got 'no'"),
        ({"targeted": "no"}, "`targeted` to be true or false, but got 'no'"),
        ({"for_models": "cnn"}, "`for_models` to be a sequence, but got 'cnn'"),
        (
            {"parameters": {"rel_stepsize": math.nan}},
            r"`parameters`\['rel_stepsize'\] to be finite, but got nan",
        ),
        ({"parameters": {"steps": [1]}}, r"`parameters`\['steps'\] to be bool or int"),
    ],
    ids=str,
)
def test_an_attack_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FGSM, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attacks": (FGSM, FGSM)}, "every attack once.*'fgsm'"),
        ({"models": (SuiteModel(name="cnn", title="A"),) * 2}, "every model once"),
        ({"threat_models": (ThreatModel(norm="l2", epsilon=1.0),)}, "'linf' has none"),
        ({"samples": 0}, "`samples`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"overshoots": ()}, "`overshoots`"),
        ({"overshoots": (0.5, 1.0)}, "`overshoots`"),
        ({"overshoots": (1.5, 1.0)}, "`overshoots`"),
        ({"overshoots": (math.nan,)}, r"`overshoots`\[0\] to be finite, but got nan"),
        ({"samples": True}, "`samples` to be an integer, but got True"),
        ({"samples": 2.5}, "`samples` to be an integer, but got 2.5"),
        ({"reduced": "abc"}, "`reduced` to be a sequence, but got 'abc'"),
        ({"title": 5}, "`title` to be a string, but got 5"),
        ({"models": "cnn"}, "`models` to be a sequence, but got 'cnn'"),
        ({"reclassify": "no"}, "`reclassify` to be true or false, but got 'no'"),
    ],
    ids=[
        *("attacks", "models", "threat models", "samples", "batch", "no factor", "below 1", "not sorted"),
        *("no number", "true samples", "half a sample", "letters", "no title", "a word", "no truth value"),
    ],
)
def test_a_suite_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(DIGITS, **change)


@pytest.mark.parametrize(
    ("epsilons", "message"),
    [
        ({"epsilon": 0.0}, "`epsilon` to be above 0, but got 0"),
        ({"epsilon": math.nan}, "`epsilon` to be finite, but got nan"),
        ({"epsilon": math.inf}, "`epsilon` to be finite, but got inf"),
        ({"epsilon": 10**400}, "`epsilon` to be finite, but got 1000"),
        ({"epsilon": True}, "`epsilon` to be a number, but got True"),
        ({"epsilon": "8/255"}, "`epsilon` to be a number, but got '8/255'"),
        ({"epsilon": [0.1]}, r"`epsilon` to be a number, but got \[0.1\]"),
        ({"epsilon": 1.0, "curve_epsilons": (-1.0, 1.0)}, r"`curve_epsilons`\[0\] to be above 0"),
        ({"epsilon": 1.0, "curve_epsilons": (math.nan,)}, r"`curve_epsilons`\[0\] to be finite, but got nan"),
        ({"epsilon": 1.0, "curve_epsilons": 0.5}, "`curve_epsilons` to be a sequence, but got 0.5"),
    ],
    ids=range(10),
)
def test_a_threat_model_refuses(epsilons: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThreatModel(norm="l2", **epsilons)


def test_the_suite_knows_its_attacks() -> None:
    with pytest.raises(ValueError, match="did you mean 'fgsm'"):
        DIGITS.attack("fgms")
    assert isinstance(DIGITS, Suite)
    assert isinstance(FGSM, Attack)


NUMBER = Expected(model="cnn", attack="fgsm", value=0.5, epsilon=0.1, images=1000)


def test_numbers_of_the_paper_survive_a_round_trip_too() -> None:
    union = Expected(model="abs", attack="all", norm="l2", value=0.7)
    suite = replace(
        DIGITS, expected=(NUMBER, union), scale="paper", reduced=("Less.",), paper="A 2020, Table 1"
    )
    assert suite_from_dict(json.loads(json.dumps(asdict(suite)))) == suite


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": 1.2}, "`value` of 'accuracy' to be at most 1, but got 1.2"),
        ({"value": -1.0, "quantity": "median_distance"}, "`value` to be at least 0, but got -1.0"),
        ({"quantity": "acuracy"}, "did you mean 'accuracy'"),
        ({"norm": "l2"}, "`norm` with the attack 'all'"),
        ({"attack": "all"}, "`norm` with the attack 'all'"),
        ({"images": 0}, "`images`"),
        (
            {"attack": "clean", "quantity": "reached"},
            "one attack for the quantity 'reached', but",
        ),
        ({"value": -1.0, "quantity": "mean_distance"}, "`value` to be at least 0, but got -1.0"),
        ({"value": math.nan}, "`value` to be finite, but got nan"),
        ({"value": True}, "`value` to be a number, but got True"),
        ({"epsilon": math.nan}, "`epsilon` to be finite, but got nan"),
    ],
    ids=str,
)
def test_a_number_of_the_paper_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(NUMBER, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expected": (replace(NUMBER, model="vit"),)}, "model of `?expected.*'vit'"),
        ({"expected": (replace(NUMBER, attack="fgms"),)}, "did you mean 'fgsm'"),
        ({"attacks": (replace(FGSM, against="cn"),)}, "against of fgsm.*did you mean 'cnn'"),
        ({"attacks": (replace(FGSM, for_models=("asb",)),)}, "for_models of fgsm.*did you mean 'abs'"),
        ({"scale": "large"}, "`scale`"),
        ({"baseline": "cn"}, "`baseline` to be one of .*did you mean 'cnn'"),
        (
            {"expected": (NUMBER, replace(NUMBER, value=0.6))},
            "number of `expected` once, but got 'accuracy of",
        ),
    ],
    ids=["model", "attack", "against", "for_models", "scale", "baseline", "twice"],
)
def test_a_suite_refuses_names_that_it_does_not_have(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(DIGITS, **change)


def test_attacks_may_be_for_some_models_only() -> None:
    suite = replace(DIGITS, attacks=(replace(FGSM, for_models=("abs",), every_epsilon=False),))
    cells = list(plan(suite, ("cnn", "abs"), 20))
    assert [(cell.model, cell.attack) for cell in cells] == [
        ("cnn", "clean"),
        ("abs", "clean"),
        ("abs", "fgsm"),
    ]


def test_a_second_gradient_is_asked_of_the_models_that_have_it() -> None:
    with pytest.raises(ValueError, match="`for_models` of 'fgsm', the models that have its gradient 'propos"):
        replace(FGSM, gradient="proposal")
    with pytest.raises(
        ValueError, match="no `gradient` for 'fgsm', which is against the encoder, but got 'pr"
    ):
        replace(FGSM, gradient="proposal", for_models=("vade",), against="encoder")


def test_a_suite_without_a_model_is_without_what_is_transferred_from_it() -> None:
    transfer = replace(FGSM, key="transfer", against="cnn")
    suite = replace(DIGITS, attacks=(FGSM, transfer), expected=(NUMBER, replace(NUMBER, model="abs")))
    left = suite.restricted(["abs", "mine"])
    assert [attack.key for attack in left.attacks] == ["fgsm"]
    assert [model.name for model in left.models] == ["abs"]
    assert [number.model for number in left.expected] == ["abs"]
    assert left.baseline is None
    assert suite.restricted(["cnn", "abs"]).attacks == suite.attacks
