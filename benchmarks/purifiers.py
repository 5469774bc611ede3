"""Accuracy behind purifiers, attacked as published and through them (Wang and Morlock 2020, Tables 1 to 3).

Run `python -m genrobust.benchmarks.purifiers --dataset mnist --folder checkpoints`. Models are shipped
ones or, where there is such a file, `<folder>/<model>-<dataset>/model.safetensors`, which is where
`genrobust train` leaves them by default.

The paper attacks the bare classifier and purifies what came of it (grey-box). The same attacks are run with
the purifier's gradient, and with the identity in its place; verdicts purify in every mode.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..adapters._foolbox import wrap_for_foolbox
from ..adapters.verification import Norm, verify
from ..allocation import keep_freed_memory
from ..classifier import Classifier
from ..data import load_dataset
from ..models.convnets import SUBSTITUTES
from ..models.mad_vae import VARIANTS
from ..purification import PurificationGradient, Purified
from ..randomness import isolated_rng
from ..storage import write_json
from ..zoo import list_models, load_model, read_model
from ..zoo.pairs import random_fgsm
from .own import single_pixel

__all__ = ["AttackRow", "TransferRow", "confusion"]

EPSILON, STEP, STEPS = 0.3, 0.01, 40  # AdverTorch's defaults, which the paper uses
BATCH = 1000
MODELS = (*(f"mad-vae-{name}" for name in VARIANTS), "comdefend")

_COLUMNS = ("clean", "bare", *(f"mad-vae-{name}" for name in VARIANTS))
PUBLISHED = {  # Table 1
    "FGSM": (0.9931, 0.1316, 0.7097, 0.7107, 0.7413, 0.7325),
    "Rand-FGSM": (0.9931, 0.1521, 0.7689, 0.7833, 0.7953, 0.7922),
    "CW": (0.9931, 0.0075, 0.9567, 0.9621, 0.9433, 0.9480),
    "MI-FGSM": (0.9931, 0.0074, 0.6821, 0.6427, 0.7112, 0.5879),
    "PGD": (0.9931, 0.0073, 0.7530, 0.7485, 0.7789, 0.6856),
    "Single Pixel": (0.9931, 0.9977, 0.9759, 0.9922, 0.9789, 0.9928),
}
PUBLISHED_TRANSFER = {  # Table 3
    "A": (0.9939, 0.0487, 0.4212, 0.4338, 0.5879, 0.4453),
    "B": (0.9925, 0.0144, 0.2771, 0.2539, 0.4048, 0.3285),
    "C": (0.9938, 0.0540, 0.5430, 0.5667, 0.6815, 0.6060),
    "D": (0.9812, 0.0173, 0.4106, 0.2932, 0.2725, 0.4155),
    "E": (0.9807, 0.0155, 0.4322, 0.3177, 0.4498, 0.4442),
}

Craft = Callable[[Classifier, Tensor, Tensor], Tensor]
Batch = tuple[Float[Tensor, "images channels height width"], Int[Tensor, " images"]]


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """What is left of a model under one attack.

    Attributes:
        model: Its name; "bare" is the classifier without a purifier, of which all is known.
        gradient: What the attacker was given of the purifier.
        attack: Its name.
        accuracy: Share of the images without a verified adversarial example.
        published: The paper's on MNIST, of its own purifiers in grey-box mode.
        distance: Mean L2 norm of the perturbations.
        zero_gradient: Share of the images where the attacked model has no gradient.
    """

    model: str
    gradient: PurificationGradient
    attack: str
    accuracy: float
    published: float | None
    distance: float
    zero_gradient: float


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """Accuracies on what FGSM made against a substitute.

    Attributes:
        substitute: A to E.
        clean: Its accuracy on the clean images.
        substitute_accuracy: Its accuracy on its own adversarial examples; the paper's "No Defense" seems to
            be this one.
        accuracy: Of the bare classifier, and behind each purifier.
        published: The paper's accuracies on MNIST.
    """

    substitute: str
    clean: float
    substitute_accuracy: float
    accuracy: dict[str, float]
    published: dict[str, float]


def confusion(
    predictions: Int[Tensor, " images"], labels: Int[Tensor, " images"], *, num_classes: int
) -> Int[Tensor, "predicted true"]:
    """Count images by predicted (rows) and true class (columns), as Table 2 does; rejections are left out."""
    answered = predictions < num_classes
    cells = predictions[answered] * num_classes + labels[answered]
    counts: Tensor = cells.bincount(minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for, print the rows, and write them as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m genrobust.benchmarks.purifiers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-root", type=Path, help="folder of <dataset>.npz")
    parser.add_argument("--folder", type=Path, default=Path("checkpoints"), help="of trained models")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="purified classifiers")
    parser.add_argument("--classifier", default="magnet-cnn", help="that they clean for")
    parser.add_argument("--gradients", nargs="+", default=["grey-box", "through", "bpda"])
    parser.add_argument("--attacks", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--images", type=int, default=1000, help="of the test set's first")
    parser.add_argument("--cw-searches", type=int, default=9)
    parser.add_argument("--cw-steps", type=int, default=1000, help="of C&W, in each of its searches")
    parser.add_argument("--seed", type=int, default=0, help="of attacks and verdicts")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--no-transfer", action="store_true", help="leave out the substitutes (Table 3)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args(arguments)
    if unknown := [mode for mode in options.gradients if mode not in get_args(PurificationGradient)]:
        parser.error(f"Expected `--gradients` out of {get_args(PurificationGradient)}, but got {unknown}")
    keep_freed_memory()
    test = load_dataset(options.dataset, "test", root=options.data_root)
    x, y = (part.to(options.device) for part in test.batch(slice(options.images)))
    bare = _model(options.classifier, options)
    models = {name: _purified(name, bare, options) for name in options.models}
    results: dict[str, Any] = {
        "dataset": options.dataset,
        "images": len(x),
        "seed": options.seed,
        "clean": {name: _accuracy(model, x, y) for name, model in {"bare": bare, **models}.items()},
    }
    for name, value in results["clean"].items():
        _show(f"clean, {name}: {value:.2%}")
    results |= _attacked(bare, models, (x, y), options)
    if not options.no_transfer:
        rows = _transferred({"bare": bare, **models}, (x, y), options)
        results["transfer"] = [asdict(row) for row in rows]
    if options.json:
        write_json(options.json, results)


def _attacked(
    bare: Classifier, models: Mapping[str, Purified], batch: Batch, options: argparse.Namespace
) -> dict[str, Any]:
    """Attack everything: rows of Table 1 in every mode, and Table 2's counts of the grey-box mode."""
    rows: list[AttackRow] = []
    counts: dict[str, Tensor] = {}
    attacks = {name: (craft, norm) for name, craft, norm in _attacks(options) if name in options.attacks}
    for name, (craft, norm) in attacks.items():
        against_bare = _crafted(craft, bare, batch, options.seed)
        rows.append(_row("bare", bare, "grey-box", name, norm, batch, against_bare, options))
        for model_name, model in models.items():
            for gradient in options.gradients:
                attacked = model.with_gradient(gradient)
                images = against_bare
                if gradient != "grey-box":
                    images = _crafted(craft, attacked, batch, options.seed)
                rows.append(_row(model_name, attacked, gradient, name, norm, batch, images, options))
                if gradient == "grey-box" and name in ("FGSM", "Rand-FGSM", "CW"):
                    found = confusion(_labels(model, images), batch[1], num_classes=model.num_classes)
                    counts[model_name] = counts[model_name] + found if model_name in counts else found
    return {
        "attacks": [asdict(row) for row in rows],
        "confusion": {name: count.tolist() for name, count in counts.items()},
    }


