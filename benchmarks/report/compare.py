"""A comparison of two runs: the numbers that differ by more than chance, and the settings that differ."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ..._brief import one_line
from ..._table import TextColumn, TextTable
from ..run.results import Results
from ..statistics import Proportion, Row, fisher, holm, mcnemar, summarise
from ..suites.model import Norm
from .words import DASH, p_value, percent, threat

__all__ = ["Comparison", "Comparisons", "Setting", "Test", "as_json", "compare_runs", "render_comparisons"]

Test: TypeAlias = Literal["McNemar", "Fisher"]
UNCOMPARED = ("command", "samples")  # the first names the folder, and the length stands for the second


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The accuracy of a model under an attack at an epsilon, in two runs.

    Attributes:
        model: The model.
        attack: Key of the attack, `"clean"`, or `"all-linf"`, `"all-l2"` and so on.
        title: Title of the attack, for readers.
        norm: Norm of the threat model; None for clean images.
        epsilon: Epsilon of the threat model; None for clean images.
        first: Accuracy in the first run.
        second: Accuracy in the second run.
        test: McNemar's test if both runs have the same images, otherwise Fisher's exact test of two shares.
        p: The p value of the test.
        corrected: The p value after Holm's correction for the number of comparisons.
    """

    model: str
    attack: str
    title: str
    norm: Norm | None
    epsilon: float | None
    first: Proportion
    second: Proportion
    test: Test
    p: float
    corrected: float


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of two runs that differs.

    Attributes:
        name: Path of the setting within the manifests.
        first: Its value in the first run; None if that run has none.
        second: Its value in the second run; None if that run has none.
    """

    name: str
    first: Any
    second: Any

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """All comparisons of two runs, and the settings that differ.

    Attributes:
        names: Folders of the runs.
        level: Accepted chance of any false difference.
        compared: All comparisons, the smallest p first.
        alone: Per run, the number of accuracies that the other run lacks.
        settings: The settings that differ.
    """

    names: tuple[str, str]
    level: float
    compared: tuple[Comparison, ...]
    alone: tuple[int, int]
    settings: tuple[Setting, ...]

    __repr__ = one_line

    @property
    def significant(self) -> tuple[Comparison, ...]:
        """The comparisons whose corrected p is below the level."""
        return tuple(entry for entry in self.compared if entry.corrected < self.level)


_Key: TypeAlias = tuple[str, str, float | None]


def compare_runs(first: Results, second: Results, *, level: float = 0.05) -> Comparisons:
    """Compares two runs by model, attack and epsilon.

    Args:
        first: A run, finished or not.
        second: Another run; the accuracies that both have are compared.
        level: Accepted chance of any false difference.

    Raises:
        ValueError: If the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected `level` between 0 and 1, but got {level}")
    ours, theirs = _by_key(first), _by_key(second)
    # A union of different attacks is a different number.
    shared = [key for key in ours if key in theirs and _attacks(ours, key) == _attacks(theirs, key)]
    same_data = first.manifest["dataset"] == second.manifest["dataset"]
    tests = [
        _test(first, second, ours[key], theirs[key], model=key[0], same_data=same_data) for key in shared
    ]
    corrected = holm([p for _, p in tests]) if tests else np.zeros(0)
    compared = [
        Comparison(
            model=key[0],
            attack=key[1],
            title=ours[key].title,
            norm=ours[key].norm,
            epsilon=ours[key].epsilon,
            first=ours[key].accuracy(key[0]),
            second=theirs[key].accuracy(key[0]),
            test=test,
            p=p,
            corrected=float(q),
        )
        for key, (test, p), q in zip(shared, tests, corrected, strict=True)
    ]
    return Comparisons(
        names=(str(first.folder), str(second.folder)),
        level=level,
        compared=tuple(sorted(compared, key=lambda entry: entry.p)),
        alone=(len(ours) - len(shared), len(theirs) - len(shared)),
        settings=tuple(_settings(first.manifest, second.manifest)),
    )


