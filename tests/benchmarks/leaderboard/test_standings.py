"""The number of a row: the lowest that everything verified brings a model to, on images chosen beforehand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrobust.benchmarks.leaderboard.standings import DECIDED, Attempted, Base, Contender, standing_of

IMAGES = 12


def attempt(lost: dict[int, float], *, source: str = "run", submitter: str = "") -> Attempted:
    lengths = np.array(list(lost.values()), dtype=float)
    return Attempted(
        attack=f"attack of {source}",
        source=source,
        date="2026-11-02" if submitter else "2026-11-01",
        samples=np.array(list(lost), dtype=np.int64),
        lost={"first": lengths, "majority": lengths, "worst": lengths / 2},
        submitter=submitter,
    )


def base(samples: list[int], *, source: str = "run", wrong: tuple[int, ...] = ()) -> Base:
    errors = np.isin(samples, wrong)
    return Base(
        samples=np.array(samples), source=source, date="2026-11-01", wrong=dict.fromkeys(DECIDED, errors)
    )


def contender(bases: list[Base], attempts: list[Attempted]) -> Contender:
    return Contender(
        title="model",
        kinds=("random",),
        dataset="digits",
        norm="linf",
        draws=5,
        bases=tuple(bases),
        attempts=tuple(attempts),
    )


@given(
    st.lists(
        st.dictionaries(st.integers(0, IMAGES - 1), st.sampled_from([0.05, 0.1, 0.2, np.inf])), min_size=1
    ),
    st.lists(st.sets(st.integers(0, IMAGES - 1), min_size=1), min_size=1, max_size=3),
    st.sets(st.integers(0, IMAGES - 1)),
)
def test_it_is_the_lowest_share_over_the_bases(
    found: list[dict[int, float]], chosen: list[set[int]], wrong: set[int]
) -> None:
    bases = [base(sorted(samples), wrong=tuple(wrong)) for samples in chosen]
    row = standing_of(contender(bases, [attempt(lost) for lost in found]), 0.1)
    lost = wrong | {image for part in found for image, length in part.items() if length <= 0.1}
    shares = [len(samples - lost) / len(samples) for samples in chosen]
    assert row.worst.value == pytest.approx(min(shares))
    assert row.shares["first"].count == row.worst.count
    halved = wrong | {image for part in found for image, length in part.items() if length / 2 <= 0.1}
    assert row.shares["worst"].count == len(set(row.base.samples.tolist()) - halved)
    assert row.worst.low <= row.worst.value <= row.alone.value
    assert row.base.clean is not None
    assert row.worst.value <= row.base.clean.value


def test_a_submission_is_named_if_the_number_rests_on_it() -> None:
    ours = attempt({0: 0.1, 1: np.inf, 2: 0.1, 3: np.inf})
    same = attempt({0: 0.1}, source="same", submitter="A")
    more = attempt({1: 0.1}, source="more", submitter="B")
    elsewhere = attempt({9: 0.0}, source="elsewhere", submitter="C")
    row = standing_of(contender([base([0, 1, 2, 3])], [ours, same, more, elsewhere]), 0.1)
    assert (row.worst.count, row.worst.total) == (1, 4)
    assert row.strongest is ours
    assert row.alone.count == 2
    assert row.lowered == (more,)
    assert row.date == "2026-11-02"
    smaller = standing_of(contender([base([0, 1, 2, 3])], [ours, same, more, elsewhere]), 0.05)
    assert smaller.worst.count == 4
    assert smaller.lowered == ()
    assert smaller.date == "2026-11-01"


def test_a_submission_alone_counts_over_all_test_images() -> None:
    everything = Base(samples=np.arange(100))
    row = standing_of(contender([everything], [attempt({3: 0.1, 4: 0.0}, submitter="A")]), 0.1)
    assert (row.worst.count, row.worst.total) == (98, 100)
    assert row.base.clean is None
