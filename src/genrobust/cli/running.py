"""What `genrobust bench` runs: a suite by its name, with the weights that are there."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .._console import say
from .._fields import AtLeastOne, Seed, check_fields
from ..benchmarks.evaluate import for_dataset
from ..benchmarks.run.engines import Engine
from ..benchmarks.run.references import ModelReference, missing_weights, reference
from ..benchmarks.run.results import Results
from ..benchmarks.run.runner import run_suite
from ..benchmarks.suites.files import load_suite
from ..benchmarks.suites.model import PARTS, Scale, Suite
from ..data import Split, load_dataset

__all__ = ["BenchOptions", "run_bench"]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What a run of a suite is told; see `genrobust bench --help`."""

    suite: str
    scale: Scale = "small"
    out: Path | None = None
    samples: AtLeastOne | None = None
    seed: Seed = 0
    models: str | None = None
    dataset: str | None = None
    split: Split = "test"
    data_root: Path | None = None
    folder: Path | None = None
    skip_missing: bool = False
    device: str = "cpu"
    engine: Engine = field(default_factory=Engine)
    keep_examples: bool = False
    command: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def run_bench(options: BenchOptions) -> Results:
    """Run a suite, or go on with it.

    Raises:
        ValueError: If something is unknown, or weights are missing: the message has the commands that make
            them.
    """
    suite = load_suite(options.suite, scale=options.scale)
    name = options.dataset or suite.dataset
    part, references = _with_weights(replace(suite, dataset=name), options)
    images = load_dataset(name, options.split, root=options.data_root)
    suite = for_dataset(replace(part, dataset=suite.dataset), images, root=options.data_root)
    count = suite.samples if options.samples is None else options.samples
    _check_device(options.device)
    say("weights: " + "; ".join(f"{name} {source.origin}" for name, source in references.items()))
    return run_suite(
        suite,
        models=references,
        dataset=replace(images, name=suite.dataset),
        samples=count,
        seed=options.seed,
        out=options.out or _folder(suite, count, options),
        engine=options.engine,
        keep_examples=options.keep_examples,
        command=options.command,
    )


def _folder(suite: Suite, count: int, options: BenchOptions) -> Path:
    scale = "" if options.scale == "small" else f"-{options.scale}"
    dataset = "" if options.dataset is None else f"-{options.dataset}"
    split = "" if options.split == "test" else f"-{options.split}"
    return Path("runs") / f"{suite.name}{scale}{dataset}{split}-{count}-samples-seed-{options.seed}"


def _with_weights(suite: Suite, options: BenchOptions) -> tuple[Suite, dict[str, ModelReference]]:
    """Give references of the models, and the part of the suite that they can run."""
    names = [part.strip() for part in options.models.split(",")] if options.models else None
    chosen = names or [model.name for model in suite.models]
    references = {
        name: reference(suite, name, folder=options.folder, device=options.device) for name in chosen
    }
    missing = missing_weights(references.values())
    if missing and not (options.skip_missing and len(missing) < len(references)):
        folder = next(iter(references.values())).trained.parent
        commands = "; ".join(f"{name}: `{command}`" for name, command in missing.items())
        raise ValueError(
            f"Expected weights of every model, but {', '.join(missing)} of {suite.name!r} on {suite.dataset} "
            f"are not shipped, and not in {folder}. Make them ({commands}), "
            "name another --folder, or run with those that are there by --skip-missing"
        )
    there = {name: source for name, source in references.items() if name not in missing}
    needed = {attack.against for attack in suite.attacks} - {None, *PARTS}
    if names and (sources := needed - set(there)) and not options.skip_missing:
        raise ValueError(
            f"Expected {', '.join(sorted(map(str, sources)))} among --models, whose examples are "
            "transferred; --skip-missing leaves these attacks out"
        )
    return suite.restricted(list(there)), there


def _check_device(device: str) -> None:
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"Expected a `device` that is here, but got {device!r}: {reason}") from error
