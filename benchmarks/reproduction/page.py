"""The page of a reproduction as Markdown."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ..report.table import Column, Table, TableCell
from ..report.tables import paper_cells
from ..report.texts import markdown_table, markdown_text
from ..report.words import NBSP, QUANTITIES, count, percent, range_of, threat
from ..run.references import ModelReference, reference
from ..suites.model import Suite
from .claims import JudgedCheck, JudgedClaim, MeasuredRun, judge_claim
from .numbers import (
    BETTER,
    FALLS,
    NOT_HERE,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    JudgedNumber,
    ReproductionVerdict,
)
from .papers import PaperItem, PaperRecord, published_suite

__all__ = ["render_reproduction"]

MEANINGS: Mapping[ReproductionVerdict, str] = {
    REPRODUCED: "The difference is within the sampling error of the paper and of the run. An order of two "
    "models is reproduced if the interval of their difference lies on the claimed side. A bound is "
    "reproduced if our interval reaches it.",
    BETTER: "The difference exceeds the sampling error, to the good of a defended model: more accuracy, "
    "fewer errors, longer perturbations, fewer targets reached, more detection. A rejection rate has no "
    "better side. A number of an undefended model under an attack has none either.",
    NOT_REPRODUCED: "The difference exceeds the sampling error in any other way. An order of two models "
    "is not reproduced if the interval of their difference lies on the other side.",
    FALLS: "The paper's attack reproduces the number, or leaves more. All attacks of the run together, in "
    "the same norm and at the same epsilon, leave significantly less than the lowest number of the paper "
    "there. An order of two models falls if it does not hold under all attacks.",
    UNDECIDED: "The interval of the difference of two models has both sides: more images would decide.",
    NOT_MEASURED: "No run that was given has the number.",
    NOT_HERE: "The reason stands beside it.",
}
NO_RUN = "no run was given"
SHOWN = ("leaderboard", "rejections")  # tables of a run whose paper prints no numbers


def render_reproduction(runs: Sequence[MeasuredRun], papers: Sequence[PaperRecord]) -> str:
    """Returns the page as Markdown; what runs say is escaped.

    Args:
        runs: The runs, finished or not.
        papers: The papers, in the order of the page.
    """
    claims = {paper.source: [judge_claim(claim, runs) for claim in paper.claims] for paper in papers}
    known = {name for paper in papers for name in paper.suites}
    others = [run for run in runs if run.results.suite.name not in known]
    parts = [
        "# Reproduction of papers",
        f"{count(len(papers), 'paper')}, {count(len(runs), 'run')}. All verdicts are computed from the runs. "
        f"Intervals are of 95{NBSP}%.",
        markdown_table(_meanings()),
        "## Summary",
        markdown_table(_summary(papers, claims)),
        *(part for paper in papers for part in _evidence(paper, claims[paper.source])),
        "## Tables and figures",
        *(part for paper in papers for part in _items(paper, runs)),
        "## Numbers",
    ]
    for paper in papers:
        mine = [run for run in runs if run.results.suite.name in paper.suites]
        parts += [part for run in mine for part in _run(run, f"{paper.name}: ")]
    parts += [part for run in others for part in _run(run, "")]
    if not runs:
        parts.append(f"{NO_RUN.capitalize()}.")
    return "\n\n".join(parts) + "\n"


def _table(titles: Mapping[str, bool], rows: Sequence[Sequence[str | TableCell]]) -> Table:
    """Returns a table of cells; `titles` says which columns are numeric."""
    cells = [[TableCell(text=cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    return Table(
        key="",
        title="",
        caption="",
        columns=tuple(Column(title=title, numeric=numeric) for title, numeric in titles.items()),
        rows=tuple(map(tuple, cells)),
    )


def _words(*titles: str) -> dict[str, bool]:
    return dict.fromkeys(titles, False)


def _meanings() -> Table:
    return _table(_words("verdict", "meaning"), list(MEANINGS.items()))


def _summary(papers: Sequence[PaperRecord], claims: Mapping[str, Sequence[JudgedClaim]]) -> Table:
    rows = [
        (paper.source, judged.claim.text, _strong(judged.verdict), judged.claim.reason or _held(judged))
        for paper in papers
        for judged in claims[paper.source]
    ]
    return _table(_words("paper", "claim", "verdict", "checks"), rows)


def _strong(verdict: ReproductionVerdict) -> TableCell:
    return TableCell(text=verdict, strong=verdict in (NOT_REPRODUCED, FALLS))


def _held(judged: JudgedClaim) -> str:
    return "; ".join(
        f"{name}: {_counted(part)}"
        for name, part in (("paper's attacks", judged.checks), ("stronger attacks", judged.stronger))
        if part
    )


def _counted(judged: Sequence[JudgedCheck | JudgedNumber]) -> str:
    """Returns how often each verdict was found, the best first."""
    found = Counter(entry.verdict for entry in judged)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in MEANINGS if found[verdict])


def _evidence(paper: PaperRecord, claims: Sequence[JudgedClaim]) -> Iterator[str]:
    yield f"### {markdown_text(f'{paper.name} ({paper.source})')}"
    for number, judged in enumerate(claims, 1):
        yield f"{number}. {markdown_text(judged.claim.text)} **{judged.verdict.capitalize()}.**"
        if judged.claim.reason:
            yield markdown_text(f"Reason: {judged.claim.reason}.")
        measured = [entry for entry in (*judged.checks, *judged.stronger) if entry.run]
        without = [entry.check.suite for entry in (*judged.checks, *judged.stronger) if not entry.run]
        if measured:
            columns = {
                **_words("suite", "run", "model", "under", "claimed"),
                "ours": True,
                "all attacks": True,
                "images": True,
                "verdict": False,
            }
            yield markdown_table(_table(columns, list(map(_check_row, measured))))
        if without:
            yield f"No run has {count(len(without), 'number')} of {', '.join(dict.fromkeys(without))}."


def _check_row(judged: JudgedCheck) -> tuple[str | TableCell, ...]:
    check = judged.check
    return (
        check.suite,
        judged.run,
        judged.model,
        f"{judged.under} {threat(judged.norm, check.epsilon)}".rstrip(),
        f"{QUANTITIES[check.quantity]}, {judged.claimed}",
        judged.ours,
        judged.strongest,
        f"{judged.images:,}",
        _strong(judged.verdict),
    )


def _items(paper: PaperRecord, runs: Sequence[MeasuredRun]) -> Iterator[str]:
    yield f"### {markdown_text(f'{paper.name} ({paper.source})')}"
    columns = {**_words("item", "content", "suite", "run"), "images": True}
    columns |= _words("numbers", "command")
    rows = [row for item in paper.items for row in _item_rows(item, runs)]
    yield markdown_table(_table(columns, rows))


def _item_rows(item: PaperItem, runs: Sequence[MeasuredRun]) -> Iterator[tuple[str | TableCell, ...]]:
    head = (item.name, item.content)
    if item.reason:
        yield *head, "", "", "", f"{NOT_HERE}: {item.reason}", ""
    if item.command:
        yield *head, "", "", "", "a picture, which the command draws", item.command
    for name in item.suites:
        mine = [run for run in runs if run.results.suite.name == name]
        for run in mine:
            told = "; ".join(filter(None, (_numbers(run), item.note)))
            images = f"{len(run.results.samples):,}"
            yield *head, name, run.name, images, told, run.document.command
        if not mine:
            suite = published_suite(name)
            command = f"genrobust bench {name} --scale {suite.scale}"
            told = "; ".join(filter(None, (_unshipped(suite), item.note)))
            yield *head, name, NO_RUN, "", told, command


def _numbers(run: MeasuredRun) -> str:
    missing = f"unfinished, {count(run.summary.missing, 'cell')} missing" if run.summary.missing else ""
    if not run.counts:
        return f"on {run.results.suite.dataset}, not the paper's images"
    found = _counted(run.numbers) or "the paper prints none"
    return "; ".join(filter(None, (found, missing)))


def _unshipped(suite: Suite) -> str:
    """Returns which weights a run of a suite needs first."""
    absent = [name for model in suite.models for name in _absent(reference(suite, model.name))]
    return f"needs training first: {', '.join(dict.fromkeys(absent))}" if absent else ""


def _absent(source: ModelReference) -> Iterator[str]:
    """Yields the names in the zoo of the parts of a model that are not shipped."""
    parts = source.parts or (source,)
    for part in (*parts, *([source.guard] if source.guard else [])):
        if not part.shipped:
            yield part.entry.weights


def _run(run: MeasuredRun, prefix: str) -> Iterator[str]:
    """Yields the section of a run."""
    document, suite = run.document, run.results.suite
    yield f"### {markdown_text(f'{prefix}{suite.name}, run {run.name}')}"
    facts = [("Title", document.title), *document.facts, ("Command", document.command)]
    yield markdown_table(_table(_words("fact", "value"), facts))
    if document.unfinished:
        yield f"**Unfinished.** {markdown_text(document.unfinished)}"
    if run.numbers:
        yield markdown_table(_judged_table(run))
    else:
        yield f"The run has no number of {'the paper' if document.paper else 'a paper'}. These are ours."
        for table in (table for name in SHOWN for table in document.tables[name]):
            yield markdown_text(f"{table.title}: {table.caption}")
            yield markdown_table(table)
    if document.reduced:
        yield "What differs from the paper:"
        yield "\n".join(f"- {markdown_text(line)}" for line in document.reduced)


def _judged_table(run: MeasuredRun) -> Table:
    columns = {
        **_words("model", "attack", "threat model", "quantity"),
        **dict.fromkeys(("paper", "ours by the paper's attack", "ours by all attacks", "images"), True),
        "verdict": False,
    }
    return _table(columns, [_number_row(run, number) for number in run.numbers])


def _number_row(run: MeasuredRun, number: JudgedNumber) -> tuple[str | TableCell, ...]:
    value, strongest = number.value, number.strongest
    paper, ours, _ = paper_cells(value)
    union = TableCell(text="")
    if strongest is not None:
        union = TableCell(text=percent(strongest.value, strongest.total), detail=range_of(strongest))
    return (
        run.results.suite.model(value.model).title,
        value.title,
        threat(value.norm, value.epsilon),
        QUANTITIES[value.quantity],
        paper,
        ours,
        union,
        f"{value.total:,}" if value.total else "",
        _strong(number.verdict),
    )
