"""The papers as data: every check leads to a number, and every suite of a paper is listed."""

from pathlib import Path
from typing import Any

import pytest

from genrobust.benchmarks.reproduction import Claim, ClaimCheck, PaperItem, PaperRecord, read_papers
from genrobust.benchmarks.reproduction.papers import published_suite
from genrobust.benchmarks.suites.files import load_suite, shipped_suites
from genrobust.benchmarks.suites.model import ALL, CLEAN

PAPERS = read_papers()
CHECKS = [check for paper in PAPERS for claim in paper.claims for check in (*claim.checks, *claim.stronger)]
CHECK = {"suite": "quick", "model": "cnn", "attack": "clean"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.suite}-{check.model}-{check.attack}")
def test_every_check_leads_to_one_number(check: ClaimCheck) -> None:
    suite = published_suite(check.suite)
    names = {model.name for model in suite.models}
    assert {check.model, check.above or check.model} <= names
    if check.of_paper:
        found = [
            number
            for number in suite.expected
            if (number.model, number.attack, number.quantity) == (check.model, check.attack, check.quantity)
            and check.norm in (None, number.norm)
        ]
        assert len(found) == 1
    elif check.attack == ALL:
        assert len([attack for attack in suite.attacks if attack.norm == check.norm]) > 1
    elif check.attack != CLEAN:
        attack = suite.attack(check.attack)
        epsilons = suite.threat_model(attack.norm).epsilons
        assert check.epsilon is None or (attack.every_epsilon and check.epsilon in epsilons)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_a_paper_has_three_claims_and_all_its_suites(paper: PaperRecord) -> None:
    assert len(paper.claims) == 3
    its_own = {name for name in shipped_suites() if load_suite(name).paper.startswith(paper.source)}
    assert its_own == set(paper.suites)
    names = {model.name for suite in paper.suites for model in load_suite(suite).models}
    assert set(paper.undefended) <= names


def test_five_papers_and_their_items() -> None:
    items = {paper.name: {item.name for item in paper.items} for paper in PAPERS}
    assert items["E-ABS"] == {*(f"Table {n}" for n in range(1, 9)), *(f"Figure {n}" for n in (3, 4, 5))}
    assert items["Deep Bayes"] == {"Figure 1", "Figure 2", "Table 1", "Table 2"}
    assert items["GMVAE"] >= {"Table 1", "Table 2", "Figure 2", "Figure 3", "Figure 4", "Figure 5"}
    assert items["VaDE classifier"] >= {f"Table {n}" for n in range(1, 8)}
    assert items["MAD-VAE"] == {*(f"Table {n}" for n in range(1, 5)), "Figures 2-5"}


def test_a_list_stands_for_a_check_of_each_entry(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[papers]]\nname = "A"\nsource = "B 2026"\nitems = []\nclaims = [{ text = "C.", checks = '
        '[{ suite = ["s", "t"], model = "m", attack = ["a", "b", "c"] }] }]\n',
        encoding="utf-8",
    )
    (paper,) = read_papers(path)
    found = [(check.suite, check.attack) for check in paper.claims[0].checks]
    assert found == [(suite, attack) for suite in "st" for attack in "abc"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack": "all"}, "`norm` with the attack 'all'"),
        ({"norm": "l2"}, "`norm` with the attack 'all'"),
        ({"above": "mlp", "at_most": 0.5}, "one of `above`, `at_least` and `at_most`"),
        ({"above": "mlp", "quantity": "detection"}, "`quantity` to be one of"),
        ({"at_least": 2.0}, "`at_least`"),
    ],
)
def test_a_check_that_says_nothing_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClaimCheck(**CHECK | change)


def test_a_claim_has_checks_or_a_reason() -> None:
    with pytest.raises(ValueError, match="`checks` or a `reason`"):
        Claim(text="Nothing is tested.")
    with pytest.raises(ValueError, match="`checks` or a `reason`"):
        Claim(text="Both.", checks=(ClaimCheck(**CHECK),), reason="there is none")


def test_an_item_has_one_source() -> None:
    with pytest.raises(ValueError, match="of 'Table 1', and one of them alone"):
        PaperItem(name="Table 1", content="nothing")
    with pytest.raises(ValueError, match="of 'Table 1', and one of them alone"):
        PaperItem(name="Table 1", content="both", suites=("quick",), reason="there is none")
