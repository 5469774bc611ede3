"""The page of one or several runs: one HTML file that loads no other file, also not from the network."""

from collections.abc import Sequence
from dataclasses import dataclass

from .curves import HEIGHT, WIDTH, Panel, mark, panels, style
from .document import Document
from .galleries import Gallery, galleries
from .templates import fill

__all__ = ["render_page"]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The parts of a run that the template shows.

    Attributes:
        document: The content of the report.
        panels: The curves.
        legend: Titles of the models, in the order of their line styles.
        galleries: Galleries by model.
        sections: Names and titles of the sections that are not empty.
    """

    document: Document
    panels: tuple[Panel, ...]
    legend: tuple[str, ...]
    galleries: dict[str, list[Gallery]]
    sections: tuple[tuple[str, str], ...]


def render_page(documents: Sequence[Document]) -> str:
    """Returns the page as text.

    Args:
        documents: The content about every run, in the order of the page.

    Raises:
        ValueError: If `documents` is empty.
    """
    if not documents:
        raise ValueError("Expected at least one run, but got none")
    return fill(
        "benchmarks/report/page.html",
        title=documents[0].title if len(documents) == 1 else f"{len(documents)} benchmark runs",
        runs=[_run(document) for document in documents],
        size=(WIDTH, HEIGHT),
        mark=mark,
        style_of=style,
    )


def _run(document: Document) -> _Run:
    results, summary = document.results, document.summary
    drawn, shown = tuple(panels(results, summary)), galleries(results)
    sections = {
        "result": ("Result", True),
        "paper": ("Comparison with the paper", bool(document.tables["paper"])),
        "curves": ("Accuracy against perturbation", bool(drawn)),
        "rejections": ("Models that reject", bool(document.tables["rejections"])),
        "attacks": ("Attack by attack", bool(document.tables["attacks"])),
        "galleries": ("Examples", bool(shown)),
        "health": ("Is it credible?", True),
        "again": ("Do it again", True),
    }
    return _Run(
        document=document,
        panels=drawn,
        legend=tuple(results.suite.model(model).title for model in results.models),
        galleries=shown,
        sections=tuple((name, title) for name, (title, there) in sections.items() if there),
    )
