"""`genrobust audit`: is a model's robustness real?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .._console import say, show
from .plugins import PluginOption, load_plugins

if TYPE_CHECKING:
    from ..contract import Classifier

__all__ = ["audit", "default_images", "named_model"]

RADII = {"linf": 0.1, "l2": 1.5}
IMAGES, IMAGES_IF_NOISY, IMAGES_IF_OPTIMISING = 100, 20, 8


def audit(
    model: Annotated[
        str, typer.Argument(help="A shipped model, or one in checkpoints; see `genrobust models`.")
    ],
    dataset: Annotated[str, typer.Option(help="Its images, such as digits or mnist.")] = "digits",
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    epsilon: Annotated[float | None, typer.Option(help="Radius of the ball; 0.1 in linf, 1.5 in l2.")] = None,
    images: Annotated[
        int | None, typer.Option(help="Images; 100, or 20 if it draws noise, or 8 if it optimises.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    split: Annotated[str, typer.Option(help="Source of images: test, or validation to tune on.")] = "test",
    weights: Annotated[Path | None, typer.Option(help="Weights that `train` wrote.")] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Transfer from this shipped model; cnn, where there is one.")
    ] = None,
    check: Annotated[list[str] | None, typer.Option(help="Make this check only.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of <dataset>.npz.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report for a program.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Say how far a robustness number is believable: attacks of many kinds, and checks of their gradients."""
    from ..attacks.pgd import BallNorm
    from ..auditing import audit as run_audit
    from ..data import Split, load_dataset

    load_plugins(plugin)
    audited = named_model(model, dataset, weights)
    shown, labels = load_dataset(dataset, cast(Split, split), root=data_root).batch(
        slice(default_images(audited) if images is None else images)
    )
    report = run_audit(
        audited,
        shown,
        labels,
        norm=cast(BallNorm, norm),
        epsilon=RADII.get(norm, 1.0) if epsilon is None else epsilon,
        sources=_sources(model, dataset, source),
        checks=check,
        seed=seed,
        name=f"{model} on {dataset}",
    )
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        say(report.answer)
        show(report.table())
    if html is not None:  # after the answer, which a file that cannot be written must not cost
        report.save(html)
        say(f"the report is in {html}", stderr=as_json)


def named_model(model: str, dataset: str, weights: Path | None) -> "Classifier":
    """Read a model from a file of weights, from checkpoints, or as it is shipped."""
    from ..zoo import list_models, load_model, read_model

    trained = Path("checkpoints") / f"{model}-{dataset}" / "model.safetensors"
    if weights is None and (model, dataset) not in list_models() and trained.is_file():
        weights = trained
    return read_model(weights) if weights else load_model(model, dataset=dataset)


def _sources(model: str, dataset: str, names: list[str] | None) -> "dict[str, Classifier]":
    """Load what examples are transferred from: the shipped CNN, unless others are named."""
    from ..zoo import list_models, load_model

    chosen = [name for name in ("cnn",) if (name, dataset) in list_models()] if names is None else names
    return {name: load_model(name, dataset=dataset) for name in chosen if name != model}


def default_images(model: "Classifier") -> int:
    """Say how many images are attacked by default: fewer for a model that takes longer."""
    if "candidates" in model.inference:
        return IMAGES_IF_OPTIMISING
    return IMAGES_IF_NOISY if model.randomized else IMAGES
