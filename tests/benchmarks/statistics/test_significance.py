import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from genrobust.benchmarks.statistics import (
    difference_interval,
    fisher,
    holm,
    mcnemar_p,
    mean_interval,
    median_interval,
    wilson_interval,
)

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.floats(0.5, 0.999))
def test_wilson_is_scipys(counts: tuple[int, int], confidence: float) -> None:
    count, total = counts
    (low,), (high,) = wilson_interval(np.array([count / total]), total, confidence=confidence)
    reference = binomtest(count, total).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_the_difference_of_two_shares_by_hand() -> None:
    # Newcombe 1998, table II: 56/70 - 48/80 has the interval 0.0524 to 0.3339 by method 10.
    assert difference_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_a_paper_that_says_no_number_of_images_has_no_sampling_error() -> None:
    low, high = difference_interval(0.8, 10, 0.6, None)
    assert (low, high) == pytest.approx((0.490162 - 0.6, 0.943318 - 0.6), abs=1e-6)
    wider = difference_interval(0.8, 10, 0.6, 50)
    assert wider[0] < low
    assert high < wider[1]


@given(COUNTS, COUNTS)
def test_a_difference_is_within_its_interval(one: tuple[int, int], other: tuple[int, int]) -> None:
    first, second = one[0] / one[1], other[0] / other[1]
    low, high = difference_interval(first, one[1], second, other[1])
    assert low <= first - second <= high
    assert difference_interval(second, other[1], first, one[1]) == pytest.approx((-high, -low))


def test_the_median_by_hand() -> None:
    # Of 10 values the 2nd and the 9th hold the median with 1 - 2 (1 + 10) / 1024 = 97.9 %; 3rd and 8th: 89 %.
    values = np.array([3.0, 1, 2, 5, 4, 9, 8, 7, 6, np.inf])
    assert median_interval(values) == (5.5, 2.0, 9.0)
    assert median_interval(np.array([1.0, 2.0, 3.0])) == (2.0, 0.0, math.inf)
    assert median_interval(np.array([0.0, np.inf, np.inf]))[0] == math.inf
    with pytest.raises(ValueError, match="`values`"):
        median_interval(np.array([]))


@given(st.lists(st.floats(0, 10) | st.just(math.inf), min_size=1, max_size=80))
def test_the_median_is_within_its_interval(values: list[float]) -> None:
    value, low, high = median_interval(np.array(values))
    assert low <= value <= high


def test_the_median_interval_holds_the_median_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    draws = (median_interval(generator.exponential(size=25)) for _ in range(2000))
    held = np.mean([low <= math.log(2) <= high for _, low, high in draws])
    assert held > 0.94


def test_mcnemar_for_many_pairs_at_once() -> None:
    first, second = np.array([0, 8, 1, 500]), np.array([0, 1, 8, 400])
    expected = [1.0, *(binomtest(a, a + b).pvalue for a, b in ((8, 1), (1, 8), (500, 400)))]
    assert mcnemar_p(first, second) == pytest.approx(expected)


def test_fisher_by_hand() -> None:
    # Fisher's tea: 3 of 4 against 1 of 4 has the two-sided p 2 (16 + 1) / 70.
    assert fisher(3, 4, 1, 4) == pytest.approx(34 / 70)
    assert fisher(5, 10, 50, 100) == pytest.approx(1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_the_order_and_never_helps(p: list[float]) -> None:
    values, corrected = np.array(p), holm(p)
    assert (corrected >= values).all()
    assert (corrected <= np.minimum(1, len(p) * values) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(values, kind="stable")]) >= 0).all()


def test_a_mean_has_the_interval_of_students_t() -> None:
    values = np.array([1.0, 2.5, 2.0, 4.0, 3.5])
    mean, low, high = mean_interval(values)
    reference = ttest_1samp(values, 0).confidence_interval()
    assert (mean, low, high) == pytest.approx((2.6, reference.low, reference.high))
    assert mean_interval(np.array([0.1, 3.0]))[1] == 0.0
    assert mean_interval(np.array([1.5])) == (1.5, 0.0, math.inf)
    with pytest.raises(ValueError, match="at least one of `values`"):
        mean_interval(np.array([]))
