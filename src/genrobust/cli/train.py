"""`genrobust train`: a model by its recipe."""

from pathlib import Path
from typing import Annotated

import typer

from .._console import say
from .plugins import PluginOption, load_plugins

__all__ = ["train"]


def train(
    model: Annotated[
        str, typer.Argument(help="Such as eabs, abs, cnn, adv-linf, or an ablation such as ad-abs.")
    ],
    dataset: Annotated[str, typer.Option(help="Such as digits, mnist, fashion_mnist, gtsrb.")] = "digits",
    out: Annotated[Path | None, typer.Option(help="Folder of checkpoint, weights and card.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of <dataset>.npz.")] = None,
    initial: Annotated[Path | None, typer.Option(help="Start from the weights of this file.")] = None,
    epochs: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
    precision: Annotated[str | None, typer.Option(help="Such as 32-true or bf16-mixed.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of initial weights, order and noise, in place of the recipe's.")
    ] = None,
    accelerator: Annotated[str, typer.Option(help="Of Lightning Fabric: auto, cpu, gpu.")] = "auto",
    devices: Annotated[int, typer.Option(help="Processes, one a device.")] = 1,
    evaluate: Annotated[int, typer.Option(help="Test images for the card; 0 takes all.")] = 0,
    plugin: PluginOption = None,
) -> None:
    """Train a model by its recipe; the same command goes on after a kill."""
    from ..training.building import train_recipe

    load_plugins(plugin)
    overrides = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "precision": precision,
        "seed": seed,
    }
    card = train_recipe(
        model,
        dataset,
        folder=out or Path("checkpoints") / f"{model}-{dataset}",
        root=data_root,
        initial=initial,
        overrides={name: value for name, value in overrides.items() if value is not None},
        accelerator=accelerator,
        devices=devices,
        test_images=evaluate,
    )
    if card is not None:
        accuracy = card["clean_accuracy"]
        deciding = card["deciding_score"]
        say(
            f"{card['selected_by']} of epoch {card['best_epoch']}: {card['validation_score']:.2%} of the "
            f"validation images, {deciding['value']:.2%} of {deciding['images']} as the model decides"
        )
        say(f"clean accuracy {accuracy['value']:.2%} on {accuracy['images']} test images")
        say(f"weights and card in {card['folder']}")
