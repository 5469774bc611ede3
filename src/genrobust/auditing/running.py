"""An audit from the first check to the report."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from .._console import say
from .._fields import check_seed
from .._modules import cheaper
from .._precision import without_autocast
from ..attacks.pgd import BallNorm
from ..checks import check_labels
from ..external import as_classifier
from ..randomness import isolated_rng
from ..verification import check_epsilon, check_norm
from .checks import CHECKS
from .crafting import pgd_run
from .findings import Finding
from .report import AuditReport
from .subject import AuditBudget, Subject

__all__ = ["audit"]


@without_autocast
def audit(
    model: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channels height width"],
    labels: Integer[Tensor, " batch"],
    *,
    norm: BallNorm = "linf",
    epsilon: float,
    attacked: Callable[[Tensor], Tensor] | None = None,
    sources: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    budget: AuditBudget | None = None,
    checks: Sequence[str] | None = None,
    seed: int = 0,
    name: str | None = None,
    show_progress: bool = True,
) -> AuditReport:
    """Audits a model as `genrobust.audit` says."""
    chosen = tuple(CHECKS) if checks is None else tuple(checks)
    if unknown := sorted(set(chosen) - set(CHECKS)):
        raise ValueError(f"Expected `checks` out of {list(CHECKS)}, but got {unknown}")
    begun, seed = time.monotonic(), check_seed(seed)
    with torch.inference_mode(False), isolated_rng(seed):
        subject = _subject(
            model, images, labels, norm=norm, epsilon=epsilon, attacked=attacked, budget=budget, seed=seed
        )
        subject = replace(
            subject,
            sources={title: as_classifier(source, images) for title, source in (sources or {}).items()},
        )
        findings: list[Finding] = []
        for check in chosen:
            found = CHECKS[check](subject)
            findings.append(found)
            if show_progress:
                say(f"{check}: {found.verdict} ({time.monotonic() - begun:.0f} s)", style="dim", stderr=True)
        pgd_run(subject, starts=subject.budget.starts)  # the number needs one attack at least
    return AuditReport.of(
        subject,
        findings,
        model=name or type(subject.model).__name__,
        seconds=time.monotonic() - begun,
    )


def _subject(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    norm: BallNorm,
    epsilon: float,
    attacked: Callable[[Tensor], Tensor] | None,
    budget: AuditBudget | None,
    seed: int,
) -> Subject:
    deployed = as_classifier(model, images)
    deployed.check(images)
    if check_norm(norm) not in ("linf", "l2"):
        raise ValueError(f"Expected `norm` to be 'linf' or 'l2' for an audit, but got {norm!r}")
    radius = check_epsilon(epsilon, norm=norm, input_shape=deployed.input_shape)
    classes = check_labels(labels, count=len(images), num_classes=deployed.num_classes, device=images.device)
    if len(images) < 2:
        raise ValueError(f"Expected at least 2 `images`, but got {len(images)}")
    allowed = AuditBudget.fitting(deployed) if budget is None else budget
    effort = {"candidates": allowed.candidates, "steps": allowed.refinement}
    crafted = cheaper(deployed, effort) if attacked is None else as_classifier(attacked, images)
    if crafted.randomized:
        crafted = crafted.with_randomness("fixed", seed=seed)
    return Subject(
        model=deployed,
        attacked=crafted,
        images=deployed.check(images.detach().clone()),
        labels=classes.clone(),
        norm=norm,
        epsilon=radius,
        seed=seed,
        budget=allowed,
    )