def _attacks(options: argparse.Namespace) -> list[tuple[str, Craft, Norm]]:
    """Give name, function and norm of the six attacks of Table 1."""
    import foolbox

    toolkit = foolbox.attacks
    carlini_wagner = toolkit.L2CarliniWagnerAttack(
        binary_search_steps=options.cw_searches, steps=options.cw_steps
    )
    momentum = toolkit.LinfMomentumIterativeFastGradientMethod(steps=STEPS, abs_stepsize=STEP)

    def run(attack: Any, epsilon: float | None, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        images: Tensor = attack(wrap_for_foolbox(model), x, y, epsilons=epsilon)[1]
        failed = (images == 0).flatten(1).all(1)  # Foolbox's C&W then returns a black image
        return torch.where(failed[:, None, None, None], x, images)

    def fgsm(model: Classifier, x: Tensor, y: Tensor, epsilon: float = EPSILON) -> Tensor:
        return run(toolkit.LinfFastGradientAttack(random_start=False), epsilon, model, x, y)

    def pixel(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        return single_pixel(model, x, y, generator=torch.Generator().manual_seed(options.seed))

    return [
        ("FGSM", fgsm, "linf"),
        ("Rand-FGSM", lambda model, x, y: random_fgsm(partial(fgsm, model), x, y, EPSILON), "linf"),
        ("CW", partial(run, carlini_wagner, None), "l2"),
        ("MI-FGSM", partial(run, momentum, EPSILON), "linf"),
        ("PGD", partial(run, toolkit.LinfPGD(steps=STEPS, abs_stepsize=STEP), EPSILON), "linf"),
        ("Single Pixel", pixel, "l0"),
    ]


def _crafted(craft: Craft, model: Classifier, batch: Batch, seed: int) -> Tensor:
    with isolated_rng(seed):
        parts = zip(*(part.split(BATCH) for part in batch), strict=True)
        return torch.cat([craft(model, x, y).detach() for x, y in parts])


def _row(
    name: str,
    model: Classifier,
    gradient: PurificationGradient,
    attack: str,
    norm: Norm,
    batch: Batch,
    images: Tensor,
    options: argparse.Namespace,
) -> AttackRow:
    x, y = batch
    epsilon = EPSILON if norm == "linf" else None
    parts = zip(x.split(BATCH), y.split(BATCH), images.split(BATCH), strict=True)
    found = [
        verify(model, clean, label, adv, norm, epsilon, seed=options.seed) for clean, label, adv in parts
    ]
    published = _published(PUBLISHED[attack], options)
    row = AttackRow(
        model=name,
        gradient=gradient,
        attack=attack,
        accuracy=1 - float(torch.cat([part.success for part in found]).double().mean()),
        published=published.get(name) if gradient == "grey-box" else None,
        distance=float((images - x).flatten(1).norm(dim=1).mean()),
        zero_gradient=float(torch.cat([part.zero_gradient for part in found]).double().mean()),
    )
    paper = "" if row.published is None else f" (published {row.published:.2%})"
    _show(f"{attack}, {name}, {gradient}: {row.accuracy:.2%}{paper}, mean L2 {row.distance:.2f}")
    return row


def _transferred(
    models: Mapping[str, Classifier], batch: Batch, options: argparse.Namespace
) -> list[TransferRow]:
    """Attack the substitutes that there are with FGSM."""
    rows = []
    fgsm = next(craft for name, craft, _ in _attacks(options) if name == "FGSM")
    for letter in SUBSTITUTES:
        name = f"substitute-{letter.lower()}"
        if not _available(name, options):
            _show(f"substitute {letter} is left out: `genrobust train {name} --dataset {options.dataset}`")
            continue
        substitute = _model(name, options)
        images = _crafted(fgsm, substitute, batch, options.seed)
        row = TransferRow(
            substitute=letter,
            clean=_accuracy(substitute, *batch),
            substitute_accuracy=_accuracy(substitute, images, batch[1]),
            accuracy={key: _accuracy(model, images, batch[1]) for key, model in models.items()},
            published=_published(PUBLISHED_TRANSFER[letter], options),
        )
        cells = ", ".join(f"{key} {value:.2%}" for key, value in row.accuracy.items())
        _show(f"substitute {letter} ({row.clean:.2%} clean, {row.substitute_accuracy:.2%} attacked): {cells}")
        rows.append(row)
    return rows


def _published(values: tuple[float, ...], options: argparse.Namespace) -> dict[str, float]:
    return dict(zip(_COLUMNS, values, strict=True)) if options.dataset == "mnist" else {}


def _path(name: str, options: argparse.Namespace) -> Path:
    path: Path = options.folder / f"{name}-{options.dataset}" / "model.safetensors"
    return path


def _available(name: str, options: argparse.Namespace) -> bool:
    return _path(name, options).is_file() or (name, options.dataset) in list_models()


def _model(name: str, options: argparse.Namespace) -> Classifier:
    path = _path(name, options)
    model = read_model(path) if path.is_file() else load_model(name, dataset=options.dataset)
    return model.to(options.device)


def _purified(name: str, bare: Classifier, options: argparse.Namespace) -> Purified:
    model = _model(name, options)
    if not isinstance(model, Purified):
        raise ValueError(f"Expected a purified classifier, but {name!r} is a {type(model).__name__}")
    mine, theirs = model.classifier.state_dict(), bare.state_dict()
    if mine.keys() != theirs.keys() or not all(torch.equal(mine[key], theirs[key]) for key in mine):
        raise ValueError(f"Expected {name!r} to clean for {options.classifier!r}, but its classifier differs")
    return model


def _labels(model: Classifier, images: Tensor) -> Int[Tensor, " images"]:
    return torch.cat([model.predict(part).labels for part in images.split(BATCH)])


def _accuracy(model: Classifier, images: Tensor, y: Tensor) -> float:
    return float((_labels(model, images) == y).double().mean())


def _show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
