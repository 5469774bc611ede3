"""The galleries of a run as PNG pictures inside the page."""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from ..._brief import one_line
from ..run.cells import Cell
from ..run.gallery import read_gallery
from ..run.results import Results
from .words import NBSP, threat

__all__ = ["Gallery", "Picture", "Reconstruction", "Sample", "galleries"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image.

    Attributes:
        source: A data URI.
        text: Alt text.
        label: Label below the image.
    """

    source: str
    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Picture):
    """The reconstruction of an image by one class.

    Attributes:
        decided: Whether the model decides for this class.
        true: Whether this class is the image's label.
    """

    decided: bool
    true: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image before and after an attack.

    Attributes:
        clean: The clean image.
        adversarial: The attacked image.
        perturbation: The difference, amplified.
        fooled: Whether the decision is wrong, and not a rejection.
        reconstructions: Reconstructions of the adversarial image, one per class; empty if the model has none.
    """

    clean: Picture
    adversarial: Picture
    perturbation: Picture
    fooled: bool
    reconstructions: tuple[Reconstruction, ...]

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Some images before and after one attack on one model.

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

    __repr__ = one_line


def galleries(results: Results) -> dict[str, list[Gallery]]:
    """Returns the galleries that the run kept at the table's epsilons, by title of the model."""
    suite = results.suite
    found: dict[str, list[Gallery]] = {}
    for model in results.models:
        title = suite.model(model).title
        for attack in suite.attacks_of(model):
            bounded = attack.kind == "fixed epsilon"
            epsilon = suite.threat_model(attack.norm).epsilon if bounded else None
            cell = Cell(model=model, attack=attack.key, epsilon=epsilon, batch=0)
            arrays = read_gallery(results.folder, cell, run=results.run)
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
                label="rejected" if prediction >= len(names) else f"seen as {decided}",
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
    return names[number] if number < len(names) else "nothing: it rejects"


def _amplification(delta: Float[np.ndarray, "channels height width"]) -> float:
    finite = np.abs(delta[np.isfinite(delta)])
    largest = float(finite.max()) if finite.size else 0.0
    return 0.5 / largest if largest > 0 else 1.0


def _png(image: Float[np.ndarray, "channels height width"]) -> str:
    pixels = np.round(255 * np.nan_to_num(image, nan=0.0).clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