def as_json(comparisons: Comparisons, *, everything: bool = False) -> str:
    """Returns the comparisons as data for a program.

    Args:
        comparisons: Comparisons of two runs.
        everything: Whether to include comparisons that are not significant.
    """
    shown = comparisons.compared if everything else comparisons.significant
    content = {
        "runs": list(comparisons.names),
        "level": comparisons.level,
        "compared": len(comparisons.compared),
        "significant": len(comparisons.significant),
        "alone": list(comparisons.alone),
        "settings": [asdict(setting) for setting in comparisons.settings],
        "comparisons": [
            {**asdict(entry), "difference": entry.second.value - entry.first.value} for entry in shown
        ],
    }
    return json.dumps(content, indent=2)


def render_comparisons(
    comparisons: Comparisons, titles: Mapping[str, str], *, everything: bool = False
) -> TextTable:
    """Builds the table of comparisons, with what was compared above it and the settings below.

    Args:
        comparisons: The comparisons of two runs.
        titles: The titles of the models, by name.
        everything: Also show those that are not significant.
    """
    shown = comparisons.compared if everything else comparisons.significant
    numbers = [TextColumn(title=title, right=True) for title in ("A", "B", "B - A", "p")]
    columns: list[TextColumn | str] = ["model", "attack", *numbers, "test"]
    table = TextTable(
        *(columns if shown else []),
        title="\n".join(_introduction(comparisons)),
        notes=_notes(comparisons),
        keys=2,
    )
    for entry in shown:
        where = ", ".join(filter(None, (entry.title, threat(entry.norm, entry.epsilon))))
        table.add_row(
            titles.get(entry.model, entry.model),
            where,
            _share(entry.first),
            _share(entry.second),
            f"{100 * (entry.second.value - entry.first.value):+.1f}",
            p_value(entry.corrected),
            entry.test,
            style="bold" if everything and entry.corrected < comparisons.level else "",
        )
    return table


def _by_key(results: Results) -> dict[_Key, Row]:
    grid = summarise(results).grid
    return {(model, row.key, row.epsilon): row for row in grid for model in row.robust}


def _attacks(rows: Mapping[_Key, Row], key: _Key) -> frozenset[str]:
    return rows[key].attacks[key[0]]


def _test(
    first: Results, second: Results, ours: Row, theirs: Row, *, model: str, same_data: bool
) -> tuple[Test, float]:
    one, other = _right(first, ours, model), _right(second, theirs, model)
    if same_data and one.keys() == other.keys():
        pairs = np.array([(right, other[sample]) for sample, right in one.items()], dtype=bool)
        return "McNemar", mcnemar(pairs[:, 0], pairs[:, 1])
    return "Fisher", fisher(sum(one.values()), len(one), sum(other.values()), len(other))


def _right(results: Results, row: Row, model: str) -> dict[int, bool]:
    known = row.known[model]
    return dict(zip(results.samples[known].tolist(), row.robust[model][known].tolist(), strict=True))


def _settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Setting]:
    one, other = (dict(_flat(manifest)) for manifest in (first, second))
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            yield Setting(name=name, first=one.get(name), second=other.get(name))


def _flat(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "samples", len(manifest["samples"])
    for name, value in manifest.items():
        if name not in UNCOMPARED:
            yield from _entries(name, value)


def _entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _entries(f"{name}.{key}", entry)
    elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        for number, entry in enumerate(value):
            known = entry if isinstance(entry, Mapping) else {}
            key = known.get("key") or known.get("name") or known.get("norm") or number
            yield from _entries(f"{name}.{key}", entry)
    else:
        yield name, value


def _introduction(comparisons: Comparisons) -> Iterator[str]:
    yield f"A: {comparisons.names[0]}"
    yield f"B: {comparisons.names[1]}"
    found = len(comparisons.significant)
    yield (
        f"Accuracies compared: {len(comparisons.compared)}; significantly different: {found} "
        f"(p < {comparisons.level:g} after Holm's correction)."
    )


def _notes(comparisons: Comparisons) -> Iterator[str]:
    for name, number in zip("AB", comparisons.alone, strict=True):
        if number:
            yield f"Only in {name}: {number}."
    if not comparisons.settings:
        yield "The settings are the same."
        return
    yield "Settings that differ:"
    for setting in comparisons.settings:
        yield f"  {setting.name}: {_shortened(setting.first)} in A, {_shortened(setting.second)} in B"


def _shortened(value: Any) -> str:
    text = DASH if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:24]}…{text[-12:]}"


def _share(share: Proportion) -> str:
    return f"{percent(share.value, share.total)} of {share.total}"
