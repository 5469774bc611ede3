"""What a classifier that may refuse is worth: the protocol of Ghosh et al. 2019 beside an adaptive one.

Run `python -m genrobust.benchmarks.selective --model gmvae --dataset mnist`. The paper attacks the encoder
alone, by FGSM. The adaptive attacks know both thresholds: PGD on the K + 1 logits, and the paper's eq. 10 in
a ball, each with every other class as target; an error is a wrong label that is not rejected.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..adapters._foolbox import wrap_for_foolbox
from ..adapters.verification import attack_every_class, without_gradient
from ..allocation import keep_freed_memory
from ..attacks import threshold_attack
from ..classifier import Classifier
from ..data import load_dataset
from ..models.gmvae import GMVAE
from ..randomness import isolated_rng
from ..selective import Detector, SelectiveClassifier, read_detectors, reclassify, risk_coverage
from ..storage import write_json
from ..zoo import load_detectors, load_model, read_model
from ..zoo.building import calibrate_thresholds

__all__ = ["PUBLISHED", "Outcome", "main", "outcome"]

EPSILONS = (0.06, 0.12, 0.18, 0.24, 0.30)
BATCH = 500
NAMES = {"pgd": "PGD through both thresholds", "thresholds": "eq. 10"}

PUBLISHED: dict[str, dict[str, Any]] = {  # MNIST: Tables 1 and 2, and section 4
    "gmvae": {
        "plain": 0.9967,
        "selective": (0.9797, 0.0022, 0.0181),
        "worst error": 0.0389,
        "reclassified": (0.97, 0.93, 0.91, 0.87, 0.87),
        "overall": 0.9907,
    },
    "gmvae-semi": {"plain": 0.991, "selective": (0.9817, 0.0052, 0.0131)},
}

Images = Float[Tensor, "images channels height width"]
Labels = Int[Tensor, " images"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Shares of images, which sum to one; all are 0 where there are no images.

    Attributes:
        accuracy: Accepted, with the right label.
        error: Accepted, with a wrong one.
        rejection: Rejected.
    """

    accuracy: float
    error: float
    rejection: float

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.2%}, error {self.error:.2%}, rejection {self.rejection:.2%}"


def outcome(decisions: Labels, y: Labels, *, num_classes: int) -> Outcome:
    """Count decisions, of which K is "reject"."""
    right, rejected = decisions == y, decisions == num_classes
    parts = {"accuracy": right, "error": ~right & ~rejected, "rejection": rejected}
    return Outcome(**{name: int(part.sum()) / max(1, len(y)) for name, part in parts.items()})


