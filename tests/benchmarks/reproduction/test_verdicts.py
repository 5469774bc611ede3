"""Every verdict on a number and on a claim, from rows that are made up."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from genrobust import load_dataset
from genrobust.benchmarks.reproduction import (
    Claim,
    ClaimCheck,
    MeasuredRun,
    PaperItem,
    PaperRecord,
    judge_claim,
    judge_numbers,
    measured_run,
)
from genrobust.benchmarks.run.results import Results
from genrobust.benchmarks.statistics import summarise
from genrobust.benchmarks.suites.files import load_suite, register_suite
from genrobust.benchmarks.suites.model import Expected, Suite, SuiteModel, ThreatModel

pytestmark = pytest.mark.usefixtures("registrations_taken_back")

DIGITS = load_suite("digits")
EPSILON = 0.2
SAMPLES = 100
# Of 100 images: right when clean, right under FGSM, right under PGD.
RIGHT = {"cnn": (90, 40, 10), "eabs": (90, 70, 30)}

MakeResults = Callable[..., Results]


def suite_of(*expected: Expected, name: str = "made-up") -> Suite:
    return replace(
        DIGITS,
        name=name,
        models=(SuiteModel(name="cnn", title="CNN"), SuiteModel(name="eabs", title="E-ABS")),
        attacks=tuple(DIGITS.attack(key) for key in ("fgsm", "pgd-linf")),
        threat_models=(ThreatModel(norm="linf", epsilon=EPSILON),),
        baseline=None,
        paper="Nobody 2026, Table 1",
        expected=expected,
    )


def rows(right: dict[str, tuple[int, int, int]] = RIGHT) -> list[Any]:
    found: list[Any] = []
    for model, (clean, fgsm, pgd) in right.items():
        for sample in range(SAMPLES):
            well = sample < clean
            found += [
                (model, "clean", sample, well, False, 0.0),
                (model, "fgsm", sample, well, sample >= fgsm, EPSILON),
                (model, "pgd-linf", sample, well, sample >= pgd, EPSILON),
            ]
    return found


def number(attack: str, value: float, *, model: str = "eabs", **settings: Any) -> Expected:
    settings = {"norm": "linf"} | settings if attack == "all" else settings
    return Expected(model=model, attack=attack, value=value, images=1000, **settings)


@pytest.mark.parametrize(
    ("expected", "verdict"),
    [
        (number("clean", 0.92), "reproduced"),
        (number("clean", 0.70), "better"),
        (number("clean", 0.99), "not reproduced"),
        (number("clean", 0.12, quantity="error"), "reproduced"),
        (number("clean", 0.30, quantity="error"), "better"),
        (number("clean", 0.01, quantity="error"), "not reproduced"),
        (number("clean", 0.20, quantity="rejection"), "not reproduced"),
        (number("clean", 0.01, quantity="rejection"), "reproduced"),
        (number("pgd-linf", 0.32), "reproduced"),
        (number("pgd-linf", 0.10), "better"),
        (number("pgd-linf", 0.60), "not reproduced"),
        (number("fgsm", 0.72), "falls under a stronger attack"),
        (number("fgsm", 0.50), "falls under a stronger attack"),
        (number("fgsm", 0.99), "not reproduced"),
        (number("all", 0.31), "reproduced"),
        (number("all", 0.60), "not reproduced"),
        (number("clean", 0.70, model="cnn"), "better"),
        (number("fgsm", 0.41, model="cnn"), "reproduced"),
        (number("fgsm", 0.10, model="cnn"), "not reproduced"),
    ],
    ids=lambda value: value.place if isinstance(value, Expected) else value,
)
def test_the_verdict_on_a_number(expected: Expected, verdict: str, make_results: MakeResults) -> None:
    summary = summarise(make_results(suite_of(expected), rows()))
    (judged,) = judge_numbers(summary, ["cnn"])
    assert judged.verdict == verdict
    alone = expected.quantity != "accuracy" or expected.attack in ("clean", "all")
    assert (judged.strongest is None) == alone
    if judged.strongest is not None:
        assert judged.strongest.count == RIGHT[expected.model][2]
    assert judged.value.total == SAMPLES


def test_a_weak_attack_of_the_paper_does_not_fall_where_its_strong_one_is_reproduced(
    make_results: MakeResults,
) -> None:
    suite = suite_of(number("fgsm", 0.72), number("pgd-linf", 0.32))
    judged = judge_numbers(summarise(make_results(suite, rows())))
    assert [entry.verdict for entry in judged] == ["reproduced", "reproduced"]


def test_a_union_falls_if_each_attack_of_the_paper_holds(make_results: MakeResults) -> None:
    suite = suite_of(number("fgsm", 0.69), number("all", 0.68))
    judged = judge_numbers(summarise(make_results(suite, rows())))
    assert [entry.verdict for entry in judged] == ["falls under a stronger attack"] * 2


def test_a_number_without_rows_is_not_measured(make_results: MakeResults) -> None:
    suite = suite_of(number("pgd-linf", 0.3))
    (judged,) = judge_numbers(summarise(make_results(suite, [r for r in rows() if r[1] != "pgd-linf"])))
    assert (judged.verdict, judged.value.total) == ("not measured", None)


def paper(*claims: Claim) -> PaperRecord:
    items = (PaperItem(name="Table 1", content="made up", suites=("made-up",)),)
    return PaperRecord(name="Made up", source="Nobody 2026", claims=claims, items=items, undefended=("cnn",))


def run_of(results: Results) -> MeasuredRun:
    known = {"sha256": load_dataset("digits", "test").sha256, **results.manifest["dataset"]}
    manifest = {**results.manifest, "dataset": known, "models": {}}
    return measured_run(replace(results, manifest=manifest), [paper()])


def check(attack: str = "clean", *, model: str = "eabs", **settings: Any) -> ClaimCheck:
    return ClaimCheck(suite="made-up", model=model, attack=attack, **settings)


CLAIMS = [
    ([check("clean")], [], "reproduced"),
    ([check("pgd-linf")], [], "better"),
    ([check("clean"), check("pgd-linf")], [], "reproduced"),
    ([check("clean", above="cnn", by=-0.1)], [], "reproduced"),
    ([check("clean", above="cnn")], [], "undecided"),
    ([check("fgsm", above="cnn")], [], "reproduced"),
    ([check("fgsm", above="cnn", by=0.19)], [], "undecided"),
    ([check("all", norm="linf", above="cnn")], [], "reproduced"),
    ([check("fgsm", model="cnn", above="eabs")], [], "not reproduced"),
    ([check("fgsm", at_least=0.75)], [], "reproduced"),
    ([check("fgsm", at_least=0.95)], [], "not reproduced"),
    ([check("clean", quantity="error", at_most=0.06)], [], "reproduced"),
    ([check("fgsm", quantity="error", at_most=0.1)], [], "not reproduced"),
    ([check("fgsm", epsilon=EPSILON, at_most=0.7)], [], "reproduced"),
    ([check("fgsm", epsilon=0.9, at_most=0.7)], [], "not measured"),
    ([check("fgsm")], [], "not measured"),
    ([check("fgsm"), check("clean", at_least=0.99)], [], "not reproduced"),
    ([check("clean")], [check("pgd-linf", at_least=0.6)], "falls under a stronger attack"),
    ([check("clean")], [check("pgd-linf", at_least=0.2)], "reproduced"),
    ([check("clean")], [check("fgsm")], "reproduced"),
]


@pytest.mark.parametrize(("checks", "stronger", "verdict"), CLAIMS)
def test_the_verdict_on_a_claim(
    checks: list[ClaimCheck], stronger: list[ClaimCheck], verdict: str, make_results: MakeResults
) -> None:
    suite = suite_of(number("clean", 0.9), number("pgd-linf", 0.1))
    register_suite(suite)
    claim = Claim(text="Made up.", checks=tuple(checks), stronger=tuple(stronger))
    judged = judge_claim(claim, [run_of(make_results(suite, rows()))])
    assert judged.verdict == verdict
    assert all(bool(entry.run) == (entry.verdict != "not measured") for entry in judged.checks)


def test_an_order_falls_where_all_attacks_undo_it(make_results: MakeResults) -> None:
    suite = suite_of()
    register_suite(suite)
    results = make_results(suite, rows({"cnn": (90, 40, 20), "eabs": (90, 70, 20)}))
    judged = judge_claim(Claim(text="Made up.", checks=(check("fgsm", above="cnn"),)), [run_of(results)])
    assert judged.verdict == "falls under a stronger attack"
    assert judged.checks[0].ours.startswith("70")
    assert judged.checks[0].strongest.startswith("20")


def test_a_reason_cannot_be_tested_here() -> None:
    judged = judge_claim(Claim(text="Made up.", reason="there are no images"), [])
    assert judged.verdict == "cannot be tested here"


def test_the_paper_scale_and_then_the_larger_run_counts(make_results: MakeResults) -> None:
    suite = suite_of(number("clean", 0.9))
    register_suite(suite)
    claim = Claim(text="Made up.", checks=(check("clean"),))
    whole = run_of(make_results(suite, rows()))
    few = run_of(make_results(suite, [row for row in rows() if row[2] < 20]))
    assert [judge_claim(claim, pair).checks[0].images for pair in ([few, whole], [whole, few])] == [100, 100]
    scaled = run_of(make_results(replace(suite, scale="paper"), [row for row in rows() if row[2] < 20]))
    assert judge_claim(claim, [whole, scaled]).checks[0].images == 20


@pytest.mark.parametrize(
    "dataset",
    [
        {"name": "mnist", "split": "test"},
        {"name": "digits", "split": "validation"},
        {"name": "digits", "split": "test", "sha256": "0" * 64},
    ],
)
def test_a_run_on_other_images_counts_for_no_claim(
    dataset: dict[str, str], make_results: MakeResults
) -> None:
    suite = suite_of(number("clean", 0.9))
    register_suite(suite)
    results = make_results(replace(suite, dataset=dataset["name"]), rows())
    run = run_of(replace(results, manifest={**results.manifest, "dataset": dataset}))
    assert not run.counts
    judged = judge_claim(Claim(text="Made up.", checks=(check("clean", at_least=0.1),)), [run])
    assert judged.verdict == "not measured"
