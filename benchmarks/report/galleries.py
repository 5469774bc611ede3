"""The galleries of a run as PNG pictures inside the page."""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from ..cells import Cell
from ..gallery import read_gallery
from ..results import Results
from .words import NBSP, threat

__all__ = ["Gallery", "Picture", "Reconstruction", "Sample", "galleries"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image.

    Attributes:
        source: A data URI.
        text: What it shows, for who does not see it.
        label: Below it.
    """

    source: str
    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Picture):
    """What a class would have drawn.

    Attributes:
        decided: Whether the model decides for this class.
        true: Whether it is the image's label.
    """

    decided: bool
    true: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What became of one image.

    Attributes:
        clean: The image.
        adversarial: What the attack made of it.
        perturbation: The difference, amplified.
        fooled: Whether the decision is wrong, and no refusal.
        reconstructions: Of the adversarial image, one per class; none where the model has none.
    """

    clean: Picture
    adversarial: Picture
    perturbation: Picture
    fooled: bool
    reconstructions: tuple[Reconstruction, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """What an attack made of some images.

    Attributes:
        model: Title of the model.
        attack: Title of the attack.
        threat: Norm and epsilon.
        samples: The images.
    """

    model: str
    attack: str
    threat: str
    samples: tuple[Sample, ...]


def galleries(results: Results) -> dict[str, list[Gallery]]:
    """Give the galleries that the run kept at the table's epsilons, by the title of the model."""
    suite = results.suite
    found: dict[str, list[Gallery]] = {}
    for model in results.models:
        title = suite.model(model).title
        for attack in suite.attacks_of(model):
            bounded = attack.kind == "fixed epsilon"
            epsilon = suite.threat_model(attack.norm).epsilon if bounded else None
            cell = Cell(model=model, attack=attack.key, epsilon=epsilon, batch=0)
            arrays = read_gallery(results.folder, cell)
            if arrays is None:
                continue
            samples = tuple(_samples(arrays))
            found.setdefault(title, []).append(
                Gallery(
                    model=title, attack=attack.title, threat=threat(attack.norm, epsilon), samples=samples
                )
            )
    return found


def _samples(arrays: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[Sample]:
    names = [str(name) for name in arrays["class_names"]]
    for row, (number, label, prediction) in enumerate(
        zip(arrays["sample"], arrays["label"], arrays["prediction"], strict=True)
    ):
        true, decided = _named(names, int(label)), _named(names, int(prediction))
        clean, adversarial = arrays["clean"][row], arrays["adversarial"][row]
        delta = adversarial - clean
        factor = _amplification(delta)
        drawn = arrays["reconstructions"][row] if "reconstructions" in arrays else ()
        yield Sample(
            clean=Picture(
                source=_png(clean), text=f"Test image {number}, class {true}", label=f"class {true}"
            ),
            adversarial=Picture(
                source=_png(adversarial),
                text=f"The same image after the attack; the model says {decided}",
                label="refused" if prediction >= len(names) else f"seen as {decided}",
            ),
            perturbation=Picture(
                source=_png(0.5 + factor * delta),
                text=f"The perturbation, amplified {factor:.2g} times around grey",
                label=f"change \N{MULTIPLICATION SIGN}{NBSP}{factor:.2g}",
            ),
            fooled=prediction != label and 0 <= prediction < len(names),
            reconstructions=tuple(
                Reconstruction(
                    source=_png(image),
                    text=f"The attacked image as class {name} would have drawn it",
                    label=name,
                    decided=k == prediction,
                    true=k == label,
                )
                for k, (name, image) in enumerate(zip(names, drawn, strict=False))
            ),
        )


def _named(names: list[str], number: int) -> str:
    if number < 0:
        return "no image"
    return names[number] if number < len(names) else "nothing: it refuses"


def _amplification(delta: Float[np.ndarray, "channels height width"]) -> float:
    finite = np.abs(delta[np.isfinite(delta)])
    largest = float(finite.max()) if finite.size else 0.0
    return 0.5 / largest if largest > 0 else 1.0


def _png(image: Float[np.ndarray, "channels height width"]) -> str:
    pixels = np.round(255 * np.nan_to_num(image, nan=0.0).clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
