"""Pictures of a generative model: samples, reconstructions by every class, and its latent space in 2-D."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from .._console import in_figure
from .._files import write_atomically
from ..capabilities import Reconstructs, Samples
from ..contract import Classifier, GenerativeClassifier
from ..data import ImageDataset
from .clusters import FONT_SIZE, cluster_figure, latent_figure

__all__ = [
    "What",
    "draw_picture",
    "reconstruction_figure",
    "sample_figure",
    "save_picture",
]

What = Literal["samples", "reconstructions", "latent", "clusters"]

CELL = 0.62  # inches
DECIDED, LABEL = "#D55E00", "#0072B2"  # Okabe and Ito's palette suits every common colour blindness
_DEFAULT_IMAGES: Mapping[str, int] = {
    "samples": 10,
    "reconstructions": 10,
    "latent": 1000,
    "clusters": 500,
}


def draw_picture(
    what: What, model: Classifier, dataset: ImageDataset, *, images: int | None = None, seed: int = 0
) -> Figure:
    """Draws one of the pictures of a model on images of a data set.

    Args:
        what: `"samples"` of every class; `"reconstructions"` of some images by every class; `"latent"`, the
            images' latents in two dimensions, by PCA and by UMAP; or `"clusters"`, clean, adversarial and
            purified images, by UMAP.
        model: The model.
        dataset: The source of images.
        images: Number of samples per class (10), of images to reconstruct (10), of latents (1,000), or of
            images to attack (500).
        seed: Seed of the choice of images, of the samples and of UMAP.

    Raises:
        ValueError: If the model cannot draw such a picture, or `what` or `images` is invalid.
        ImportError: If umap-learn is not installed or, for `"clusters"`, Foolbox.
    """
    if what not in _DEFAULT_IMAGES:
        raise ValueError(f"Expected `what` out of {sorted(_DEFAULT_IMAGES)}, but got {what!r}")
    count = _DEFAULT_IMAGES[what] if images is None else images
    if count < 1:
        raise ValueError(f"Expected `images` of at least 1, but got {count}")
    generator = torch.Generator().manual_seed(seed)
    if what == "samples":
        return sample_figure(model, dataset.class_names, per_class=count, generator=generator)
    chosen = torch.randperm(len(dataset), generator=generator)[:count]
    x, y = dataset.batch(chosen)
    if what == "reconstructions":
        return reconstruction_figure(model, x, y, dataset.class_names)
    draw = latent_figure if what == "latent" else cluster_figure
    return draw(model, x, y, dataset.class_names, seed=seed)


def save_picture(figure: Figure, path: Path) -> None:
    """Saves a picture as PNG, atomically."""
    with write_atomically(path) as part:
        figure.savefig(part, format="png", dpi=200)


@torch.no_grad()
def sample_figure(
    model: Classifier, class_names: tuple[str, ...], *, per_class: int, generator: torch.Generator
) -> Figure:
    """Draws images of every class, one row per class.

    Raises:
        ValueError: If the model has no `sample`.
    """
    if not isinstance(model, Samples):
        raise ValueError(f"Expected a model that draws samples, but got {type(model).__name__}")
    drawn = model.sample(per_class, generator=generator)
    figure, cells = _grid(len(drawn), per_class)
    for row, (name, images) in enumerate(zip(class_names, drawn, strict=True)):
        for cell, image in zip(cells[row], images, strict=True):
            _show(cell, image)
        _name_row(cells[row][0], name)
    return figure


@torch.no_grad()
def reconstruction_figure(
    model: Classifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    class_names: tuple[str, ...],
) -> Figure:
    """Draws the reconstructions of images by every class, with a row per image and a column per class.

    The number below a reconstruction is its class's distance to the best class, in nats. The best class,
    which is the decision, has an orange frame. If it is not the image's label, this frame is dashed, and the
    label has a blue frame.

    Raises:
        ValueError: If the model has no `reconstruct`.
    """
    if not (isinstance(model, GenerativeClassifier) and isinstance(model, Reconstructs)):
        raise ValueError(f"Expected a model with reconstructions, but got {type(model).__name__}")
    drawn, scores = model.reconstruct(x), model.class_scores(x)
    behind = scores - scores.max(1, keepdim=True).values
    figure, cells = _grid(len(x), 1 + len(class_names), below=True)
    cells[0][0].set_title("image", fontsize=FONT_SIZE)
    for cell, name in zip(cells[0][1:], class_names, strict=True):
        cell.set_title(in_figure(name), fontsize=FONT_SIZE, rotation=0 if len(name) < 4 else 40)
    for row, image in enumerate(x):
        _show(cells[row][0], image)
        _name_row(cells[row][0], class_names[int(y[row])])
        for k, cell in enumerate(cells[row][1:]):
            _show(cell, drawn[row, k])
            cell.set_xlabel(f"{float(behind[row, k]):.0f}", fontsize=FONT_SIZE - 2, labelpad=1)
            if behind[row, k] == 0:
                _frame(cell, DECIDED, "-" if k == y[row] else "--")
            elif k == y[row]:
                _frame(cell, LABEL, "-")
    return figure


def _grid(rows: int, columns: int, *, below: bool = False) -> tuple[Figure, list[list[Axes]]]:
    size = (CELL * columns + 0.9, (CELL + 0.16 * below) * rows + 0.4)
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    figure = Figure(figsize=size, layout=layout)
    cells = figure.subplots(rows, columns, squeeze=False)
    for cell in cells.flat:
        cell.set_xticks([])
        cell.set_yticks([])
        cell.spines[:].set_visible(False)
    return figure, [list(row) for row in cells]


def _show(cell: Axes, image: Float[Tensor, "channels height width"]) -> None:
    pixels = image.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy()
    cell.imshow(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)


def _name_row(cell: Axes, name: str) -> None:
    cell.set_ylabel(in_figure(name), fontsize=FONT_SIZE, rotation=0, ha="right", va="center")


def _frame(cell: Axes, color: str, line: str) -> None:
    cell.spines[:].set_visible(True)
    cell.spines[:].set(color=color, linewidth=2, linestyle=line)
