from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.testing
from matplotlib.figure import Figure
from matplotlib.image import imread

from genrobust import Purified, load_dataset
from genrobust.cli.main import app
from genrobust.pictures.clusters import cluster_figure, latent_figure
from genrobust.pictures.drawing import draw_picture, reconstruction_figure, sample_figure
from genrobust.zoo import load_model

Make = Callable[..., Any]
NAMES = ("zero", "one", "two", "three")


def pixels(figure: Figure) -> list[Any]:
    """The images of every cell, row by row."""
    return [cell.images[0].get_array() for cell in figure.axes]


def framed(figure: Figure) -> list[tuple[int, str]]:
    """Which cells have a frame, and of which line."""
    return [
        (index, cell.spines["left"].get_linestyle())
        for index, cell in enumerate(figure.axes)
        if cell.spines["left"].get_visible()
    ]


def test_samples_are_rows_of_classes(make_model: Make) -> None:
    model = make_model("deep-bayes")
    figure = sample_figure(model, NAMES, per_class=3, generator=torch.Generator().manual_seed(1))
    drawn = model.sample(3, generator=torch.Generator().manual_seed(1))
    assert drawn.shape == (4, 3, 1, 7, 8)
    assert len(figure.axes) == 12
    for cell, image in zip(pixels(figure), drawn.flatten(0, 1), strict=True):
        torch.testing.assert_close(torch.tensor(cell), image[0])
    assert [figure.axes[row].get_ylabel() for row in (0, 3, 6, 9)] == list(NAMES)


def test_the_decision_is_framed_and_so_is_the_label_that_it_misses(make_model: Make, images: Make) -> None:
    model = make_model("deep-bayes")
    x = images(model, 2)
    scores = model.class_scores(x).detach()
    decided = scores.argmax(1)
    y = torch.stack([decided[0], (decided[1] + 1) % 4])
    figure = reconstruction_figure(model, x, y, NAMES)
    right, wrong, missed = 1 + int(decided[0]), 6 + int(decided[1]), 6 + int(y[1])
    assert sorted(framed(figure)) == sorted([(right, "-"), (wrong, "--"), (missed, "-")])
    reconstructions = model.reconstruct(x)
    for row in range(2):
        cells = pixels(figure)[5 * row : 5 * row + 5]
        torch.testing.assert_close(torch.tensor(cells[0]), x[row, 0])
        for k in range(4):
            torch.testing.assert_close(torch.tensor(cells[1 + k]), reconstructions[row, k, 0])
            behind = f"{float(scores[row, k] - scores[row].max()):.0f}"
            assert figure.axes[5 * row + 1 + k].get_xlabel() == behind


@pytest.mark.slow
def test_the_principal_components_are_those_of_the_latents(make_model: Make, images: Make) -> None:
    pytest.importorskip("umap")
    model = make_model("deep-bayes")
    x, y = images(model, 30), torch.arange(30) % 4
    figure = latent_figure(model, x, y, NAMES)
    pca, umap = figure.axes
    points = torch.cat([torch.tensor(part.get_offsets().data) for part in pca.collections])
    latents = torch.cat([model.encode(x[y == k], y[y == k]) for k in range(4)]).double()
    centred = latents - latents.mean(0)
    variances = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    torch.testing.assert_close(points.T @ points, torch.diag(variances[:2]), rtol=1e-4, atol=1e-4)
    assert sum(len(part.get_offsets()) for part in umap.collections) == 30


@pytest.mark.slow
def test_clusters_are_of_clean_and_attacked_images_before_and_behind_a_purifier() -> None:
    pytest.importorskip("umap")
    model = load_model("mad-vae-vanilla", dataset="digits")
    assert isinstance(model, Purified)
    digits = load_dataset("digits", "test")
    x, y = digits.batch(slice(40))
    figure = cluster_figure(model, x, y, digits.class_names)
    assert len(figure.axes) == 12
    bare, purified, latents = figure.axes[3:6]
    assert all(sum(len(part.get_offsets()) for part in panel.collections) == 40 for panel in figure.axes)
    assert bare.get_title().startswith("FGSM, images: ")
    assert purified.get_title().removeprefix("FGSM, purified") == latents.get_title().removeprefix(
        "FGSM, latents"
    )
    # Colours are decisions: points of a class are as many as the labels that were given.
    decided = model.classifier.predict(x).labels.bincount(minlength=10).tolist()
    assert [len(part.get_offsets()) for part in figure.axes[0].collections] == decided
    shares = [float(panel.get_title().split(": ")[1].split("%")[0]) for panel in figure.axes[::3]]
    assert shares[0] >= 90 > shares[1]
    assert shares[3] == 0


@pytest.mark.parametrize(
    ("name", "what", "images", "message"),
    [
        ("deep-bayes", "weights", None, r"`what` out of \['clusters', 'latent', 'recon"),
        ("deep-bayes", "samples", 0, "`images` of at least 1, but got 0"),
        ("mlp", "samples", None, "draws samples, but got MLP"),
        ("mlp", "reconstructions", None, "reconstructions, but got MLP"),
        ("mlp", "latent", None, "an encoder, but got MLP"),
        ("mlp", "clusters", None, "a purifier, but got MLP"),
        ("deep-bayes", "latent", 3, "at least 4 images for a latent space, but got 3"),
    ],
)
def test_what_cannot_be_drawn(
    name: str, what: Any, images: int | None, message: str, make_model: Make
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_picture(what, make_model(name), load_dataset("digits", "test"), images=images)


def test_the_command_writes_a_png(tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    arguments = ["show", "deep-bayes", "--what", "reconstructions", "--images", "2", "--out", str(out)]
    done = typer.testing.CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert imread(out).shape[0] > 100


@pytest.mark.parametrize("name", ["abs", "eabs", "vade"])
def test_models_that_search_draw_what_they_search(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 3)
    drawn = model.sample(2, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (4, 2, *model.input_shape)
    reconstructions = model.reconstruct(x)
    assert reconstructions.shape == (3, 4, *model.input_shape)
    if name != "vade":  # the score is of the reconstruction, and of the prior term, which is never negative
        distances = (x[:, None] - reconstructions).square().flatten(2).sum(2)
        losses = -model.scores_to_logits(model.class_scores(x)) * model.temperature
        assert (losses >= distances * (1 - 1e-4)).all()
        assert (losses - distances).abs().max() > 1e-3
    y = torch.tensor([2, 0, 1])
    proposal = model.propose(x).mean
    torch.testing.assert_close(model.encode(x, y), proposal[torch.arange(3), y])


def test_samples_of_a_mixture_are_drawn_around_the_means_of_their_classes(make_model: Make) -> None:
    model = make_model("vade")
    with torch.no_grad():
        model.prior.log_variance.fill_(-40)
    drawn = model.sample(3, generator=torch.Generator().manual_seed(0))
    means = model.observation.mean(model.decoders(model.prior.mean[None]))[0]
    torch.testing.assert_close(drawn, means[:, None].expand_as(drawn), rtol=1e-3, atol=1e-3)
