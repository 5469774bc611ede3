"""Adversarial images, paired with the clean ones that they were made of: what MAD-VAE is trained on."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..classifier import Classifier
from ..data import ImageDataset
from ..inference.codebook_files import fingerprint
from ..randomness import isolated_rng
from ..storage import write_atomically
from ..views import attack_view

__all__ = ["PairsConfig", "adversarial_pairs", "pair_attacks", "random_fgsm"]

CHUNK = 250  # images a file: what a kill costs

Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Which attacks, on how many images (Wang and Morlock 2020, section 3; they attack all 60,000).

    Attributes:
        images: Images that each setting of FGSM and of R-FGSM attacks, drawn at random for each.
        cw_images: Images that C&W attacks at each confidence; it costs hundreds of times as much.
        clean_images: Clean images that are paired with themselves; the paper has none.
        epsilons: Radii of FGSM and R-FGSM in the maximum norm.
        random_step: alpha, the part of epsilon that R-FGSM steps at random.
        confidences: Of C&W in L2.
        cw_searches: Values of its constant that it tries.
        cw_steps: Steps for each of them.
        cw_step_size: Of Adam.
        cw_constant: The first value.
        seed: Of the images that are drawn, and of the random steps.

    Raises:
        ValueError: If a number of images is below 0, or `random_step` is not below every radius.
    """

    images: int = 60_000
    cw_images: int = 60_000
    clean_images: int = 0
    epsilons: tuple[float, ...] = (0.25, 0.30, 0.35)
    random_step: float = 0.05
    confidences: tuple[float, ...] = (5.0, 10.0, 15.0)
    cw_searches: int = 9
    cw_steps: int = 1000
    cw_step_size: float = 0.01
    cw_constant: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.images, self.cw_images, self.clean_images) < 0:
            raise ValueError(
                "Expected `images`, `cw_images` and `clean_images` of at least 0, "
                f"but got {self.images}, {self.cw_images} and {self.clean_images}"
            )
        if not all(0 <= self.random_step < epsilon for epsilon in self.epsilons):
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
    """Attack a classifier with FGSM, R-FGSM and C&W, and pair the images with the clean ones.

    The images are kept as 8-bit integers, as those of the data set are. One that C&W found
    nothing for is paired with itself. Every finished file is kept, in a folder whose name says of which
    classifier, data set and config: the same call goes on after a kill, and costs nothing the second time.

    Args:
        classifier: The classifier, without its purifier.
        dataset: Clean images.
        config: Which attacks.
        folder: Where the files' folder is made.
        show_progress: Show a progress bar.

    Returns:
        A data set of adversarial `images`, with their labels and the `clean` images.

    Raises:
        ImportError: If Foolbox is not installed.
    """
    from rich.progress import track

    key = (dataset.name, dataset.split, len(dataset), repr(asdict(config)))
    cache = folder / f"pairs-{dataset.name}-{fingerprint(classifier.state_dict().values(), key)[:12]}"
    jobs = _jobs(classifier, len(dataset), config)
    images = [
        _crafted(cache / f"{name}.safetensors", dataset.subset(rows), attack, seed=config.seed + number)
        for number, (name, rows, attack) in enumerate(
            track(jobs, description="adversarial pairs", disable=not show_progress)
        )
    ]
    rows = torch.cat([rows for _, rows, _ in jobs])
    return replace(dataset.subset(rows), images=torch.cat(images), clean=dataset.images[rows])


def random_fgsm(
    fgsm: Callable[[Tensor, Tensor, float], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    epsilon: float,
    *,
    alpha: float = 0.05,
) -> Float[Tensor, "batch channels height width"]:
    """Step by alpha in a random direction, then by FGSM for the rest of epsilon (Tramer et al. 2018).

    The direction is the sign of normal noise from torch's global generator.

    Args:
        fgsm: The second step: from images, classes and a radius to images.
        x: Images in [0, 1].
        y: Their classes.
        epsilon: Radius of both steps together, in the maximum norm.
        alpha: Of the random step.
    """
    moved = (x + alpha * torch.randn_like(x).sign()).clamp(0, 1)
    return fgsm(moved, y, epsilon - alpha)


def _jobs(
    classifier: Classifier, size: int, config: PairsConfig
) -> list[tuple[str, Int[Tensor, " images"], Attack]]:
    """Give name, rows of the data set and attack of every file."""
    fgsm, carlini_wagner = pair_attacks(classifier, config)
    settings: list[tuple[str, int, Attack]] = [("clean", config.clean_images, _unchanged)]
    for epsilon in config.epsilons:
        rest = partial(random_fgsm, fgsm, epsilon=epsilon, alpha=config.random_step)
        settings.append((f"fgsm-{epsilon}", config.images, partial(fgsm, epsilon=epsilon)))
        settings.append((f"r-fgsm-{epsilon}", config.images, rest))
    for confidence in config.confidences:
        stopped = partial(carlini_wagner, confidence=confidence)
        settings.append((f"cw-{confidence}", config.cw_images, stopped))
    jobs: list[tuple[str, Tensor, Attack]] = []
    for number, (name, count, attack) in enumerate(settings):
        generator = torch.Generator().manual_seed(1000 * config.seed + number)
        chosen = torch.randperm(size, generator=generator)[:count]
        jobs += [
            (f"{name}-{part:04d}", rows, attack) for part, rows in enumerate(chosen.split(CHUNK)) if len(rows)
        ]
    return jobs


def _unchanged(x: Tensor, y: Tensor) -> Tensor:
    del y
    return x


def _crafted(
    path: Path, clean: ImageDataset, attack: Attack, *, seed: int
) -> UInt8[Tensor, "images channels height width"]:
    if not path.is_file():
        with isolated_rng(seed):
            images = attack(*clean.batch(slice(None)))
        with write_atomically(path) as part:
            save_file({"images": (255 * images).round().to(torch.uint8).contiguous()}, part)
    return load_file(path)["images"]


def pair_attacks(
    classifier: Classifier, config: PairsConfig
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Give FGSM and C&W as functions of images, classes, and `epsilon` or `confidence`; images on the CPU.

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
    target = foolbox.PyTorchModel(attack_view(classifier), bounds=(0, 1), device=device)

    def run(attack: Any, x: Tensor, y: Tensor, epsilon: float | None) -> Tensor:
        images: Tensor = attack(target, x.to(device), y.to(device), epsilons=epsilon)[1]
        return images.cpu()

    def fgsm(x: Tensor, y: Tensor, epsilon: float) -> Tensor:
        return run(foolbox.attacks.LinfFastGradientAttack(random_start=False), x, y, epsilon)

    def carlini_wagner(x: Tensor, y: Tensor, confidence: float) -> Tensor:
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=config.cw_searches,
            steps=config.cw_steps,
            stepsize=config.cw_step_size,
            initial_const=config.cw_constant,
            confidence=confidence,
        )
        images = run(attack, x, y, None)
        failed = (images == 0).flatten(1).all(1)  # Foolbox then returns a black image
        return torch.where(failed[:, None, None, None], x, images)

    return fgsm, carlini_wagner
