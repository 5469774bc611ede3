"""Pairs of adversarial and clean images, on which MAD-VAE is trained."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from .. import attacks
from .._console import make_console
from .._fields import AtLeastOne, AtLeastZero, NotNegative, Positive, Seed, check_fields
from .._settings import hashed
from .._tensors import TensorFile, write_tensors
from ..attack_view import attack_view
from ..contract import Classifier
from ..data import ImageDataset, held_out_images
from ..randomness import isolated_rng
from ..verification import clean_where_black

__all__ = ["PairsConfig", "adversarial_pairs", "pair_attacks"]

CHUNK = 250  # images per file, which is the loss after a kill

PairAttack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """The attacks and their numbers of images (Wang and Morlock 2020, section 3; they attack all 60,000).

    Attributes:
        images: Number of images that each setting of FGSM and of R-FGSM attacks, drawn at random for each.
        cw_images: Number of images that C&W attacks at each confidence; it costs hundreds of times as much.
        clean_images: Number of clean images that are paired with themselves; the paper has none.
        epsilons: Radii of FGSM and R-FGSM in the maximum norm.
        random_step: alpha, the part of epsilon that R-FGSM steps at random.
        confidences: Confidences of C&W in L2.
        cw_searches: Number of values of its constant that C&W tries.
        cw_steps: Number of steps for each value.
        cw_step_size: Step size of Adam.
        cw_constant: The first value of the constant.
        seed: Seed of the drawn images and of the random steps.

    Raises:
        ValueError: If a number of images is below 0, or `random_step` is not below every radius.
    """

    images: AtLeastZero = 60_000
    cw_images: AtLeastZero = 60_000
    clean_images: AtLeastZero = 0
    epsilons: tuple[Positive, ...] = (0.25, 0.30, 0.35)
    random_step: NotNegative = 0.05
    confidences: tuple[NotNegative, ...] = (5.0, 10.0, 15.0)
    cw_searches: AtLeastOne = 9
    cw_steps: AtLeastOne = 1000
    cw_step_size: Positive = 0.01
    cw_constant: Positive = 1e-3
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not all(self.random_step < epsilon for epsilon in self.epsilons):
            raise ValueError(
                f"Expected `random_step` below every one of {self.epsilons}, but got {self.random_step}"
            )


def adversarial_pairs(
    classifier: Classifier,
    dataset: ImageDataset,
    config: PairsConfig,
    *,
    folder: Path,
    show_progress: bool = True,
) -> ImageDataset:
    """Attacks a classifier with FGSM, R-FGSM and C&W, and pairs the images with the clean ones.

    The images are stored as 8-bit integers, like those of the data set. An image for which C&W finds nothing
    is paired with itself. Finished files are kept in a folder whose name identifies classifier, data set and
    config. After a kill the same call continues, and a second call costs nothing.

    Args:
        classifier: The classifier, without its purifier.
        dataset: Clean images.
        config: The attacks.
        folder: Parent of the files' folder.
        show_progress: Whether to show a progress bar.

    Returns:
        A data set of adversarial `images`, with their labels and the `clean` images. All images made from a
        clean one are held out for validation, or none is.

    Raises:
        ImportError: If Foolbox is not installed.
    """
    from rich.progress import track

    key = hashed([classifier.settings(), dataset.sha256, asdict(config)])
    cache = folder / f"pairs-{dataset.name}-{key[:12]}"
    jobs = _jobs(classifier, len(dataset), config)
    images = [
        _crafted(cache / f"{name}.safetensors", dataset.subset(rows), attack, seed=config.seed + number)
        for number, (name, rows, attack) in enumerate(
            track(jobs, "adversarial pairs", console=make_console(), disable=not show_progress)
        )
    ]
    if dataset.held_out is None:
        dataset = replace(dataset, held_out=held_out_images(dataset.labels))
    rows = torch.cat([rows for _, rows, _ in jobs])
    return replace(dataset.subset(rows), images=torch.cat(images), clean=dataset.images[rows])


def _jobs(
    classifier: Classifier, size: int, config: PairsConfig
) -> list[tuple[str, Int[Tensor, " images"], PairAttack]]:
    """Yields name, rows of the data set and attack of every file."""
    fgsm, r_fgsm, carlini_wagner = pair_attacks(classifier, config)
    settings: list[tuple[str, int, PairAttack]] = [("clean", config.clean_images, _unchanged)]
    for epsilon in config.epsilons:
        settings.append((f"fgsm-{epsilon}", config.images, partial(fgsm, epsilon=epsilon)))
        settings.append((f"r-fgsm-{epsilon}", config.images, partial(r_fgsm, epsilon=epsilon)))
    for confidence in config.confidences:
        stopped = partial(carlini_wagner, confidence=confidence)
        settings.append((f"cw-{confidence}", config.cw_images, stopped))
    jobs: list[tuple[str, Tensor, PairAttack]] = []
    for number, (name, count, attack) in enumerate(settings):
        # Not in the order of `held_out_images`, as seed 0 would be.
        generator = torch.Generator().manual_seed(1000 * config.seed + number + 1)
        chosen = torch.randperm(size, generator=generator)[:count]
        jobs += [
            (f"{name}-{part:04d}", rows, attack) for part, rows in enumerate(chosen.split(CHUNK)) if len(rows)
        ]
    return jobs


def _unchanged(x: Tensor, y: Tensor) -> Tensor:
    del y
    return x


def _crafted(
    path: Path, clean: ImageDataset, attack: PairAttack, *, seed: int
) -> UInt8[Tensor, "images channels height width"]:
    if not path.is_file():
        with isolated_rng(seed):
            images = attack(*clean.batch(slice(None)))
        write_tensors(path, {"images": (255 * images).round().to(torch.uint8).contiguous()})
    file = TensorFile.open(path)
    file.check({"images": clean.images.to("meta")})
    return file.read()["images"]


def pair_attacks(
    classifier: Classifier, config: PairsConfig
) -> tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]:
    """Returns FGSM, R-FGSM and C&W: functions of images, classes, and `epsilon` or `confidence`.

    Images come back on the CPU.

    Where C&W finds nothing, the image comes back as it was.

    Raises:
        ImportError: If Foolbox is not installed.
    """
    try:
        import foolbox
    except ImportError as error:
        raise ImportError(
            "Expected Foolbox to be installed, which makes the pairs: pip install 'genrobust[foolbox]'",
            name="foolbox",
        ) from error
    device = next(classifier.parameters()).device
    view = attack_view(classifier)
    target = foolbox.PyTorchModel(view, bounds=(0, 1), device=device)

    def fgsm(x: Tensor, y: Tensor, epsilon: float) -> Tensor:
        return attacks.fgsm(view, x.to(device), y.to(device), epsilon=epsilon).cpu()

    def r_fgsm(x: Tensor, y: Tensor, epsilon: float) -> Tensor:
        return attacks.random_fgsm(
            view, x.to(device), y.to(device), epsilon=epsilon, alpha=config.random_step
        ).cpu()

    def carlini_wagner(x: Tensor, y: Tensor, confidence: float) -> Tensor:
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=config.cw_searches,
            steps=config.cw_steps,
            stepsize=config.cw_step_size,
            initial_const=config.cw_constant,
            confidence=confidence,
        )
        images: Tensor = attack(target, x.to(device), y.to(device), epsilons=None)[1].cpu()
        return clean_where_black(images, x)

    return fgsm, r_fgsm, carlini_wagner
