"""The commands: list models and attacks, train a model, run a suite, ask about its results."""

import json
import shlex
import sys
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
app.command()(report)
app.command()(compare)


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
    Console().print(table)


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
    Console().print(table)


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
        Console().print(f"clean accuracy {accuracy['value']:.2%} on {accuracy['images']} test images")
        Console().print(f"weights and card in {card['folder']}")


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="A shipped model; see `genrobust models`.")],
    dataset: Annotated[str, typer.Option(help="What it was trained on.")] = "digits",
    what: Annotated[
        str, typer.Option(help="samples, reconstructions, latent or, of a purifier, clusters.")
    ] = "reconstructions",
    out: Annotated[Path | None, typer.Option(help="The PNG to write.")] = None,
    images: Annotated[int | None, typer.Option(help="Samples a class, or images of the test set.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses images and samples.")] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="Weights that `train` wrote, in place of shipped.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of <dataset>.npz.")] = None,
) -> None:
    """Draw what a model draws: samples of every class, an image as every class would, the latent space.

    Of a purified classifier: where clean and adversarial images are beside each other, and purified ones.
    """
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
    Console().print(f"the picture is in {path}")


@app.command()
def bench(
    suite: Annotated[
        str | None, typer.Argument(help="A shipped suite, or the path of a TOML file; without it, the list.")
    ] = None,
    scale: Annotated[str, typer.Option(help="small, or paper: as published.")] = "small",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; the same folder resumes.")] = None,
    samples: Annotated[int | None, typer.Option(help="Test images, in place of the suite's.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples, attacks and noise.")] = 0,
    models: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    dataset: Annotated[str | None, typer.Option(help="In place of the suite's, such as digits.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of <dataset>.npz.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Of trained models; by default checkpoints.")] = None,
    skip_missing: Annotated[bool, typer.Option(help="Leave out models without weights.")] = False,
    device: Annotated[str, typer.Option(help="Such as cpu, cuda or cuda:1.")] = "cpu",
    jobs: Annotated[int | None, typer.Option(help="Cells at once.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch in every process.")] = None,
    engine: Annotated[str, typer.Option(help="local, or dask or ray for a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the cluster's scheduler.")] = None,
    keep_examples: Annotated[bool, typer.Option(help="Keep every adversarial image.")] = False,
) -> None:
    """Run a suite of attacks; killed, the same command goes on. Exit status 1: some cells failed."""
    from typing import cast

    from .benchmarks.engines import Engine, EngineName
    from .benchmarks.report import render_table, write_report
    from .benchmarks.session import BenchOptions, run_bench, suites_table
    from .benchmarks.suites import Scale

    if suite is None:
        Console().print(suites_table())
        return
    options = BenchOptions(
        suite=suite,
        scale=cast(Scale, scale),
        out=out,
        samples=samples,
        seed=seed,
        models=models,
        dataset=dataset,
        data_root=data_root,
        folder=folder,
        skip_missing=skip_missing,
        device=device,
        engine=Engine(name=cast(EngineName, engine), address=address, jobs=jobs, threads=threads),
        keep_examples=keep_examples,
        command=shlex.join(["genrobust", *sys.argv[1:]]),
    )
    try:
        found = run_bench(options)
    except KeyboardInterrupt:
        Console().print("stopped; the finished cells are kept, and the same command goes on")
        raise typer.Exit(130) from None
    for sentence in found.suite.reduced:
        Console().print(f"[dim]{escape(sentence)}[/dim]")
    if found.missing:
        for failure in found.failures:
            Console().print(f"[red]failed[/red] {failure.cell}: {escape(failure.error)}", highlight=False)
        Console().print(
            f"{found.missing} cells are missing in {found.folder}; the same command tries them again, and "
            "`genrobust report` shows the others"
        )
        raise typer.Exit(1)
    write_report(found)
    Console().print(render_table(found))
    Console().print(f"the report is {found.folder / 'report.html'}; rows, table and curves are beside it")


@app.command()
def results(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    query: Annotated[
        str | None, typer.Option(help="SQL over the view `rows`; see its columns by describe rows.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the answer as CSV.")] = False,
) -> None:
    """Show what a run found, or answer an SQL query over its per-sample rows."""
    from .benchmarks import session

    if query is None and not (as_json or as_csv):
        Console().print(session.summary_table(run))
        return
    from .benchmarks.query import query_rows

    answer = query_rows(run, query or "select * from rows")
    if as_json:
        typer.echo(session.as_json(answer))
    elif as_csv:
        typer.echo(session.as_csv(answer))
    else:
        Console().print(session.as_table(answer))


def main() -> None:
    """Run the command line; a user's mistake ends in one line, not in a traceback."""
    keep_freed_memory()
    try:
        app()
    except (ValueError, FileNotFoundError, ImportError) as error:
        message = str(error)
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            message = f"Expected {package} to be installed: pip install 'genrobust[all]'"
        Console(stderr=True).print("[red]Error:[/red]", escape(message), highlight=False)
        raise SystemExit(2) from error
