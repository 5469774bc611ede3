"""The leaderboard put together: the rows of runs, and submissions that are verified before they count."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np

from ..._brief import one_line
from ..._claims import differences
from ..._settings import hashed
from ...contract import Classifier
from ...data import ImageDataset, dataset_names, load_dataset
from ...verification import DRAWS, Decided, Norm
from ..run.identity import kinds
from ..run.references import ModelReference, reference
from ..run.results import Results, load_results
from ..statistics import Outcomes
from ..suites.model import SuiteModel
from .standings import DECIDED, Attempted, Base, Contender, Standing, standing_of
from .submissions import SubmissionCard, read_card, read_submission
from .verifying import verified

__all__ = ["Leaderboard", "SubmissionVerdict", "build_leaderboard"]

_CIRCUMSTANCES = ("behaviour", "device")  # entries of a model in a manifest that are no settings


@dataclass(frozen=True, kw_only=True)
class SubmissionVerdict:
    """What became of a submission.

    Attributes:
        folder: Name of its folder.
        card: Its card; None if it has none that can be read.
        reason: Why it does not count; empty if it counts.
        images: Number of images that were verified.
        errors: Number of them that the model labels wrongly and accepts, by the majority of draws.
        lowered: Whether it lowered a number.
    """

    folder: str
    card: SubmissionCard | None = None
    reason: str = ""
    images: int = 0
    errors: int = 0
    lowered: bool = False

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The content of the page.

    Attributes:
        standings: A row per model, data set and threat model.
        verdicts: What became of every submission.
        left_out: Models of the runs that are not on the page, and why.
        runs: Names of the runs' folders.
    """

    standings: tuple[Standing, ...]
    verdicts: tuple[SubmissionVerdict, ...]
    left_out: tuple[tuple[str, str], ...]
    runs: tuple[str, ...]

    __repr__ = one_line


def build_leaderboard(
    runs: Sequence[Path],
    *,
    submissions: Path | None = None,
    draws: int = DRAWS,
    data_root: Path | None = None,
    folder: Path | None = None,
    device: str = "cpu",
) -> Leaderboard:
    """Builds the leaderboard of runs and submissions.

    A model of a run is loaded only for a submission against it. A submission that cannot be verified costs
    nothing but a sentence on the page.

    Args:
        runs: Folders of finished runs on test images.
        submissions: A folder of submissions, a folder each; None has none.
        draws: How often a model that draws noise decides about a submitted image, and about the clean one.
        data_root: Folder of `<dataset>.npz`.
        folder: Folder of trained models, which come before shipped ones.
        device: Where submissions are verified.

    Raises:
        ValueError: If there is no run, one is not finished or on other images than test images, or there is
            no folder of submissions.
    """
    if not runs:
        raise ValueError("Expected at least one run, but got none")
    if submissions is not None and not submissions.is_dir():
        raise ValueError(f"Expected a folder of submissions, but {submissions} is not a folder")
    board = _Board(draws=draws, data_root=data_root, folder=folder, device=device)
    for run in runs:
        board.add_run(load_results(run))
    found = [] if submissions is None else sorted(part for part in submissions.iterdir() if part.is_dir())
    verdicts = [board.add_submission(part) for part in found if not part.name.startswith(".")]
    standings = board.standings()
    lowering = {part.source for standing in standings for part in standing.lowered}
    return Leaderboard(
        standings=tuple(standings),
        verdicts=tuple(
            replace(verdict, lowered=verdict.folder in lowering and not verdict.reason)
            for verdict in verdicts
        ),
        left_out=tuple(dict.fromkeys(board.left_out)),
        runs=tuple(Path(run).resolve().name for run in runs),
    )


