from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from genrobust.benchmarks.run.results import Results
from genrobust.benchmarks.statistics import breaking_distances, mcnemar, robust_accuracy, summarise, wilson
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import Suite, ThreatModel

DIGITS = load_suite("digits")

MakeResults = Callable[..., Results]


@pytest.fixture
def suite() -> Suite:
    return replace(
        DIGITS,
        attacks=(DIGITS.attack("pgd-l2"), DIGITS.attack("ddn")),
        threat_models=(ThreatModel(norm="l2", epsilon=1.0),),
    )


def test_wilson_by_hand() -> None:
    # (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) for 8 of 10, z = 1.959964
    share = wilson(8, 10)
    assert share.value == 0.8
    assert (share.low, share.high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 20).low == 0
    assert wilson(20, 20).high == 1


@pytest.mark.parametrize(("count", "total"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="`count`"):
        wilson(count, total)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(counts: tuple[int, int]) -> None:
    share = wilson(*counts)
    assert 0 <= share.low <= share.value + 1e-12
    assert share.value - 1e-12 <= share.high <= 1


def test_mcnemar_by_hand() -> None:
    first = np.array([True] * 9 + [False] * 3)
    second = np.array([False] * 8 + [True] + [True] * 1 + [False] * 2)
    # 8 samples only the first gets right, 1 only the second: p = 2 (C(9,0) + C(9,1)) / 2^9
    assert mcnemar(first, second) == pytest.approx(2 * 10 / 512)
    assert mcnemar(first, first) == 1
    with pytest.raises(ValueError, match="12 and 3"):
        mcnemar(first, second[:3])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_symmetric_sign_test(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs).T
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    p = mcnemar(first, second)
    assert p == pytest.approx(mcnemar(second, first))
    assert p == pytest.approx(min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5)))


def test_distances_by_hand(suite: Suite, make_results: MakeResults) -> None:
    rows = [
        ("m", "ddn", 4, True, True, 0.7),  # broken
        ("m", "ddn", 2, True, False, 0.2),  # claimed, but it did not survive
        ("m", "ddn", 9, False, False, 0.3),  # wrong without any attack
        ("m", "ddn", 1, True, True, np.inf),
        ("m", "ddn", 4, True, True, 0.5),  # a second, nearer example
    ]
    distances = breaking_distances(make_results(suite, rows), "m", suite.attack("ddn"))
    assert distances.tolist() == [0.5, np.inf, 0.0, np.inf]  # in the order of the samples 4, 2, 9, 1
    assert robust_accuracy(distances, np.array([0.0, 0.4999, 0.5])).tolist() == [0.75, 0.75, 0.5]


def test_the_ball_is_closed_up_to_rounding() -> None:
    distances = np.array([1.0, 1.00009, 1.0002])
    assert robust_accuracy(distances, np.array([1.0]))[0] == pytest.approx(1 / 3)


def test_the_table_by_hand(suite: Suite, make_results: MakeResults) -> None:
    def rows(model: str, pgd: list[bool], ddn: list[float], clean: list[bool]) -> list[Any]:
        attacked = [(model, "pgd-l2", s, clean[s], pgd[s], 1.0) for s in range(4)]
        attacked += [(model, "ddn", s, clean[s], True, ddn[s]) for s in range(4)]
        return [(model, "clean", s, clean[s], not clean[s], 0.0) for s in range(4)] + attacked

    results = make_results(
        suite,
        [
            *rows("a", [True, False, False, False], [2.0, 0.5, 2.0, 2.0], [True, True, True, False]),
            *rows("b", [False] * 4, [3.0] * 4, [True] * 4),
        ],
    )
    summary = summarise(results)
    assert [row.key for row in summary.rows] == ["clean", "pgd-l2", "ddn", "all-l2"]
    robust = {row.key: row.robust["a"].tolist() for row in summary.rows}
    assert robust == {
        "clean": [True, True, True, False],
        "pgd-l2": [False, True, True, False],
        "ddn": [True, False, True, False],
        "all-l2": [False, False, True, False],
    }
    union = summary.rows[-1]
    assert union.accuracy("a").count == 1
    ((first, second, p),) = union.comparisons()
    assert (first, second) == ("a", "b")
    assert p == pytest.approx(0.25)  # 3 discordant pairs: 2 / 2^3
    assert [(c.claimed, c.fell) for c in summary.claims if c.model == "a"] == [(3, 2), (3, 0)]
    curve = summary.curves[0]
    assert curve.exact
    assert curve.attacks == ("DDN",)
    assert curve.epsilons.tolist() == [0.0, 0.5, 1.0, 2.0]
    assert curve.accuracy.tolist() == [0.75, 0.5, 0.5, 0.0]


example = st.tuples(st.booleans(), st.booleans(), st.floats(0, 5) | st.just(np.inf))


@given(st.lists(st.tuples(example, example), min_size=1, max_size=12))
def test_unions_and_curves_behave(
    make_results: MakeResults, data: list[tuple[tuple[bool, bool, float], ...]]
) -> None:
    suite = replace(DIGITS, attacks=(DIGITS.attack("deepfool-l2"), DIGITS.attack("ddn")))
    rows = [("m", "clean", s, first[0], not first[0], 0.0) for s, (first, _) in enumerate(data)]
    for key, column in (("deepfool-l2", 0), ("ddn", 1)):
        rows += [("m", key, s, pair[0][0], *pair[column][1:]) for s, pair in enumerate(data)]
    summary = summarise(make_results(suite, rows))
    by_key = {row.key: row.robust["m"] for row in summary.rows}
    union = by_key["all-l2"]
    assert (union == (by_key["ddn"] & by_key["deepfool-l2"])).all()
    assert union.mean() <= min(robust.mean() for robust in by_key.values())
    curve = summary.curves[0]
    assert (np.diff(curve.accuracy) <= 0).all()
    assert curve.accuracy[0] <= by_key["clean"].mean()
    at_epsilon = curve.accuracy[curve.epsilons == suite.threat_model("l2").epsilon]
    assert at_epsilon == pytest.approx(union.mean())
