"""Accuracy and predictive entropy under a single gradient step of growing size (Li 2018, Figure 1a).

Run `python -m genrobust.benchmarks.sweep --models deep-bayes mlp bnn --dataset mnist`.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..allocation import keep_freed_memory
from ..classifier import Classifier, GenerativeClassifier
from ..data import load_dataset
from ..storage import write_json
from ..zoo import load_model, read_model

__all__ = ["SweepPoint", "fgsm_sweep"]

Loss = Literal["cross-entropy", "margin"]

EPSILONS = tuple(step / 20 for step in range(11))
_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """What a step of one size does.

    Attributes:
        epsilon: Size of the step, in the maximum norm.
        accuracy: Share of the images that are labelled rightly.
        entropy: Mean of H[p(y | x)], in nats.
    """

    epsilon: float
    accuracy: float
    entropy: float


def fgsm_sweep(
    model: Classifier,
    x: Float[Tensor, "images channels height width"],
    y: Int[Tensor, " images"],
    *,
    epsilons: tuple[float, ...] = EPSILONS,
    loss: Loss = "cross-entropy",
) -> tuple[list[SweepPoint], float]:
    """Attack with one signed gradient step (FGSM) per size; randomised models are judged with fresh noise.

    Args:
        model: The model.
        x: Clean images.
        y: Their classes.
        epsilons: Sizes of the step.
        loss: What the step climbs. The softmax of log-likelihoods saturates, and with it the gradient of the
            cross-entropy; the margin, the best wrong logit minus the right one, does not.

    Returns:
        A point for every size, and the share of images whose gradient vanishes.

    Raises:
        ValueError: If `loss` is unknown.
    """
    if loss not in get_args(Loss):
        raise ValueError(f"Expected `loss` out of {sorted(get_args(Loss))}, but got {loss!r}")
    pairs = list(zip(x.split(_BATCH), y.split(_BATCH), strict=True))
    directions = [_direction(model, images, labels, loss) for images, labels in pairs]
    judge = model.with_randomness("fresh", seed=1)
    points = []
    for epsilon in epsilons:
        correct, entropy = 0.0, 0.0
        for (images, labels), direction in zip(pairs, directions, strict=True):
            prediction = judge.predict((images + epsilon * direction).clamp(0, 1))
            correct += float((prediction.labels == labels).sum())
            entropy += float(torch.special.entr(prediction.probabilities).sum())
        points.append(SweepPoint(epsilon=epsilon, accuracy=correct / len(x), entropy=entropy / len(x)))
    vanished = sum(int((direction == 0).flatten(1).all(1).sum()) for direction in directions)
    return points, vanished / len(x)


def _direction(model: Classifier, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        if loss == "cross-entropy":
            objective = nn.functional.cross_entropy(logits, y, reduction="sum")
        else:
            right = nn.functional.one_hot(y, logits.shape[1]).bool()
            objective = (logits.masked_fill(right, -torch.inf).amax(1) - logits[right]).sum()
        (gradient,) = torch.autograd.grad(objective, leaf)
    return gradient.sign()


def main(arguments: list[str] | None = None) -> None:
    """Run the sweep and print it; write it as JSON on request."""
    parser = argparse.ArgumentParser(prog="python -m genrobust.benchmarks.sweep", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["deep-bayes", "mlp", "bnn"], help="names or files")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-root", type=Path, help="folder of <dataset>.npz")
    parser.add_argument("--images", type=int, default=500, help="of the test set's first")
    parser.add_argument("--loss", choices=get_args(Loss), default="cross-entropy")
    parser.add_argument("--samples", type=int, help="importance samples of Deep Bayes, in place of 10")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    x, y = load_dataset(options.dataset, "test", root=options.data_root).batch(slice(options.images))
    results = {}
    for name in options.models:
        model = read_model(name) if Path(name).is_file() else load_model(name, dataset=options.dataset)
        if options.samples is not None and isinstance(model, GenerativeClassifier):
            model = model.with_inference(samples=options.samples)
        points, vanished = fgsm_sweep(model, x, y, loss=options.loss)
        results[name] = {"points": [asdict(point) for point in points], "vanished_gradients": vanished}
        sys.stdout.write(f"{name}: {vanished:.1%} of the gradients vanish\n")
        for point in points:
            line = (
                f"  epsilon {point.epsilon:.2f}  accuracy {point.accuracy:.3f}  entropy {point.entropy:.3f}\n"
            )
            sys.stdout.write(line)
        sys.stdout.flush()
    if options.json:
        write_json(options.json, {"loss": options.loss, "images": len(x), "models": results})


if __name__ == "__main__":
    main()
