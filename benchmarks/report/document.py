"""What a report says of a run, before any format: facts, findings, tables, warnings, how to do it again."""

import platform
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..results import Results
from ..statistics import Row, Summary, summarise
from .tables import SIGNIFICANT, Table, headline, tables
from .words import NBSP, count, p_value, percent, range_of, threat

__all__ = ["Document", "Flag", "describe"]


NAMED = 5  # models that a fact names one by one
UNTOLD = ("executable",)  # a path of the machine says nothing to readers


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Something that a reader should know before believing a number.

    Attributes:
        title: What was seen, with how often.
        meaning: What it means, in plain words.
        raised: Whether it was seen at all.
    """

    title: str
    meaning: str
    raised: bool


@dataclass(frozen=True, kw_only=True)
class Document:
    """What a report says of one run.

    Attributes:
        results: The run.
        summary: Its numbers.
        title: Of the suite.
        paper: Where the expected numbers are from; empty if from nowhere.
        facts: What was run, name and value.
        reduced: Sentences that say what was reduced against the paper.
        unfinished: What is missing, in a sentence; empty once the run is finished.
        findings: What came out, in sentences.
        tables: By the section that they belong to.
        flags: Reasons for doubt, raised or not.
        command: That does it again, as a user types it.
        environment: Versions and where it ran, name and value.
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


def describe(results: Results, summary: Summary | None = None) -> Document:
    """Say what a report says of a run.

    Args:
        results: The run, finished or not.
        summary: Its summary, if it is computed already.
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
    images = count(len(results.samples), "test image")
    yield "Data", f"{suite.dataset}, {images}, seed {results.manifest['seed']}"
    titles = [suite.model(model).title for model in results.models]
    yield "Models", ", ".join(titles) if len(titles) <= NAMED else str(len(titles))
    threats = "; ".join(threat(t.norm, t.epsilon) for t in suite.threat_models)
    yield "Attacks", f"{len(suite.attacks)} ({threats})" if suite.attacks else "none"
    scales = {"paper": "as published", "small": "reduced against the paper" if suite.paper else "small"}
    yield "Scale", scales[suite.scale]


def _unfinished(summary: Summary) -> str:
    if not summary.missing:
        return ""
    failed = f", {len(summary.failures):,} of them because of an error" if summary.failures else ""
    return (
        f"This run is not finished: {count(summary.missing, 'cell')} missing{failed}. Every number is of the "
        "images that were attacked so far, and may change. The same command goes on with it."
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
    claimed, fell = sum(entry.claimed for entry in claims), sum(entry.fell for entry in claims)
    zero, unstable = (sum(getattr(entry, n) for entry in claims) for n in ("zero_gradient", "unstable"))
    invalid = sum(entry.invalid for entry in claims)
    yield Flag(
        title=f"{fell:,} of {count(claimed, 'claim')} of success fell",
        meaning="The toolkit called these examples adversarial. Scored again at the full budget, with noise "
        "that the attack has not seen, the model got them right, refused them, or they were outside of the "
        "ball. They count as failures of the attack. Examples that were only transferred claim nothing.",
        raised=fell > 0,
    )
    yield Flag(
        title=f"{zero:,} of {count(examples, 'attack')} met a zero gradient",
        meaning="At these images the attacked model gave a gradient attack nothing to go by. That the attack "
        "failed there says nothing about robustness: look at attacks that use no gradient.",
        raised=zero > 0,
    )
    yield Flag(
        title=f"{unstable:,} of {count(examples, 'verdict')} changed when judged again",
        meaning="The model decides at random, and a second draw of its noise gave another verdict: these "
        "examples lie at the decision boundary. The first draw counts.",
        raised=unstable > 0,
    )
    yield Flag(
        title=f"{invalid:,} of {count(examples, 'result')} were no images",
        meaning="The attack returned values that are not finite or outside of [0, 1]. They break nothing.",
        raised=invalid > 0,
    )
    failed = "; ".join(f"{failure.cell}: {failure.error}" for failure in summary.failures[:5])
    yield Flag(
        title=f"{count(summary.missing, 'cell')} missing, {len(summary.failures):,} failed",
        meaning="A cell is one attack on one batch of images. "
        + (f"Errors: {failed}." if failed else "Every cell of a finished run is there."),
        raised=summary.missing > 0,
    )


def _command(results: Results) -> str:
    suite, manifest = results.suite, results.manifest
    if manifest.get("command"):
        return str(manifest["command"])
    samples, seed = len(results.samples), manifest["seed"]
    known = [model.name for model in suite.models]
    if not set(results.models) <= set(known):  # somebody's own module, which no command can name
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
        yield f"weights of {name}", f"sha256 {model['weights'][:16]}… on {model['device']}"
    yield "report written with Python", platform.python_version()


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(entry)}" for name, entry in value.items())
    return ", ".join(map(_told, value)) if isinstance(value, list) else str(value)
