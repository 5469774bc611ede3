"""The content of a report before any format: facts, findings, tables, warnings, and the command."""

import platform
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..._brief import one_line
from ..run.results import Results
from ..statistics import Row, Summary, summarise
from .table import Table
from .tables import SIGNIFICANT, headline, tables
from .words import NBSP, count, p_value, percent, range_of, threat

__all__ = ["Document", "Flag", "describe"]


NAMED = 5  # up to this number of models, a fact names each of them
UNTOLD = ("executable",)  # a local path tells readers nothing


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A reason to doubt the numbers, which a reader should know.

    Attributes:
        title: The observation, with its count.
        meaning: Its meaning in plain words.
        raised: Whether it was observed at all.
    """

    title: str
    meaning: str
    raised: bool


@dataclass(frozen=True, kw_only=True)
class Document:
    """The content of a report about one run.

    Attributes:
        results: The run.
        summary: The numbers of the run.
        title: Title of the suite.
        paper: Source of the expected numbers; empty if there are none.
        facts: Facts about what was run, as name and value.
        reduced: Sentences that say what was reduced compared with the paper.
        unfinished: A sentence that says what is missing; empty once the run is finished.
        findings: Sentences that state the results.
        tables: Tables by the section that they belong to.
        flags: Reasons for doubt, raised or not.
        command: The command that repeats the run.
        environment: Versions and hardware, as name and value.
    """

    results: Results
    summary: Summary
    title: str
    paper: str
    facts: tuple[tuple[str, str], ...]
    reduced: tuple[str, ...]
    unfinished: str
    findings: tuple[str, ...]
    tables: Mapping[str, tuple[Table, ...]]
    flags: tuple[Flag, ...]
    command: str
    environment: tuple[tuple[str, str], ...]

    __repr__ = one_line


def describe(results: Results, summary: Summary | None = None) -> Document:
    """Builds the content of a report.

    Args:
        results: The run, finished or not.
        summary: Its summary; None computes it.
    """
    summary = summary or summarise(results)
    suite = results.suite
    return Document(
        results=results,
        summary=summary,
        title=suite.title or suite.name,
        paper=suite.paper,
        facts=tuple(_facts(results)),
        reduced=suite.reduced,
        unfinished=_unfinished(summary),
        findings=tuple(_findings(results, summary)),
        tables=tables(results, summary),
        flags=tuple(_flags(summary)),
        command=_command(results),
        environment=tuple(_environment(results)),
    )


def _facts(results: Results) -> Iterator[tuple[str, str]]:
    suite = results.suite
    yield "Suite", suite.name
    if suite.paper:
        yield "Paper", suite.paper
    images = count(len(results.samples), f"{results.manifest['dataset']['split']} image")
    yield "Data", f"{suite.dataset}, {images}, seed {results.manifest['seed']}"
    titles = [suite.model(model).title for model in results.models]
    yield "Models", ", ".join(titles) if len(titles) <= NAMED else str(len(titles))
    origins = results.manifest.get("weights") or {}
    if others := {name: text for name, text in origins.items() if text != "shipped"}:
        yield "Weights", "; ".join(f"{suite.model(name).title} {text}" for name, text in others.items())
    elif origins:
        yield "Weights", "shipped with genrobust"
    threats = "; ".join(threat(t.norm, t.epsilon) for t in suite.threat_models)
    yield "Attacks", f"{len(suite.attacks)} ({threats})" if suite.attacks else "none"
    scales = {"paper": "as published", "small": "reduced against the paper" if suite.paper else "small"}
    yield "Scale", scales[suite.scale]


def _unfinished(summary: Summary) -> str:
    if not summary.missing:
        return ""
    failed = f", {len(summary.failures):,} of them because of an error" if summary.failures else ""
    return (
        f"This run is not finished: {count(summary.missing, 'cell')} missing{failed}. All numbers are "
        "about the images that were attacked so far, and may change. The same command continues the run."
    )


def _findings(results: Results, summary: Summary) -> Iterator[str]:
    titles = {model: results.suite.model(model).title for model in results.models}
    for row in headline(summary):
        yield _finding(row, titles)
    differing = [value for value in summary.paper if value.verdict == "differs"]
    measured = [value for value in summary.paper if value.verdict != "not measured"]
    if measured:
        yield (
            f"Of {count(len(measured), 'number')} of the paper that this run measured, {len(differing)} "
            f"{'differs' if len(differing) == 1 else 'differ'} by more than sampling error."
        )


def _finding(row: Row, titles: Mapping[str, str]) -> str:
    shares = {model: row.accuracy(model) for model in row.comparable}
    ranked = sorted(shares, key=lambda model: -shares[model].value)
    share = shares[ranked[0]]
    best = [titles[model] for model in ranked if shares[model].value == share.value]
    written = f"{percent(share.value, share.total)} ({range_of(share)})"
    where = "On clean images"
    if row.norm is not None:
        where = f"Under {row.title} with {threat(row.norm, row.epsilon)}"
    if len(ranked) == 1:
        return f"{where}, {best[0]} is right about {written} of the images."
    if len(best) == len(ranked):
        everyone = "both" if len(best) == 2 else f"all {len(best)}"
        return f"{where}, {everyone} models are right about {written} of the images."
    if len(best) > 1:
        return f"{where}, {', '.join(best[:-1])} and {best[-1]} are right most often: {written}."
    second = ranked[1]
    gap = next((p for *pair, p in row.comparisons() if set(pair) == {ranked[0], second}), None)
    if gap is None:
        return f"{where}, {best[0]} is right most often: {written}."
    verb = "differs from" if gap < SIGNIFICANT else "does not differ significantly from"
    return (
        f"{where}, {best[0]} is right most often: {written}. It {verb} {titles[second]} "
        f"({percent(shares[second].value, shares[second].total)}; McNemar's p{NBSP}{_equals(p_value(gap))})."
    )


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"={NBSP}{p}"


def _flags(summary: Summary) -> Iterator[Flag]:
    claims = summary.claims
    examples = sum(entry.examples for entry in claims)
    claimed, fell, first, zero, unstable = (
        sum(getattr(entry, n) for entry in claims)
        for n in ("claimed", "fell", "fell_first", "zero_gradient", "unstable")
    )
    invalid, undefined, unchanged = (
        sum(getattr(entry, n) for entry in claims) for n in ("invalid", "undefined", "unchanged")
    )
    yield Flag(
        title=f"{fell:,} of {count(claimed, 'claim')} of success fell",
        meaning="The toolkit called these examples adversarial. Verification with the full budget and fresh "
        "noise found that the model labels them rightly or rejects them, or that they are outside the ball. "
        f"They count as failures of the attack, which ran again on such images where the suite allows: "
        f"{first:,} fell at first. Transferred examples carry no claim.",
        raised=fell > 0,
    )
    yield Flag(
        title=f"{zero:,} of {count(examples, 'attack')} met a zero gradient",
        meaning="At these images the gradient of the cross-entropy that an attack is shown is zero. A "
        "gradient attack must fail, which says nothing about robustness. Look at attacks that use none.",
        raised=zero > 0,
    )
    yield Flag(
        title=f"{unstable:,} of {count(examples, 'verdict')} changed when judged again",
        meaning="The model decides at random, and another draw of its noise changed the verdict. These "
        "examples lie at the decision boundary. The majority counts.",
        raised=unstable > 0,
    )
    yield Flag(
        title=f"{invalid:,} of {count(examples, 'result')} were not images",
        meaning="The attack returned values that are not finite or outside [0, 1]. They do not count.",
        raised=invalid > 0,
    )
    yield Flag(
        title=f"{undefined:,} of {count(examples, 'answer')} were undefined",
        meaning="The model's output about these images is NaN or infinite. It counts as wrong, for no class.",
        raised=undefined > 0,
    )
    yield Flag(
        title=f"{unchanged:,} of {count(examples, 'result')} were the clean image",
        meaning="An attack that changes nothing says nothing about robustness, unless the clean image was "
        "wrong already. Look at the parameters of attacks that change no image.",
        raised=0 < examples == unchanged,
    )
    failed = "; ".join(f"{failure.cell}: {failure.error}" for failure in summary.failures[:5])
    yield Flag(
        title=f"{count(summary.missing, 'cell')} missing, {len(summary.failures):,} failed",
        meaning="A cell is one attack on one batch of images. "
        + (f"Errors: {failed}." if failed else "A finished run has every cell."),
        raised=summary.missing > 0,
    )


def _command(results: Results) -> str:
    suite, manifest = results.suite, results.manifest
    if manifest.get("command"):
        return str(manifest["command"])
    samples, seed = len(results.samples), manifest["seed"]
    known = [model.name for model in suite.models]
    if not set(results.models) <= set(known):  # a user's own module, which no command can name
        names = ", ".join(f"{name!r}: {name}" for name in results.models)
        return (
            f"genrobust.evaluate({{{names}}}, {suite.name!r}, scale={suite.scale!r}, "
            f"samples={samples}, seed={seed})"
        )
    parts = ["genrobust", "bench", suite.name, "--scale", suite.scale]
    parts += ["--samples", str(samples), "--seed", str(seed)]
    if list(results.models) != known:
        parts += ["--models", ",".join(results.models)]
    return shlex.join(parts)


def _environment(results: Results) -> Iterator[tuple[str, str]]:
    manifest = results.manifest
    for name, version in manifest.get("versions", {}).items():
        yield name, str(version)
    for name, value in manifest.get("environment", {}).items():
        if name not in UNTOLD and value not in (None, [], {}):
            yield name, _told(value)
    dataset = manifest.get("dataset", {})
    if "sha256" in dataset:
        yield f"data ({dataset['name']}, {dataset['split']})", f"sha256 {dataset['sha256'][:16]}…"
    models = manifest.get("models", {})
    for name, model in models.items() if isinstance(models, Mapping) else ():
        for part, weights in _weights(model):
            yield f"weights of {name}{part}", f"sha256 {weights[:16]}… on {model['device']}"
    yield "report written with Python", platform.python_version()


def _weights(settings: Mapping[str, Any], part: str = "") -> Iterator[tuple[str, str]]:
    """Yields the hash of a model's weights, and of those of the parts that a wrapper is made of."""
    if "weights" in settings:
        yield part, settings["weights"]
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _weights(value, f"{part}, {name}")


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(entry)}" for name, entry in value.items())
    return ", ".join(map(_told, value)) if isinstance(value, list) else str(value)