def main(arguments: list[str] | None = None) -> None:
    """Measure everything, print it beside the paper, and write it as JSON on request."""
    options = _options(arguments)
    keep_freed_memory()
    model = _model(options)
    classifier = SelectiveClassifier(model, list(_detectors(model, options).values()))
    published = PUBLISHED.get(options.model, {}) if options.dataset == "mnist" else {}
    test = load_dataset(options.dataset, "test", root=options.data_root)
    x, y = (part.to(options.device) for part in test.batch(slice(options.images)))
    all_x, all_y = (part.to(options.device) for part in test.batch(slice(options.clean_images)))
    few = slice(options.adaptive_images)
    results = {
        "model": options.model,
        "dataset": options.dataset,
        "thresholds": {detector.evidence: detector.thresholds for detector in classifier.detectors},
        "published": published,
        "clean": _clean(classifier, all_x, all_y, published),
        "encoder": _against_encoder(classifier, x, y, published),
        "adaptive": [_adaptive(classifier, x[few], y[few], epsilon, options) for epsilon in options.epsilons],
    }
    if options.json:
        write_json(options.json, results)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m genrobust.benchmarks.selective", description=__doc__)
    parser.add_argument("--model", default="gmvae", help="shipped model, and column of the paper's tables")
    parser.add_argument("--weights", type=Path, help="file of weights, in place of the shipped ones")
    parser.add_argument("--detectors", type=Path, help="file of thresholds, in place of the shipped ones")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-root", type=Path, help="folder of <dataset>.npz")
    parser.add_argument("--clean-images", type=int, help="test images of Table 1; all by default")
    parser.add_argument(
        "--images", type=int, default=1000, help="test images that the encoder is attacked on"
    )
    parser.add_argument("--adaptive-images", type=int, default=100, help="of these, attacked adaptively")
    parser.add_argument("--steps", type=int, default=40, help="of PGD")
    parser.add_argument("--threshold-steps", type=int, default=200, help="of the attack of eq. 10")
    parser.add_argument(
        "--epsilons", type=float, nargs="+", default=list(EPSILONS), help="of the adaptive ones"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser.parse_args(arguments)


def _model(options: argparse.Namespace) -> GMVAE:
    weights = options.weights
    model = read_model(weights) if weights else load_model(options.model, dataset=options.dataset)
    if not isinstance(model, GMVAE):
        raise ValueError(f"Expected a GMVAE, but got {type(model).__name__}")
    return model.to(options.device)


def _detectors(model: GMVAE, options: argparse.Namespace) -> dict[str, Detector]:
    """Read the thresholds; of weights from a file, measure them on training images."""
    if options.detectors is not None:
        return read_detectors(options.detectors)
    if options.weights is None:
        return load_detectors(options.model, dataset=options.dataset)
    return calibrate_thresholds(model, load_dataset(options.dataset, "train", root=options.data_root))


def _clean(
    classifier: SelectiveClassifier, x: Images, y: Labels, published: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure Table 1, the risk-coverage curve, and what reclassification recovers."""
    count = partial(outcome, num_classes=classifier.num_classes)
    forced, decided = _decisions(classifier.model, x), _decisions(classifier, x)
    margins = _by_parts(classifier.margins, x)
    rejected = decided == classifier.num_classes
    plain = float((forced == y).double().mean())
    first = count(decided, y)
    strict, forced_too = _reclassified(classifier, x[rejected])
    again = count(strict, y[rejected])
    overall = count(decided.masked_scatter(rejected, strict), y)
    labelled = count(decided.masked_scatter(rejected, forced_too), y)
    area = risk_coverage(margins, forced != y).area
    _say(f"{len(x)} clean images: accuracy without thresholds {plain:.2%}", published.get("plain"))
    _say(f"  with thresholds: {first}", published.get("selective"))
    _say(f"  area under the risk-coverage curve: {area:.5f}")
    _say(f"  the {int(rejected.sum())} rejected, reclassified: {again}")
    _say(f"  after reclassification: {overall}")
    _say(f"  the same, every one given a label: accuracy {labelled.accuracy:.2%}", published.get("overall"))
    return {
        "images": len(x),
        "plain_accuracy": plain,
        "selective": asdict(first),
        "risk_coverage_area": area,
        "reclassified": asdict(again),
        "overall": asdict(overall),
        "overall_without_rejection": asdict(labelled),
    }


def _against_encoder(
    classifier: SelectiveClassifier, x: Images, y: Labels, published: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Attack the encoder by FGSM (Figure 3), and reclassify what was rejected (Table 2)."""
    import foolbox

    model = classifier.model
    if not isinstance(model, GMVAE):
        raise ValueError(f"Expected a GMVAE, but got {type(model).__name__}")
    encoder = model.encoder_view()
    attacked, masked = wrap_for_foolbox(encoder), _masked(encoder, x, y)
    attack = foolbox.attacks.LinfFastGradientAttack()
    count = partial(outcome, num_classes=classifier.num_classes)
    rows: list[dict[str, Any]] = []
    _say(f"the encoder has no gradient at {masked:.2%} of {len(x)} images")
    for epsilon, paper in zip(EPSILONS, published.get("reclassified", [None] * len(EPSILONS)), strict=True):
        parts = zip(x.split(BATCH), y.split(BATCH), strict=True)
        with isolated_rng(0):
            images = torch.cat([attack(attacked, *part, epsilons=epsilon)[1] for part in parts])
        decided = _decisions(classifier, images)
        rejected = decided == classifier.num_classes
        plain, selective = count(_decisions(model, images), y), count(decided, y)
        again = _reclassified(classifier, images[rejected])
        strict, forced = (count(labels, y[rejected]) for labels in again)
        _say(f"FGSM on the encoder, epsilon {epsilon:.2f}, {len(x)} images: {selective}")
        _say(f"  without thresholds: {plain}")
        _say(f"  the {int(rejected.sum())} rejected, reclassified: {strict}")
        _say(f"  the same, every one given a label: accuracy {forced.accuracy:.2%}", paper)
        rows.append(
            {
                "epsilon": epsilon,
                "zero_gradient": masked,
                "plain": asdict(plain),
                "selective": asdict(selective),
                "reclassified": asdict(strict),
                "reclassified_without_rejection": asdict(forced),
            }
        )
    _say(f"  worst error {max(row['selective']['error'] for row in rows):.2%}", published.get("worst error"))
    return rows


def _adaptive(
    classifier: SelectiveClassifier, x: Images, y: Labels, epsilon: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Attack the K + 1 logits by PGD, and both thresholds by eq. 10, towards every other class."""
    import foolbox

    wrapped = wrap_for_foolbox(classifier)
    pgd = foolbox.attacks.LinfPGD(steps=options.steps, random_start=False)

    def by_pgd(target: Labels) -> Images:
        criterion = foolbox.criteria.TargetedMisclassification(target)
        images: Tensor = pgd(wrapped, x, criterion, epsilons=epsilon)[1]
        return images

    def by_thresholds(target: Labels) -> Images:
        return threshold_attack(classifier, x, target, epsilon=epsilon, steps=options.threshold_steps)

    row: dict[str, Any] = {"epsilon": epsilon, "images": len(x)}
    either = torch.zeros_like(y, dtype=torch.bool)
    for name, attack in {"pgd": by_pgd, "thresholds": by_thresholds}.items():
        with isolated_rng(0):
            _, found = attack_every_class(attack, classifier, x, y, "linf", epsilon)
        either |= found.success
        shares = {"error": found.success, "zero_gradient": found.zero_gradient}
        row[name] = {key: float(share.double().mean()) for key, share in shares.items()}
        _say(f"{NAMES[name]}, epsilon {epsilon:.2f}, {len(x)} images: error {row[name]['error']:.2%}")
    _say(f"  no gradient at {row['pgd']['zero_gradient']:.2%}")
    row["either"] = {"error": float(either.double().mean())}
    _say(f"  either of them: error {row['either']['error']:.2%}")
    return row


def _masked(model: Classifier, x: Images, y: Labels) -> float:
    """Give the share of images at which an attack on the logits has nothing to go by."""
    parts = zip(x.split(BATCH), y.split(BATCH), strict=True)
    found = [
        without_gradient(model, images, partial(cross_entropy, target=labels, reduction="sum"))
        for images, labels in parts
    ]
    return float(torch.cat(found).double().mean())


def _reclassified(classifier: SelectiveClassifier, x: Images) -> tuple[Labels, Labels]:
    """Label rejected images by their latents: with fooling images still rejected, and every one."""
    found = [reclassify(classifier, part, reject_fooling=False) for part in x.split(BATCH)]
    labels = torch.cat([part.labels for part in found])
    fooling = torch.cat([part.fooling for part in found])
    return torch.where(fooling, classifier.num_classes, labels), labels


def _decisions(model: Classifier, x: Images) -> Labels:
    return _by_parts(lambda part: model(part).argmax(1), x)


@torch.no_grad()
def _by_parts(function: Callable[[Tensor], Tensor], x: Images) -> Tensor:
    return torch.cat([function(part) for part in x.split(BATCH)])


def _say(line: str, published: float | tuple[float, ...] | None = None) -> None:
    """Print a line, with the paper's numbers behind it."""
    values = () if published is None else published if isinstance(published, tuple) else (published,)
    paper = f" (paper: {', '.join(f'{value:.2%}' for value in values)})" if values else ""
    sys.stdout.write(f"{line}{paper}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