@final
@dataclass(eq=False, kw_only=True)
class _Ranked:
    """A model, and what is known about it so far."""

    title: str
    names: frozenset[str]
    dataset: str
    sha256: str | None
    settings: dict[str, object] | None
    source: ModelReference | None
    kinds: tuple[str, ...] = ()
    draws: int = 1
    bases: list[Base] = field(default_factory=list)
    attempts: dict[Norm, list[Attempted]] = field(default_factory=dict)
    epsilons: set[tuple[Norm, float]] = field(default_factory=set)

    @cached_property
    def model(self) -> Classifier:
        """The model, which must be the one of the run."""
        if self.source is None or not self.source.there:
            raise ValueError(
                f"Expected weights of {self.title!r} to verify it, but they are neither shipped nor in the "
                "folder of trained models"
            )
        model = self.source.load()
        here = json.loads(json.dumps(model.settings()))  # as a manifest holds them
        if self.settings is not None and (different := differences(self.settings, here)):
            raise ValueError(
                f"Expected the {self.title!r} of the run, but the one that is here differs: {different[0]}"
            )
        return model


class _Board:
    """Collects models, runs and submissions."""

    def __init__(self, *, draws: int, data_root: Path | None, folder: Path | None, device: str) -> None:
        self._draws, self._root, self._folder, self._device = draws, data_root, folder, device
        self._models: dict[str, _Ranked] = {}
        self._datasets: dict[str, ImageDataset] = {}
        self.left_out: list[tuple[str, str]] = []

    def add_run(self, results: Results) -> None:
        """Adds the models of a run that RobustBench excludes, with everything that attacked them."""
        split = results.manifest["dataset"]["split"]
        if split != "test":
            raise ValueError(f"Expected a run on test images, but {results.folder} is on {split!r}")
        outcomes = {by: Outcomes(results, by=by) for by in DECIDED}
        for name in results.models:
            ranked = self._ranked(results, name)
            known = (results.manifest.get("kinds") or {}).get(name)
            try:
                found = tuple(known) if known is not None else kinds(ranked.model)
            except (ValueError, OSError) as error:
                self.left_out.append((ranked.title, f"its run does not say what kind it is: {error}"))
                continue
            if not found:
                self.left_out.append((ranked.title, "RobustBench takes such models itself"))
                continue
            ranked.kinds = found
            if "random" in found:
                ranked.draws = max(ranked.draws, results.suite.draws)
            self._models[self._key(results, name)] = ranked
            _add_rows(ranked, results, name, outcomes)

    def add_submission(self, folder: Path) -> SubmissionVerdict:
        """Verifies a submission, and adds it to the model that it attacks; what is wrong is its reason."""
        card = None
        try:
            card = read_card(folder)
            ranked, dataset = self._attacked(card)
            submission = read_submission(folder, card, dataset)
            if not ranked.kinds:
                ranked.kinds = _excluded(ranked)
            attempt, errors = verified(
                ranked.model, dataset, submission, draws=self._draws, device=self._device
            )
        except (ValueError, TypeError, OSError, ImportError) as error:
            reason = str(error).replace(str(folder), folder.name).splitlines()[0]
            return SubmissionVerdict(folder=folder.name, card=card, reason=reason)
        if not ranked.bases:
            ranked.bases.append(Base(samples=np.arange(len(dataset))))
            ranked.draws = self._draws if "random" in ranked.kinds else 1
            self._models[f"{card.model} on {card.dataset}"] = ranked
        ranked.attempts.setdefault(card.norm, []).append(attempt)
        ranked.epsilons.add((card.norm, card.epsilon))
        return SubmissionVerdict(folder=folder.name, card=card, images=len(submission.indices), errors=errors)

    def standings(self) -> list[Standing]:
        """Returns a row per model, data set and threat model, the best of a threat model first."""
        rows = [
            standing_of(contender, epsilon)
            for ranked in self._models.values()
            for contender, epsilon in _contenders(ranked)
        ]
        return sorted(
            rows,
            key=lambda row: (
                row.contender.dataset,
                row.contender.norm,
                row.epsilon,
                -row.worst.value,
                row.contender.title,
            ),
        )

    def _key(self, results: Results, name: str) -> str:
        return hashed([results.manifest["dataset"].get("sha256"), _settings(results, name)])

    def _ranked(self, results: Results, name: str) -> _Ranked:
        """Returns the model of a run, which other runs may have attacked too."""
        known = self._models.get(self._key(results, name))
        title = results.suite.model(name).title
        if known is not None:
            known.names |= {name, title}
            return known
        try:
            source = reference(results.suite, name, folder=self._folder, device=self._device)
        except ValueError:  # a user's own model, which no name leads to
            source = None
        return _Ranked(
            title=title,
            names=frozenset({name, title}),
            dataset=results.suite.dataset,
            sha256=results.manifest["dataset"].get("sha256"),
            settings=_settings(results, name),
            source=source,
        )

    def _attacked(self, card: SubmissionCard) -> tuple[_Ranked, ImageDataset]:
        """Returns the model that a card names, and the test images."""
        ranked = [part for part in self._models.values() if part.dataset == card.dataset]
        if not ranked and card.dataset not in dataset_names():
            raise ValueError(f"Expected a data set of the runs or a registered one, but got {card.dataset!r}")
        if card.dataset not in self._datasets:
            self._datasets[card.dataset] = load_dataset(card.dataset, "test", root=self._root)
        dataset = self._datasets[card.dataset]
        found = [part for part in ranked if card.model in part.names]
        if len(found) > 1:
            raise ValueError(f"Expected the name of one model, but the runs have {len(found)} {card.model!r}")
        if found and found[0].sha256 not in (None, dataset.sha256):
            raise ValueError(f"Expected the test images of the run, but {card.dataset!r} here are others")
        return (found[0] if found else self._of_the_zoo(card)), dataset

    def _of_the_zoo(self, card: SubmissionCard) -> _Ranked:
        source = ModelReference(
            entry=SuiteModel(name=card.model, title=card.model),
            dataset=card.dataset,
            folder=self._folder,
            device=self._device,
        )
        return _Ranked(
            title=card.model,
            names=frozenset({card.model}),
            dataset=card.dataset,
            sha256=None,
            settings=None,
            source=source,
        )


