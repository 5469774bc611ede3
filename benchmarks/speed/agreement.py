"""Compare decisions with those of the published schedule: `python -m genrobust.benchmarks.speed.agreement`.

On clean images, on images with Gaussian noise, and on adversarial examples crafted against either of them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...allocation import keep_freed_memory
from ...data import load_dataset
from ...models.latent import LatentClassifier
from ...storage import write_json
from ...zoo import load_model

__all__ = ["compare", "main", "projected_gradient_descent"]

GAUSSIAN = 0.3
EPSILON = 1.5
BATCH = 100


def main(arguments: list[str] | None = None) -> None:
    """Compare the two, print and write what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m genrobust.benchmarks.speed.agreement", description=__doc__
    )
    parser.add_argument("--model", default="abs")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--images", type=int, default=10_000, help="clean and noisy")
    parser.add_argument("--attacked", type=int, default=500, help="of them")
    parser.add_argument("--attack-steps", type=int, default=40)
    parser.add_argument(
        "--attack-budget", default="", help="such as candidates=1000,steps=10: while attacking"
    )
    parser.add_argument("--warm-start", action="store_true", help="attack also with warm starts")
    parser.add_argument("--method", default="bfgs", help="what is compared with adam")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    model = load_model(options.model, dataset=options.dataset)
    assert isinstance(model, LatentClassifier)  # noqa: S101
    fast, slow = model.with_inference(method=options.method), model.with_inference(method="adam")
    x, y = load_dataset(options.dataset, "test", root=options.data_root).batch(torch.arange(options.images))
    generator = torch.Generator().manual_seed(0)
    noisy = (x + GAUSSIAN * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    results = {"clean": compare(fast, slow, x, y), f"gaussian {GAUSSIAN}": compare(fast, slow, noisy, y)}
    changes: dict[str, Any] = {
        name: int(value)
        for name, value in (part.split("=") for part in options.attack_budget.split(",") if part)
    }
    attackers = {"fast": fast.with_inference(**changes), "slow": slow.with_inference(**changes)}
    if options.warm_start:
        attackers["fast, warm"] = fast.with_inference(**changes, warm_start=True)
    attacked, labels = x[: options.attacked], y[: options.attacked]
    for name, attacker in attackers.items():
        parts = zip(attacked.split(BATCH), labels.split(BATCH), strict=True)
        found = [projected_gradient_descent(attacker, *part, steps=options.attack_steps) for part in parts]
        results[f"attacked: {name}"] = compare(fast, slow, torch.cat(found), labels)
    for name, row in results.items():
        sys.stdout.write(f"{name}: {', '.join(f'{key} {value:.4f}' for key, value in row.items())}\n")
    if options.json:
        write_json(options.json, results)


@torch.no_grad()
def compare(
    fast: LatentClassifier,
    slow: LatentClassifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
) -> dict[str, float]:
    """Give the agreement of decisions, both accuracies, and the differences of the objectives in nats."""
    ours, theirs = (torch.cat([m.class_scores(part) for part in x.split(BATCH)]) for m in (fast, slow))
    return {
        "images": float(len(x)),
        "same decision": float((ours.argmax(1) == theirs.argmax(1)).float().mean()),
        "accuracy fast": float((ours.argmax(1) == y).float().mean()),
        "accuracy slow": float((theirs.argmax(1) == y).float().mean()),
        "winning objective difference": float((theirs.amax(1) - ours.amax(1)).mean()),
        "objective difference": float((theirs - ours).mean()),
    }


def projected_gradient_descent(
    model: LatentClassifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    steps: int,
    epsilon: float = EPSILON,
) -> Float[Tensor, "batch channels height width"]:
    """Maximise the margin of the best other class within an L2 ball (Madry et al. 2018), from the image.

    Gives the first example that is misclassified, and the last iterate where none is.
    """
    own = torch.nn.functional.one_hot(y, model.num_classes).bool()
    adversarial, best = x.clone(), x.clone()
    found = torch.zeros_like(y, dtype=torch.bool)
    for _ in range(steps + 1):
        leaf = adversarial.clone().requires_grad_()
        scores = model.class_scores(leaf)
        margin = scores.masked_fill(own, -torch.inf).amax(1) - scores[own]
        [gradient] = torch.autograd.grad(margin.sum(), leaf)
        best = torch.where(found[:, None, None, None], best, adversarial)
        found |= margin.detach() > 0
        length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
        moved = adversarial + 2.5 * epsilon / steps * gradient / length - x
        distance = moved.flatten(1).norm(dim=1).clamp_min(epsilon)[:, None, None, None]
        adversarial = (x + moved * (epsilon / distance)).clamp(0, 1)
    return best
