"""`genrobust certify`: within which radius does a decision stand for certain?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .._console import say, show
from .._files import check_png
from .audit import default_images, named_model
from .plugins import PluginOption, load_plugins

if TYPE_CHECKING:
    from torch import Tensor

    from ..certificates import Certificate, SmoothingCertificate
    from ..contract import Classifier

__all__ = ["certify"]

RADII = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5)


def certify(
    model: Annotated[
        str, typer.Argument(help="A shipped model, or one in checkpoints; see `genrobust models`.")
    ],
    dataset: Annotated[str, typer.Option(help="Its images, such as digits or mnist.")] = "digits",
    sigma: Annotated[
        list[float] | None,
        typer.Option(help="Smooth by noise of this deviation; may be repeated. Without it, by bounds."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Images; 100, or 20 if it draws noise, or 8 if it optimises.")
    ] = None,
    n0: Annotated[int, typer.Option(help="Noisy copies that guess the class.")] = 100,
    n: Annotated[int, typer.Option(help="Noisy copies that bound its probability.")] = 1000,
    alpha: Annotated[float, typer.Option(help="Chance that an image's radius is wrong.")] = 0.001,
    batch_size: Annotated[int, typer.Option(help="Noisy copies in one call.")] = 250,
    radius: Annotated[list[float] | None, typer.Option(help="A row of the table; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    split: Annotated[str, typer.Option(help="Source of images: test, or validation to tune on.")] = "test",
    weights: Annotated[Path | None, typer.Option(help="Weights that `train` wrote.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of <dataset>.npz.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the curve into this PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the radii for a program.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Certify L2 radii: of the smoothed model by noise (Cohen et al. 2019), or of the model by bounds."""
    from .._fields import NotNegative, check_integer, checked
    from ..data import Split, load_dataset

    check_png(figure, "--figure")
    load_plugins(plugin)
    radii = list(checked(RADII if radius is None else radius, tuple[NotNegative, ...], "`radius`"))
    certified = named_model(model, dataset, weights)
    x, y = load_dataset(dataset, cast(Split, split), root=data_root).batch(
        slice(default_images(certified) if images is None else check_integer(images, "images"))
    )
    settings = {"n0": n0, "n": n, "alpha": alpha, "batch_size": batch_size}
    found = _found(certified, x, y, sigma or [], settings, seed=seed)
    if as_json:
        typer.echo(json.dumps(_as_json(found, radii, model=f"{model} on {dataset}"), indent=2))
    else:
        _show(found, radii)
    if figure is not None:  # after the radii, which a file that cannot be written must not cost
        from ..benchmarks.report.certified import save_certified_accuracy

        save_certified_accuracy(found, figure)
        say(f"the figure is in {figure}", stderr=as_json)


def _found(
    model: "Classifier",
    x: "Tensor",
    y: "Tensor",
    sigmas: list[float],
    settings: dict[str, Any],
    *,
    seed: int,
) -> "dict[str, Certificate | SmoothingCertificate]":
    """Compute a certificate for every noise, or one by bounds where no noise is given."""
    import torch

    from .._fields import check_seed
    from ..certificates import SmoothingBudget, certify_by_bounds, certify_by_smoothing

    if not sigmas:
        return {"bounds": certify_by_bounds(model, x, y)}
    budgets = [SmoothingBudget(sigma=sigma, **settings) for sigma in sigmas]
    generator = torch.Generator().manual_seed(check_seed(seed))
    return {
        f"sigma {budget.sigma:g}": certify_by_smoothing(model, x, y, budget=budget, generator=generator)
        for budget in budgets
    }


def _show(found: "dict[str, Certificate | SmoothingCertificate]", radii: list[float]) -> None:
    from .._table import TextColumn, TextTable
    from ..auditing.findings import share
    from ..certificates import SmoothingCertificate

    for certificate in found.values():
        if isinstance(certificate, SmoothingCertificate):
            say(str(certificate))
        else:
            say("the radii hold if the inference found is exact")
    table = TextTable("certified beyond L2", *(TextColumn(title=name, right=True) for name in found))
    for radius in radii:
        table.add_row(
            f"{radius:g}", *(share("", certificate.radii > radius).text for certificate in found.values())
        )
    show(table)


def _as_json(
    found: "dict[str, Certificate | SmoothingCertificate]", radii: list[float], *, model: str
) -> dict[str, Any]:
    from ..certificates import certified_accuracy

    certificates = {
        name: {
            "radii": certificate.radii.tolist(),
            "accuracy": certified_accuracy(certificate, radii).tolist(),
        }
        for name, certificate in found.items()
    }
    return {"model": model, "radii": radii, "certificates": certificates}
