"""`genrobust show`: pictures of a model."""

from pathlib import Path
from typing import Annotated

import typer

from .._console import say
from .._files import check_png
from .plugins import PluginOption, load_plugins

__all__ = ["show"]


def show(
    model: Annotated[str, typer.Argument(help="A shipped model; see `genrobust models`.")],
    dataset: Annotated[str, typer.Option(help="What it was trained on.")] = "digits",
    what: Annotated[
        str, typer.Option(help="samples, reconstructions, latent or, of a purifier, clusters.")
    ] = "reconstructions",
    out: Annotated[Path | None, typer.Option(help="The PNG to write.")] = None,
    images: Annotated[int | None, typer.Option(help="Samples a class, or images of the split.")] = None,
    split: Annotated[str, typer.Option(help="Source of images: test, validation or train.")] = "test",
    seed: Annotated[int, typer.Option(help="Chooses images and samples.")] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights that `train` wrote; by default shipped ones, or those in checkpoints."),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of <dataset>.npz.")] = None,
    plugin: PluginOption = None,
) -> None:
    """Draw what a model draws: samples of every class, an image as every class would, the latent space.

    Of a purified classifier: where clean and adversarial images are beside each other, and purified ones.
    """
    from typing import cast

    check_png(out, "--out")
    from ..data import Split, load_dataset
    from ..pictures.drawing import What, draw_picture, save_picture
    from ..zoo import list_models, load_model, read_model

    load_plugins(plugin)
    trained = Path("checkpoints") / f"{model}-{dataset}" / "model.safetensors"
    if weights is None and (model, dataset) not in list_models() and trained.is_file():
        weights = trained
    shown = read_model(weights) if weights else load_model(model, dataset=dataset)
    figure = draw_picture(
        cast(What, what),
        shown,
        load_dataset(dataset, cast(Split, split), root=data_root),
        images=images,
        seed=seed,
    )
    path = out or Path(f"{model}-{dataset}-{what}.png")
    save_picture(figure, path)
    say(f"the picture is in {path}")
