"""How many adversarial examples for one classifier a generative one detects (Li 2018, Table 2).

Run `python -m genrobust.benchmarks.detection --victim cnn --guard deep-bayes --dataset mnist`.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..adapters._foolbox import wrap_for_foolbox
from ..allocation import keep_freed_memory
from ..classifier import Classifier, GenerativeClassifier
from ..data import load_dataset
from ..randomness import isolated_rng
from ..selective import Detector, read_detectors
from ..storage import write_json
from ..zoo import load_detectors, load_model, read_model

__all__ = ["DetectionRow", "detection_rates"]


@dataclass(frozen=True, kw_only=True)
class DetectionRow:
    """What one detector makes of one attack's examples.

    Attributes:
        detector: Its name.
        detected: Share of the successful examples that are flagged.
        false_positives: Share of the clean images that are flagged.
        clean_score: Mean score of the clean images.
        adversarial_score: Mean score of the successful examples.
    """

    detector: str
    detected: float
    false_positives: float
    clean_score: float
    adversarial_score: float


@torch.no_grad()
def detection_rates(
    detectors: Mapping[str, Detector],
    guard: GenerativeClassifier,
    clean: tuple[Float[Tensor, "images channels height width"], Int[Tensor, " images"]],
    adversarial: tuple[Float[Tensor, "examples channels height width"], Int[Tensor, " examples"]],
) -> list[DetectionRow]:
    """Measure detectors on images, each with the label that the attacked classifier gives it.

    Args:
        detectors: By name.
        guard: The model that they judge with.
        clean: Clean images, with the victim's labels.
        adversarial: Examples that fool the victim, with its labels.
    """
    rows = []
    for name, detector in detectors.items():
        rows.append(
            DetectionRow(
                detector=name,
                detected=float(detector.flags(guard, *adversarial).double().mean()),
                false_positives=float(detector.flags(guard, *clean).double().mean()),
                clean_score=float(detector.scores(guard, *clean).mean()),
                adversarial_score=float(detector.scores(guard, *adversarial).mean()),
            )
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Attack the victim, measure the detectors and print the rates; write them as JSON on request."""
    import foolbox

    parser = argparse.ArgumentParser(prog="python -m genrobust.benchmarks.detection", description=__doc__)
    parser.add_argument("--victim", default="cnn", help="name or file of the attacked classifier")
    parser.add_argument("--guard", default="deep-bayes", help="name or file of the model that detects")
    parser.add_argument("--detectors", type=Path, help="file of detectors, in place of the shipped ones")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-root", type=Path, help="folder of <dataset>.npz")
    parser.add_argument("--images", type=int, default=200, help="that the victim labels rightly")
    parser.add_argument("--steps", type=int, default=1000, help="of C&W, in each of its 5 searches")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    victim, guard = (_model(name, options) for name in (options.victim, options.guard))
    if not isinstance(guard, GenerativeClassifier):
        parser.error(f"Expected a generative classifier as guard, but got {type(guard).__name__}")
    detectors = (
        read_detectors(options.detectors)
        if options.detectors
        else load_detectors(options.guard, dataset=options.dataset)
    )
    test = load_dataset(options.dataset, "test", root=options.data_root)
    x, y = (part.to(options.device) for part in test.batch(slice(2 * options.images)))
    right = victim.predict(x).labels == y
    x, y = x[right][: options.images], y[right][: options.images]
    attacks = {
        "DeepFool": foolbox.attacks.L2DeepFoolAttack(),
        "C&W-L2": foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=options.steps),
    }
    results = {}
    for name, attack in attacks.items():
        with isolated_rng(0):
            _, examples, _ = attack(wrap_for_foolbox(victim), x, y, epsilons=None)
        labels = victim.predict(examples).labels
        fooled = labels != y
        distortion = (examples - x)[fooled].flatten(1).norm(dim=1)
        rows = detection_rates(detectors, guard, (x, y), (examples[fooled], labels[fooled]))
        results[name] = {
            "images": len(x),
            "successes": int(fooled.sum()),
            "distortion": [float(distortion.mean()), float(distortion.std())],
            "rows": [asdict(row) for row in rows],
        }
        _show(name, results[name])
    if options.json:
        write_json(options.json, results)


def _model(name: str, options: argparse.Namespace) -> Classifier:
    model = read_model(name) if Path(name).is_file() else load_model(name, dataset=options.dataset)
    return model.to(options.device)


def _show(attack: str, result: Mapping[str, Any]) -> None:
    mean, deviation = result["distortion"]
    sys.stdout.write(
        f"{attack}: {result['successes']} of {result['images']} succeed, "
        f"distortion {mean:.3f} +- {deviation:.3f}\n"
    )
    for row in result["rows"]:
        sys.stdout.write(
            f"  {row['detector']:<14} detected {row['detected']:.1%}, false positives "
            f"{row['false_positives']:.1%}, score {row['clean_score']:.3f} clean, "
            f"{row['adversarial_score']:.3f} adversarial\n"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