def _excluded(ranked: _Ranked) -> tuple[str, ...]:
    found = kinds(ranked.model)
    if not found:
        raise ValueError(
            f"Expected a model that RobustBench excludes, but {ranked.title!r} draws no noise, and neither "
            "optimises, purifies nor rejects"
        )
    return found


def _settings(results: Results, name: str) -> dict[str, object]:
    stored = results.manifest["models"][name]
    return {key: value for key, value in stored.items() if key not in _CIRCUMSTANCES}


def _add_rows(ranked: _Ranked, results: Results, name: str, outcomes: Mapping[Decided, Outcomes]) -> None:
    source, date = results.folder.resolve().name, results.manifest.get("began") or ""
    wrong = {by: outcomes[by].clean(name).lost == 0 for by in DECIDED}
    ranked.bases.append(Base(samples=results.samples, source=source, date=date, wrong=wrong))
    for attack in results.suite.attacks_of(name):
        lost = {by: outcomes[by].attacked(name, attack).lost for by in DECIDED}
        attempt = Attempted(attack=attack.title, source=source, date=date, samples=results.samples, lost=lost)
        ranked.attempts.setdefault(attack.norm, []).append(attempt)
        ranked.epsilons.add((attack.norm, results.suite.threat_model(attack.norm).epsilon))


def _contenders(ranked: _Ranked) -> Iterator[tuple[Contender, float]]:
    for norm, attempts in ranked.attempts.items():
        contender = Contender(
            title=ranked.title,
            kinds=ranked.kinds,
            dataset=ranked.dataset,
            norm=norm,
            draws=ranked.draws,
            bases=tuple(ranked.bases),
            attempts=tuple(attempts),
        )
        for _, epsilon in sorted(pair for pair in ranked.epsilons if pair[0] == norm):
            yield contender, epsilon
