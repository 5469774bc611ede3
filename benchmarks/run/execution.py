"""What happens in one cell: attack a batch, re-score what came back, and make rows of it."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..._precision import without_autocast
from ...capabilities import Reclassifies
from ...contract import NO_PREDICTION, Classifier
from ...verification import (
    Calls,
    CleanVerdict,
    Pursued,
    Verification,
    fresh_variant,
    judge_examples,
    judged_with_seen,
    pursue,
)
from ..suites.model import PARTS, Attack
from .attempts import Attempt, TransferMemory, attempt, on_device
from .cells import derived_seed
from .gallery import make_gallery
from .tasks import Array, Outcome, Task

__all__ = ["execute"]


@torch.inference_mode(False)
@torch.enable_grad()
@without_autocast
def execute(task: Task, models: Mapping[str, Classifier], *, memory: TransferMemory | None = None) -> Outcome:
    """Computes one cell, with gradients even where the caller has switched them off.

    Args:
        task: The cell with its images.
        models: At least the task's models, each with the budget that verdicts are made with.
        memory: Memory of examples that are transferred to several models.
    """
    started = time.monotonic()
    model = models[task.cell.model]
    images, labels = on_device(task.images, model)
    seed = derived_seed(task.seed, task.cell.key)
    judge, attack = judge_of(task, model, seed=seed), task.attack
    made: list[Attempt] = []
    if attack is None:
        pursued = _untouched(judge, images, labels, draws=task.suite.draws)
    else:
        pursued, made = _attacked(task, attack, models, judge, images, labels, memory)
    verdict = pursued.verification
    return Outcome(
        columns=_columns(
            task, labels, pursued, made, _second_look(task, judge, verdict), seed=seed, started=started
        ),
        gallery=make_gallery(judge, task.samples, images, labels, verdict, task.images.class_names)
        if attack is not None and task.cell.batch == 0
        else None,
        examples=verdict.images.cpu().numpy() if task.keep_examples else None,
    )


def _clean_verdict(task: Task, labels: Int[Tensor, " batch"]) -> CleanVerdict | None:
    if task.clean_predictions is None:
        return None
    first = torch.tensor(task.clean_predictions).to(labels)
    if task.clean_right is None:
        return CleanVerdict.of_one_draw(first, labels)
    majority, worst = torch.tensor(task.clean_right).to(labels.device)
    return CleanVerdict(labels=first, right_majority=majority, right_worst=worst)


def _untouched(judge: Classifier, images: Tensor, labels: Tensor, *, draws: int) -> Pursued:
    """Judges the clean images."""
    none = torch.zeros_like(labels, dtype=torch.bool)
    verdict = judge_examples(
        judge, images, labels, images, norm="l2", epsilon=0.0, claimed=none, zero_gradient=none, draws=draws
    )
    return Pursued(verification=verdict, attempts=torch.zeros_like(labels), fell_first=none)


def _attacked(
    task: Task,
    attack: Attack,
    models: Mapping[str, Classifier],
    judge: Classifier,
    images: Tensor,
    labels: Tensor,
    memory: TransferMemory | None,
) -> tuple[Pursued, list[Attempt]]:
    """Attacks and judges, again where a claim fell; a claim about another model is not pursued."""
    made: list[Attempt] = []
    known = _clean_verdict(task, labels)

    def attempted(number: int, rows: Tensor) -> Verification:
        def make() -> Attempt:
            return attempt(task, attack, models, images, labels, number=number, rows=rows)

        # What is remembered is of the whole batch; a later attempt is about the rows whose claim fell.
        transferred = attack.against not in (None, *PARTS) and number == 0
        found = memory.recalled(task, attack, models, make) if memory and transferred else make()
        made.append(found)

        def verdict(chosen: Tensor, examples: Tensor, claimed: Tensor | None) -> Verification:
            return judge_examples(
                judge,
                images[rows[chosen]],
                labels[rows[chosen]],
                examples,
                norm=attack.norm,
                epsilon=task.cell.epsilon,
                claimed=found.claimed[chosen] if claimed is None else claimed,
                zero_gradient=found.zero_gradient[chosen].to(images.device),
                overshoots=task.suite.overshoots,
                lengthened=found.lengthened[chosen],
                draws=task.suite.draws,
                known_clean=None if known is None else known.at(rows[chosen]),
            )

        return judged_with_seen(verdict, images[rows], found.images, found.claimed, found.seen)

    again = task.suite.attack_again if attack.against in (None, task.cell.model) else 0
    return pursue(attempted, images=len(images), again=again), made


def _columns(
    task: Task,
    labels: Int[Tensor, " batch"],
    pursued: Pursued,
    made: Sequence[Attempt],
    second: Mapping[str, Any],
    *,
    seed: int,
    started: float,
) -> dict[str, Any]:
    cell, attack, count, verdict = task.cell, task.attack, len(task.samples), pursued.verification
    calls = sum((part.calls for part in made), Calls()).per_image(count)
    goals = made[0].goals if made else None
    predictions = _array(verdict.prediction)
    constant = {
        "suite": task.suite.name,
        "model": cell.model,
        "attack": cell.attack,
        "toolkit": attack.toolkit if attack else None,
        "target": attack.against if attack else None,
        "norm": attack.norm if attack else None,
        "epsilon": cell.epsilon,
        "queries": calls.queries,
        "gradients": calls.gradients,
        "seconds": (time.monotonic() - started) / count,
        "seed": seed,
    }
    return {name: [value] * count for name, value in constant.items()} | {
        "sample": task.samples,
        "label": labels.cpu().numpy(),
        "goal": [None] * count if goals is None else _array(goals),
        "clean_prediction": predictions if task.clean_predictions is None else task.clean_predictions,
        "prediction": [None if p == NO_PREDICTION else int(p) for p in predictions],
        "entropy": _known(verdict.entropy),
        "rejected": _array(verdict.rejected),
        "margin": _known(verdict.margins),
        **second,
        "claimed": _array(verdict.claimed),
        "valid": _array(verdict.valid),
        **{
            f"{what}{by}": _array(getattr(verdict, f"{what}{name}"))
            for what in ("right", "success")
            for by, name in (("_first", "_first"), ("", "_majority"), ("_worst", "_worst"))
        },
        "attempts": _array(pursued.attempts),
        "fell_first": _array(pursued.fell_first),
        "unstable": _array(verdict.unstable),
        "zero_gradient": _array(verdict.zero_gradient),
        **{f"distance_{norm}": _array(values) for norm, values in verdict.distances.items()},
        "overshoot": _array(verdict.overshoot),
    }


def _second_look(task: Task, judge: Classifier, verdict: Verification) -> dict[str, list[Any]]:
    """Labels what was rejected by the latent that explains it best, where the suite asks for that."""
    count = len(task.samples)
    labels: list[int | None] = [None] * count
    fooling: list[bool | None] = [None] * count
    if task.suite.reclassify and isinstance(judge, Reclassifies) and verdict.rejected.any():
        rows = verdict.rejected.nonzero()[:, 0]
        found = judge.reclassified(verdict.images[rows])
        for row, label, far in zip(rows.tolist(), *(part.tolist() for part in found), strict=True):
            labels[row], fooling[row] = label, far
    return {"reclassified": labels, "fooling": fooling}


def _known(values: Float[Tensor, " batch"]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _array(values: Tensor) -> Array:
    array: Array = values.cpu().numpy()
    return array


def judge_of(task: Task, model: Classifier, *, seed: int) -> Classifier:
    """Returns the variant that judges: fresh noise, and other candidates than an attack saw."""
    # One codebook for all verdicts of a run, so that it is decoded once. 2 + keeps it from being the attacks'
    # own, whose seed is 0 unless somebody chose it.
    codebook_seed = 2 + derived_seed(task.seed, "verdict codebook")
    return fresh_variant(model, seed=derived_seed(seed, "verdict"), codebook_seed=codebook_seed)
