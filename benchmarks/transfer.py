"""How much of an attack on a surrogate transfers to a CNN and to VaDE (Zhang et al. 2020, Tables 2 to 4).

Run `python -m genrobust.benchmarks.transfer --folder runs/transfer-mnist --dataset mnist`. The training set
is halved: one half trains the surrogate, the other both targets. Trainings are checkpointed; the same command
goes on after a kill.

VaDE is judged twice: inference from the encoder's proposal alone, as published, where it ends near wherever
the encoder was fooled to; and from the best of many random latents of every class too.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..adapters._foolbox import wrap_for_foolbox
from ..adapters.verification import fresh_variant
from ..allocation import keep_freed_memory
from ..classifier import Classifier
from ..data import ImageDataset, dataset_info, load_dataset
from ..models.baselines import CNN, CNNConfig
from ..models.vade import VaDEClassifier
from ..nets import architecture
from ..randomness import isolated_rng
from ..storage import write_json
from ..training import TrainingConfig, fit
from ..zoo import read_model, save_model
from ..zoo.recipes import build_model, recipe
from .suite_files import load_suite

__all__ = ["TransferRow", "halves", "published_accuracies", "smallest_effective_epsilon"]

EPSILONS = tuple(0.025 * step for step in range(1, 17))
EFFECTIVE = 0.05  # the surrogate's accuracy at which an attack in a ball has done its work
STEPS = 12  # of the iterated FGSM (section 4.3.1)

# Suites with the paper's accuracies.
TABLES = {"mnist": "zhang-table2", "fashion_mnist": "zhang-table3", "cifar2": "zhang-table4"}

Attack = Callable[[float | None], Float[Tensor, "images channels height width"]]


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """Accuracies on one attack's examples.

    Attributes:
        attack: Its name.
        epsilon: The smallest of a grid at which it leaves the surrogate at most 5 %; None for a minimal-norm
            attack.
        distance: Mean L2 norm of the perturbations.
        accuracy: By model.
    """

    attack: str
    epsilon: float | None
    distance: float
    accuracy: dict[str, float]


def halves(dataset: ImageDataset, *, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
    """Divide a data set at random into two equal parts (section 4.3)."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    middle = len(dataset) // 2
    return dataset.subset(order[:middle]), dataset.subset(order[middle:])


def smallest_effective_epsilon(
    attack: Attack, surrogate: Classifier, y: Int[Tensor, " images"]
) -> tuple[float, Float[Tensor, "images channels height width"]]:
    """Search the grid for the smallest epsilon that leaves the surrogate at most 5 %; else take the largest.

    The paper does not give the epsilon of its Table 2, but the accuracy that is left.
    """
    for epsilon in EPSILONS:
        images = attack(epsilon)
        if float(_right(surrogate, images, y).double().mean()) <= EFFECTIVE:
            break
    return epsilon, images


def published_accuracies(dataset: str) -> dict[tuple[str, str], float]:
    """Give the accuracies of Zhang et al. 2020, Tables 2 to 4, by attack and model; none elsewhere."""
    if dataset not in TABLES:
        return {}
    names = {
        "clean": "clean",
        "fgsm": "FGSM",
        "deepfool": "DeepFool",
        "cw-l2": "C&W-L2",
        "mi-fgsm": "MI-FGSM",
    }
    expected = load_suite(TABLES[dataset]).expected
    return {(names[row.attack], row.model): row.value for row in expected if row.attack in names}


