"""Papers as data: what they claim, and which suites measure their tables and figures."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from itertools import product
from pathlib import Path
from typing import Any

from ..._brief import one_line
from ..._fields import Fraction, Positive, check_choice, check_fields
from ...zoo.weight_files import config_from_dict
from .. import suites
from ..suites.files import load_suite, read_suite, scales, shipped_suites
from ..suites.model import ALL, Norm, Quantity, Suite

__all__ = ["COUNTED", "Claim", "ClaimCheck", "PaperItem", "PaperRecord", "published_suite", "read_papers"]

PAPERS_FILE = "papers.toml"
COUNTED: tuple[Quantity, ...] = ("accuracy", "error", "rejection")  # every row of a table has them


@dataclass(frozen=True, kw_only=True)
class ClaimCheck:
    """One number of a suite, and what a claim says about it.

    Without `above`, `at_least` and `at_most`, the claim is the paper's own number, which the suite holds.

    Attributes:
        suite: Name of the suite that measures the number.
        model: Name of the model in the suite.
        attack: Key of the attack; `"clean"`; or `"all"`, the union of a norm.
        norm: Norm of the union.
        epsilon: Epsilon of the number; None is the threat model's.
        quantity: What the number counts.
        above: A model whose number is smaller, by more than chance.
        by: The difference that has to be exceeded; a negative one allows a loss.
        at_least: Lower bound of the number.
        at_most: Upper bound of the number.
    """

    suite: str
    model: str
    attack: str
    norm: Norm | None = None
    epsilon: Positive | None = None
    quantity: Quantity = "accuracy"
    above: str | None = None
    by: float = 0.0
    at_least: Fraction | None = None
    at_most: Fraction | None = None

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.attack == ALL) != (self.norm is not None):
            raise ValueError(f"Expected a `norm` with the attack {ALL!r} and with no other, but got {self}")
        relations = [self.above, self.at_least, self.at_most]
        if relations.count(None) < 2:
            raise ValueError(f"Expected one of `above`, `at_least` and `at_most`, but got several: {self}")
        if not self.of_paper:
            check_choice("quantity", self.quantity, COUNTED)

    @property
    def of_paper(self) -> bool:
        """Whether the claim is the paper's own number."""
        return self.above is None and self.at_least is None and self.at_most is None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of a paper.

    Attributes:
        text: The claim in a sentence.
        checks: What has to hold, under the paper's attacks.
        stronger: What has to hold under attacks that the paper did not run.
        reason: Why no run can test the claim; empty if one can.
    """

    text: str
    checks: tuple[ClaimCheck, ...] = ()
    stronger: tuple[ClaimCheck, ...] = ()
    reason: str = ""

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)
        if bool(self.checks) == bool(self.reason):
            raise ValueError(f"Expected `checks` or a `reason` without them, but got {self.text!r:.60}")


@dataclass(frozen=True, kw_only=True)
class PaperItem:
    """A table or a figure of a paper.

    Attributes:
        name: Its name, such as "Table 1".
        content: What it shows.
        suites: The suites that measure it.
        command: The command that draws it; empty if a run shows it.
        note: What a reader of the run has to know.
        reason: Why it cannot be measured; empty if it can.
    """

    name: str
    content: str
    suites: tuple[str, ...] = ()
    command: str = ""
    note: str = ""
    reason: str = ""

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)
        if sum(map(bool, (self.suites, self.command, self.reason))) != 1:
            raise ValueError(
                f"Expected `suites`, a `command` or a `reason` of {self.name!r}, and one of them alone"
            )


@dataclass(frozen=True, kw_only=True)
class PaperRecord:
    """A paper.

    Attributes:
        name: Name of its model.
        source: Authors and year.
        claims: What it claims.
        items: Its tables and figures.
        undefended: Names of models without a defense, whose numbers have no better side.
    """

    name: str
    source: str
    claims: tuple[Claim, ...]
    items: tuple[PaperItem, ...]
    undefended: tuple[str, ...] = ()

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def suites(self) -> tuple[str, ...]:
        """Names of the suites that measure something of the paper."""
        return tuple(dict.fromkeys(name for item in self.items for name in item.suites))


def read_papers(path: Path | None = None) -> tuple[PaperRecord, ...]:
    """Reads papers from a TOML file.

    Args:
        path: The file; None reads the papers that the package knows.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is no TOML, or an entry has a field that is unknown or does not fit.
    """
    if path is None:
        with as_file(files(__package__) / PAPERS_FILE) as shipped:
            return read_papers(shipped)
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return tuple(config_from_dict(PaperRecord, _expanded(paper)) for paper in content.get("papers", ()))


def published_suite(name: str) -> Suite:
    """Loads a suite as its paper has it; one that is not described at that scale has one scale alone.

    Raises:
        ValueError: If there is no such suite.
    """
    # A registered suite may be another one of the same name tomorrow; a shipped one stays.
    return _shipped_suite(name) if name in shipped_suites() else load_suite(name)


@cache
def _shipped_suite(name: str) -> Suite:
    with as_file(files(suites) / f"{name}.toml") as path:
        return read_suite(path, scale="paper" if "paper" in scales(path) else "small")


def _expanded(paper: Mapping[str, Any]) -> dict[str, Any]:
    claims = [
        {
            name: [one for check in value for one in _each(check)] if isinstance(value, list) else value
            for name, value in claim.items()
        }
        for claim in paper.get("claims", ())
    ]
    return {**paper, "claims": claims}


def _each(check: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a check for every combination of the entries of its lists."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in check.items()}
    for values in product(*lists.values()):
        yield dict(zip(lists, values, strict=True))
