"""The commands: list models and attacks, train a model, run a benchmark suite."""

import json
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
except ImportError as error:
    raise SystemExit(
        "Expected typer and rich for the commands: pip install 'genrobust[train,bench]'"
    ) from error

from .allocation import keep_freed_memory
from .report_commands import compare, report

__all__ = ["app", "main"]

app = typer.Typer(help="Generative classifiers for adversarial robustness.", no_args_is_help=True)
bench = typer.Typer(help="Run a suite of attacks on shipped models.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.command()(report)
app.command()(compare)
console = Console()


@app.command()
def models() -> None:
    """List the shipped models with their measured accuracy."""
    from .zoo import list_models, model_card

    table = Table("model", "data set", "clean accuracy", "parameters", "best epoch", "hours")
    for name, dataset in list_models():
        card = model_card(name, dataset=dataset)
        table.add_row(
            name,
            dataset,
            f"{card['clean_accuracy']['value']:.1%} of {card['clean_accuracy']['images']}",
            f"{card['parameters']:,}",
            f"{card['best_epoch']} of {card['epochs']}",
            f"{card['hours']:.2f}",
        )
    console.print(table)


@app.command()
def attacks(
    toolkit: Annotated[str | None, typer.Option(help="Of one toolkit, such as foolbox, only.")] = None,
    channels: Annotated[int, typer.Option(help="Of the images that are to be attacked.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows for a program.")] = False,
) -> None:
    """List every attack of every toolkit: whether it runs here, why not, and what it needs."""
    from .adapters import list_attacks

    rows = list_attacks(toolkit, channels=channels)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("attack", "norm", "knowledge", "runs", "wrapper", "reason, or what to know")
    for name in dict.fromkeys(row["toolkit"] for row in rows):
        mine = [row for row in rows if row["toolkit"] == name]
        running = sum(row["runs"] for row in mine)
        version = mine[0]["version"] or "not installed"
        table.add_section()
        table.add_row(f"[bold]{name}[/bold] {version}", "", "", f"{running} of {len(mine)}", "", "")
        for row in mine:
            needs = "" if row["wrapper"].endswith("(model)") else row["wrapper"]
            runs = "yes" if row["runs"] else "[red]no[/red]"
            table.add_row(row["name"], row["norm"], row["knowledge"], runs, needs, row["reason"])
    console.print(table)


@app.command()
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
    seed: Annotated[int, typer.Option(help="Of initial weights, split, order and noise.")] = 0,
    accelerator: Annotated[str, typer.Option(help="Of Lightning Fabric: auto, cpu, gpu.")] = "auto",
    devices: Annotated[int, typer.Option(help="Processes, one a device.")] = 1,
    evaluate: Annotated[int, typer.Option(help="Test images for the card; 0 takes all.")] = 0,
) -> None:
    """Train a model by its recipe; the same command goes on after a kill."""
    from .zoo.building import train_recipe

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
        console.print(f"clean accuracy {accuracy['value']:.2%} on {accuracy['images']} test images")
        console.print(f"weights and card in {card['folder']}")


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="A shipped model; see `genrobust models`.")],
    dataset: Annotated[str, typer.Option(help="What it was trained on.")] = "digits",
    what: Annotated[str, typer.Option(help="samples, reconstructions, or latent.")] = "reconstructions",
    out: Annotated[Path | None, typer.Option(help="The PNG to write.")] = None,
    images: Annotated[int | None, typer.Option(help="Samples a class, or images of the test set.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses images and samples.")] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="Weights that `train` wrote, in place of shipped.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of <dataset>.npz.")] = None,
) -> None:
    """Draw what a model draws: samples of every class, an image as every class would, the latent space."""
    from typing import cast

    from .benchmarks.pictures import What, draw_picture, save_picture
    from .data import load_dataset
    from .zoo import load_model, read_model

    shown = read_model(weights) if weights else load_model(model, dataset=dataset)
    figure = draw_picture(
        cast(What, what),
        shown,
        load_dataset(dataset, "test", root=data_root),
        images=images,
        seed=seed,
    )
    path = out or Path(f"{model}-{dataset}-{what}.png")
    save_picture(figure, path)
    console.print(f"the picture is in {path}")


@bench.command()
def quick(
    out: Annotated[Path | None, typer.Option(help="Folder of the run; the same folder resumes.")] = None,
    samples: Annotated[int | None, typer.Option(help="Test images.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples, attacks and noise.")] = 0,
    models: Annotated[str | None, typer.Option(help="Shipped models, separated by commas.")] = None,
) -> None:
    """Attack a CNN, ABS and E-ABS on embedded digits: table, per-sample results and curves in minutes."""
    _run_suite("quick", out=out, samples=samples, seed=seed, models=models, data_root=None)


@bench.command()
def mnist(
    out: Annotated[Path | None, typer.Option(help="Folder of the run; the same folder resumes.")] = None,
    samples: Annotated[int | None, typer.Option(help="Test images.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples, attacks and noise.")] = 0,
    models: Annotated[str | None, typer.Option(help="Shipped models, separated by commas.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of mnist.npz.")] = None,
) -> None:
    """Attack the same models on MNIST under L2 1.5, the bound of E-ABS Table 1 (tens of minutes on a CPU)."""
    _run_suite("mnist", out=out, samples=samples, seed=seed, models=models, data_root=data_root)


def _run_suite(
    name: str,
    *,
    out: Path | None,
    samples: int | None,
    seed: int,
    models: str | None,
    data_root: Path | None,
) -> None:
    from .benchmarks.report import render_table, write_report
    from .benchmarks.runner import run_suite
    from .benchmarks.shipped import find_suite
    from .data import load_dataset
    from .zoo import load_model

    suite = find_suite(name)
    names = [part.strip() for part in models.split(",")] if models else [model.name for model in suite.models]
    count = suite.samples if samples is None else samples
    folder = out or Path("runs") / f"{name}-{count}-samples-seed-{seed}"
    results = run_suite(
        suite,
        models={name: load_model(name, dataset=suite.dataset) for name in names},
        dataset=load_dataset(suite.dataset, "test", root=data_root),
        samples=count,
        seed=seed,
        out=folder,
    )
    write_report(results)
    console.print(render_table(results))
    console.print(f"per-sample results, table and curves are in {folder}")


def main() -> None:
    """Run the command line; a user's mistake ends in one line, not in a traceback."""
    keep_freed_memory()
    try:
        app()
    except (ValueError, FileNotFoundError, ImportError) as error:
        message = str(error)
        if isinstance(error, ModuleNotFoundError):
            message = f"Expected {error.name} to be installed: pip install 'genrobust[all]'"
        Console(stderr=True).print("[red]Error:[/red]", escape(message), highlight=False)
        raise SystemExit(2) from error
