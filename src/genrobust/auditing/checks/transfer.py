"""Do examples of other models break what the attack on the model itself does not?"""

import torch

from ..._modules import TIGHTENED_FOR_ATTACKS, cheaper
from ...capabilities import DecidesByEncoder, Defended, Tightens
from ...contract import Classifier
from ..crafting import pgd_run, transferred_run
from ..findings import Finding, concluded, share
from ..subject import Subject

__all__ = ["transfer"]

NAME, QUESTION = "transfer", "Do examples made on another model break more than the attack on this one?"


def transfer(subject: Subject) -> Finding:
    """Transfers examples from the model's own parts, and from the other models that the audit was given."""
    sources = {**_parts(subject.attacked), **subject.sources}
    if not sources:
        return Finding(
            check=NAME,
            question=QUESTION,
            verdict="does not apply",
            meaning="There is no other model to transfer from.",
            advice="Give one, such as a network that was trained on the same images, as a source.",
        )
    own, right = pgd_run(subject, starts=subject.budget.starts), subject.right
    runs = [transferred_run(subject, source, name) for name, source in sources.items()]
    broken = torch.stack([~run.robust for run in runs]).any(0)
    missed = share("broken by transfer, not by PGD on the model", broken & own.robust & right, right)
    return concluded(
        NAME,
        QUESTION,
        missed,
        fine="Examples of other models break nothing that PGD on the model itself does not.",
        accused="Examples of another model break images that PGD on the model itself does not: its gradient "
        "is masked.",
        advice="Quote the union with the transferred attacks, and look for a better surrogate gradient.",
        measures=(
            share(f"robust to {own.name}", own.robust),
            *(share(f"robust to {run.name}", run.robust) for run in runs),
        ),
    )


def _parts(model: Classifier) -> dict[str, Classifier]:
    parts: dict[str, Classifier] = {}
    if isinstance(model, Tightens):
        parts["its tightened variant"] = cheaper(model.tightened(), TIGHTENED_FOR_ATTACKS)
    if isinstance(model, DecidesByEncoder):
        parts["its encoder"] = model.encoder_view()
    if isinstance(model, Defended):
        parts["the bare classifier"] = model.bare()
    return parts
