"""Scatter plots of images in a latent space, and of attacked images before and after a purifier."""

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .._console import in_figure
from ..capabilities import Defended, Encodes
from ..contract import Classifier
from ..randomness import isolated_rng
from ..training.pairs import PairsConfig, pair_attacks

__all__ = ["cluster_figure", "latent_figure"]

FONT_SIZE = 8
MARKERS = "osD^vPX<>*"
EPSILON = 0.3
# The picture shows that C&W succeeds, and not the distance, so that few of its published steps suffice.
ATTACKS = PairsConfig(cw_searches=4, cw_steps=100, cw_step_size=0.05, cw_constant=1.0)


@torch.no_grad()
def latent_figure(
    model: Classifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    class_names: tuple[str, ...],
    *,
    seed: int = 0,
) -> Figure:
    """Draws images as points in the latent space, by PCA and by UMAP (McInnes et al. 2018).

    Raises:
        ValueError: If the model has no `encode`, or there are fewer than 4 images.
        ImportError: If umap-learn is not installed.
    """
    if not isinstance(model, Encodes):
        raise ValueError(f"Expected a model with an encoder, but got {type(model).__name__}")
    if len(x) < 4:
        raise ValueError(f"Expected at least 4 images for a latent space, but got {len(x)}")
    latents = torch.cat([model.encode(*part) for part in zip(x.split(256), y.split(256), strict=True)])
    figure = Figure(figsize=(8, 4.3), layout="constrained")
    panels = figure.subplots(1, 2)
    points = {"PCA": _principal_components(latents), "UMAP": _umap_points(latents, seed=seed)}
    for panel, (title, at) in zip(panels, points.items(), strict=True):
        _scatter_classes(panel, at, y, class_names, title=title)
    _show_legend(figure, panels[0])
    return figure


def cluster_figure(
    model: Classifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    class_names: tuple[str, ...],
    *,
    seed: int = 0,
) -> Figure:
    """Draws clean images and those of three attacks on the bare classifier, one row each (Wang 2020).

    The columns show the images with the bare classifier's labels (Figures 2 and 3), the purified images with
    the labels of the purified classifier (Figure 4) and, for MAD-VAE, their latents (Figure 5).

    Raises:
        ValueError: If the model has no purifier, or there are fewer than 4 images.
        ImportError: If umap-learn or Foolbox is not installed.
    """
    if not isinstance(model, Defended):
        raise ValueError(f"Expected a model with a purifier, but got {type(model).__name__}")
    if len(x) < 4:
        raise ValueError(f"Expected at least 4 images for clusters, but got {len(x)}")
    sources = _sources(model.bare(), x, y, seed=seed)
    stages = [_stages(model, model.bare(), images) for images in sources.values()]
    columns = len(stages[0])
    figure = Figure(figsize=(2.9 * columns, 2.8 * len(sources) + 0.3), layout="constrained")
    panels = figure.subplots(len(sources), columns)
    for row, source, stage in zip(panels, sources, stages, strict=True):
        for panel, (title, points, decided) in zip(row, stage, strict=True):
            right = float((decided == y).double().mean())
            heading = f"{source}, {title}: {right:.0%} right"
            _scatter_classes(
                panel, _umap_points(points.flatten(1), seed=seed), decided, class_names, title=heading
            )
    _show_legend(figure, panels[0][0])
    return figure


@torch.no_grad()
def _stages(
    model: Classifier, bare: Classifier, images: Float[Tensor, "batch channels height width"]
) -> list[tuple[str, Tensor, Int[Tensor, " batch"]]]:
    """Returns title, points and labels of a row's columns."""
    labels = model.predict(images).labels
    stages = [("images", images, bare.predict(images).labels)]
    if isinstance(model, Defended):
        stages.append(("purified", model.passed_on(images), labels))
        if model.generates:
            stages.append(("latents", model.latents(images), labels))
    return stages


def _umap_points(latents: Float[Tensor, "batch latent"], *, seed: int) -> Float[np.ndarray, "batch 2"]:
    """Returns points in two dimensions that keep neighbours near each other (McInnes et al. 2018).

    Raises:
        ImportError: If umap-learn is not installed.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError(
            "Expected umap-learn to be installed: pip install 'genrobust[show]'", name="umap"
        ) from error
    neighbours = min(15, len(latents) - 1)
    reducer = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1, init="pca")
    points: Float[np.ndarray, "batch 2"] = reducer.fit_transform(latents.double().numpy())
    return points


def _principal_components(latents: Float[Tensor, "batch latent"]) -> Float[np.ndarray, "batch 2"]:
    centred = latents.double() - latents.double().mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    components: Float[np.ndarray, "batch 2"] = (centred @ axes.T).numpy()
    return components


def _scatter_classes(
    panel: Axes,
    points: Float[np.ndarray, "batch 2"],
    y: Int[Tensor, " batch"],
    class_names: tuple[str, ...],
    *,
    title: str,
) -> None:
    """Draws points with a colour and a marker for every class."""
    colors = colormaps["tab20" if len(class_names) > 10 else "tab10"]
    for k, name in enumerate(class_names):
        own, marker = points[y.numpy() == k], MARKERS[k % len(MARKERS)]
        panel.scatter(
            own[:, 0],
            own[:, 1],
            s=9,
            color=colors(k % colors.N),
            marker=marker,
            linewidths=0,
            label=in_figure(name),
        )
    panel.set_title(in_figure(title), fontsize=FONT_SIZE + 2)
    panel.set_xticks([])
    panel.set_yticks([])


def _show_legend(figure: Figure, panel: Axes) -> None:
    """Draws the classes of a panel below all of them."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(labels), 10),
        frameon=False,
        fontsize=FONT_SIZE,
        markerscale=2,
    )


def _sources(
    classifier: Classifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    seed: int,
) -> dict[str, Float[Tensor, "batch channels height width"]]:
    fgsm, r_fgsm, carlini_wagner = pair_attacks(classifier, ATTACKS)
    with isolated_rng(seed):
        return {
            "clean": x,
            "FGSM": fgsm(x, y, epsilon=EPSILON),
            "Rand-FGSM": r_fgsm(x, y, epsilon=EPSILON),
            "C&W": carlini_wagner(x, y, confidence=0.0),
        }