def main(arguments: list[str] | None = None) -> None:
    """Train what is not trained yet, attack the surrogate, and print the accuracies; write them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m genrobust.benchmarks.transfer", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of the models and the results")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-root", type=Path, help="folder of <dataset>.npz")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--cw-steps", type=int, default=1000, help="of C&W, in each of its 5 searches")
    parser.add_argument("--seed", type=int, default=0, help="of the halves and of the trainings")
    parser.add_argument("--candidates", type=int, default=2000, help="random latents a class, of the second")
    parser.add_argument("--device", default="cpu", help="where attacks run, such as cuda")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    first, second = halves(load_dataset(options.dataset, "train", root=options.data_root), seed=options.seed)
    parts = {"surrogate": first, "cnn": second, "vade": second}
    models: dict[str, Classifier] = {
        name: _trained(name, part, options.folder / name, options).to(options.device)
        for name, part in parts.items()
    }
    vade = models["vade"]
    if not isinstance(vade, VaDEClassifier):
        raise ValueError(f"Expected a VaDE in {options.folder / 'vade'}, but got {type(vade).__name__}")
    models["vade-searched"] = vade.with_inference(candidates=options.candidates)
    test = load_dataset(options.dataset, "test", root=options.data_root)
    x, y = (part.to(options.device) for part in test.batch(slice(options.images)))
    rows = [_row("clean", None, x, x, y, models)]
    paper = published_accuracies(options.dataset)
    _show(rows[0], paper)
    for name, (attack, bounded) in _attacks(models["surrogate"], x, y, options.cw_steps).items():
        if bounded:
            epsilon, images = smallest_effective_epsilon(attack, models["surrogate"], y)
        else:
            epsilon, images = None, attack(None)
        rows.append(_row(name, epsilon, images, x, y, models))
        _show(rows[-1], paper)
    write_json(options.folder / "transfer.json", [asdict(row) for row in rows])


def _trained(name: str, part: ImageDataset, folder: Path, options: argparse.Namespace) -> Classifier:
    """Train a model on its half, or read it; every model has its own seed."""
    path = folder / "model.safetensors"
    if path.is_file():
        return read_model(path)
    seed = options.seed + ["surrogate", "cnn", "vade"].index(name)
    kind = "vade" if name == "vade" else "cnn"
    config = TrainingConfig(**{**recipe(kind, options.dataset).training, "seed": seed})
    with isolated_rng(seed):
        model = build_model("vade", options.dataset) if kind == "vade" else _lenet(options.dataset)
    fit(model, part, config=config, folder=folder)
    save_model(model, path)
    return model


def _lenet(dataset: str) -> CNN:
    """Build the paper's CNN: LeNet for 28 x 28 pixels, VGG-16 for 32 x 32 in colour."""
    info = dataset_info(dataset)
    names = {architecture(name).input_shape: name for name in ("lenet-mnist", "vgg16-cifar")}
    if info.input_shape not in names:
        raise ValueError(f"Expected a `dataset` of images out of {list(names)}, but got {info.input_shape}")
    arch = architecture(names[info.input_shape])
    return CNN(CNNConfig(num_classes=info.num_classes, architecture=arch))


def _attacks(surrogate: Classifier, x: Tensor, y: Tensor, cw_steps: int) -> Mapping[str, tuple[Attack, bool]]:
    """Give the attacks by name, and whether they search in a ball."""
    import foolbox

    toolkit = foolbox.attacks
    attacks = {
        "FGSM": (toolkit.LinfBasicIterativeAttack(steps=STEPS, rel_stepsize=1 / STEPS), True),
        "DeepFool": (toolkit.L2DeepFoolAttack(), False),
        "C&W-L2": (toolkit.L2CarliniWagnerAttack(binary_search_steps=5, steps=cw_steps), False),
        "MI-FGSM": (toolkit.LinfMomentumIterativeFastGradientMethod(steps=STEPS), True),
    }

    def run(attack: Any, epsilon: float | None) -> Tensor:
        with isolated_rng(0):
            images: Tensor = attack(wrap_for_foolbox(surrogate), x, y, epsilons=epsilon)[1]
        return images

    return {name: (partial(run, attack), bounded) for name, (attack, bounded) in attacks.items()}


def _row(
    name: str, epsilon: float | None, images: Tensor, x: Tensor, y: Tensor, models: Mapping[str, Classifier]
) -> TransferRow:
    judges = {key: fresh_variant(model, seed=0, codebook_seed=0) for key, model in models.items()}
    return TransferRow(
        attack=name,
        epsilon=epsilon,
        distance=float((images - x).flatten(1).norm(dim=1).mean()),
        accuracy={key: float(_right(judge, images, y).double().mean()) for key, judge in judges.items()},
    )


def _right(model: Classifier, images: Tensor, y: Tensor) -> Bool[Tensor, " images"]:
    return torch.cat([model.predict(part).labels for part in images.split(100)]) == y


def _show(row: TransferRow, paper: Mapping[tuple[str, str], float]) -> None:
    epsilon = "" if row.epsilon is None else f", epsilon {row.epsilon:.3f}"
    cells = []
    for name, value in row.accuracy.items():
        published = paper.get((row.attack, name))
        cells.append(f"{name} {value:.1%}" + ("" if published is None else f" ({published:.1%})"))
    sys.stdout.write(f"{row.attack}{epsilon}, mean L2 {row.distance:.2f}: {', '.join(cells)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
