"""Tables of what models answered: targets reached, entropies, what was detected, and what was recovered."""

from collections.abc import Iterator, Mapping

from ..statistics import Entropy, Proportion, Rejections, Row, Targeted
from .table import Column, Table, TableCell
from .words import DASH, NOTHING, QUANTITIES, distance, percent, range_of, threat

__all__ = ["case_cells", "entropy_table", "rejection_tables", "share_cell", "targeted_table"]


def rejection_tables(titles: Mapping[str, str], entries: tuple[Rejections, ...]) -> Iterator[Table]:
    """Returns the effect of rejection, if anything was detected or looked at again."""
    content = []
    for entry in entries:
        shares = (entry.detection, entry.reclassified, entry.recovered)
        if any(shares):
            content.append((*case_cells(titles, entry.model, entry), *map(share_cell, shares)))
    if content:
        yield Table(
            key="rejections",
            title="Effect of rejection",
            caption="At one ε alone. Detection: rejected, among the examples that fool what was attacked. "
            "Reclassified rightly: among the rejected. Accuracy with reclassification: of all images.",
            columns=(
                Column(title="model", numeric=False),
                Column(title="images", numeric=False),
                *(Column(title=QUANTITIES[name]) for name in ("detection", "reclassified", "recovered")),
            ),
            rows=tuple(content),
        )


def case_cells(
    titles: Mapping[str, str], model: str, of: Rejections | Row | Targeted
) -> tuple[TableCell, TableCell]:
    """Returns a model's title, and which images its numbers are about."""
    images = ", ".join(filter(None, (of.title, threat(of.norm, of.epsilon))))
    return TableCell(text=titles[model]), TableCell(text=images)


def share_cell(share: Proportion | None) -> TableCell:
    """Returns a share with its interval."""
    if share is None:
        return TableCell(text=NOTHING)
    return TableCell(text=percent(share.value, share.total), detail=range_of(share), order=share.value)


def targeted_table(titles: Mapping[str, str], entries: tuple[Targeted, ...]) -> Table:
    """Returns what targeted attacks reached, and how long the perturbations that have success are."""
    content = []
    for entry in entries:
        length = TableCell(text=NOTHING)
        if entry.length is not None:
            ends = f"{distance(entry.low)}{DASH}{distance(entry.high)}"
            length = TableCell(text=distance(entry.length), detail=ends, order=entry.length)
        content.append((*case_cells(titles, entry.model, entry), share_cell(entry.reached), length))
    return Table(
        key="targeted",
        title="Targeted attacks",
        caption="Target reached: labelled as the class that the attack goes for, among all attempts. Mean "
        "distance: of images that the model had right and labels wrongly, as any class.",
        columns=(
            Column(title="model", numeric=False),
            Column(title="images", numeric=False),
            *(Column(title=QUANTITIES[name]) for name in ("reached", "mean_distance")),
        ),
        rows=tuple(content),
    )


def entropy_table(titles: Mapping[str, str], entries: tuple[Entropy, ...]) -> Table:
    """Returns the mean predictive entropies of all models, attack by attack."""
    titles_of = {(entry.key, entry.norm, entry.epsilon): entry.title for entry in entries}
    found = {(entry.key, entry.epsilon, entry.model): entry for entry in entries}
    content = []
    for (key, norm, epsilon), title in titles_of.items():
        mine = [found.get((key, epsilon, model)) for model in titles]
        cells = [
            TableCell(text=f"{entry.value:.3g}", order=entry.value) if entry else TableCell(text=NOTHING)
            for entry in mine
        ]
        content.append((TableCell(text=title, detail=threat(norm, epsilon)), *cells))
    return Table(
        key="entropy",
        title="Predictive entropy",
        caption="The mean of H[p(y | x)] over all images, in nats. A model that grows unsure under an attack "
        "gives the attack away.",
        columns=(Column(title="attack", numeric=False), *(Column(title=title) for title in titles.values())),
        rows=tuple(content),
    )
