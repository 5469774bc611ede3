"""The report of an audit: the answer first, then what each check found."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch

from .._files import write_atomically, write_json
from .._table import TextColumn, TextTable
from ..attacks.pgd import BallNorm
from .findings import Finding, Measured, share
from .subject import AuditBudget, Subject

__all__ = ["AuditReport"]


@final
@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit found.

    Attributes:
        model: The model's name.
        norm: The norm of the threat model.
        epsilon: The radius of its ball.
        seed: The seed of every draw.
        images: The number of images.
        clean: The share of images that the model is right about.
        believable: The share that stays right under every attack of the audit: an upper bound.
        strongest: The attack that leaves the fewest.
        attacks: The share that stays right under each attack, by name.
        findings: What each check found.
        budget: How hard the checks tried.
        seconds: How long it took.
    """

    model: str
    norm: BallNorm
    epsilon: float
    seed: int
    images: int
    clean: Measured
    believable: Measured
    strongest: str
    attacks: tuple[Measured, ...]
    findings: tuple[Finding, ...]
    budget: AuditBudget
    seconds: float

    @classmethod
    def of(
        cls, subject: Subject, findings: Sequence[Finding], *, model: str, seconds: float
    ) -> "AuditReport":
        """Returns the report of what the checks of a subject found."""
        runs = [run for run in subject.runs.values() if run.bounded]
        standing = torch.stack([run.robust for run in runs])
        order = sorted(range(len(runs)), key=lambda index: int(standing[index].sum()))
        return cls(
            model=model,
            norm=subject.norm,
            epsilon=subject.epsilon,
            seed=subject.seed,
            images=len(subject.images),
            clean=share("right about clean images", subject.right),
            believable=share("right under every attack", standing.all(0)),
            strongest=runs[order[0]].name,
            attacks=tuple(share(runs[index].name, standing[index]) for index in order),
            findings=tuple(findings),
            budget=subject.budget,
            seconds=seconds,
        )

    @property
    def answer(self) -> str:
        """The answer in one sentence."""
        raised = [finding.check for finding in self.findings if finding.raised]
        low, high = self.believable.low or 0.0, self.believable.high or 0.0
        number = (
            f"believable up to here: {100 * self.believable.value:.0f} % robust "
            f"[{100 * low:.0f}, {100 * high:.0f}] "
            f"({len(self.attacks)} attacks, the strongest is {self.strongest}; {self.images} images)"
        )
        if not raised:
            return f"{number}; no check says look again"
        if len(raised) == 1:
            return f"{number}; this check says look again: {raised[0]}"
        return f"{number}; these {_spelled(len(raised))} checks say look again: {', '.join(raised)}"

    def finding(self, check: str) -> Finding:
        """Returns what a check found.

        Raises:
            ValueError: If the check was not made.
        """
        for found in self.findings:
            if found.check == check:
                return found
        raise ValueError(
            f"Expected `check` out of {[found.check for found in self.findings]}, but got {check!r}"
        )

    def table(self) -> TextTable:
        """Builds the table of the findings; what does not apply is one line below it."""
        columns = (
            "check",
            "verdict",
            TextColumn(title="measured", prose=True),
            TextColumn(title="", prose=True),
        )
        apart = [found.check for found in self.findings if found.verdict == "does not apply"]
        notes = [f"does not apply: {', '.join(apart)}"] if apart else []
        table = TextTable(*columns, notes=notes)
        for found in self.findings:
            if found.verdict == "does not apply":
                continue
            first = found.measures[0] if found.measures else None
            advice = "" if found.advice == "Nothing." else f" {found.advice}"
            table.add_row(
                found.check,
                found.verdict,
                f"{first.label}: {first.text}" if first else "",
                f"{found.meaning}{advice}",
                style="bold" if found.raised else "",
            )
        return table

    def as_json(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return {
            "answer": self.answer,
            "model": self.model,
            "norm": self.norm,
            "epsilon": self.epsilon,
            "images": self.images,
            "seed": self.seed,
            "clean": self.clean.as_json(),
            "believable": self.believable.as_json(),
            "strongest": self.strongest,
            "attacks": [measure.as_json() for measure in self.attacks],
            "findings": [found.as_json() for found in self.findings],
            "budget": asdict(self.budget),
            "seconds": round(self.seconds, 1),
        }

    def as_html(self) -> str:
        """Returns the report as one page that loads no other file."""
        from .page import render_audit

        return render_audit(self)

    def save(self, path: Path | str) -> None:
        """Writes the report: as a page if the name ends with `.html`, otherwise as JSON."""
        if str(path).endswith(".html"):
            with write_atomically(path) as part:
                part.write_text(self.as_html(), encoding="utf-8")
        else:
            write_json(path, self.as_json())

    def __str__(self) -> str:
        return self.answer

    __repr__ = __str__


def _spelled(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[count] if count < len(words) else str(count)
