"""Compare inference with the published schedule: `python -m genrobust.benchmarks.speed.agreement STUDY`.

decisions: compare both paths' decisions and best objectives on clean images. attacks: compare them on
adversarial examples made against either path. expected: compare objectives on fresh draws, on clean, noisy
and attacked images. slopes: compare finite differences with the envelope gradient, at the optima of BFGS and
of Adam. warm-start: compare an attack's success with and without warm starts. A study whose --json file
exists continues where that file ends.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from ..._files import write_json
from ..._malloc import keep_freed_memory
from ...data import Split, load_dataset
from ...models._latent import LatentClassifier
from ...zoo import load_model, read_model
from .partial import run_in_batches
from .studies import STUDIES, Paths

__all__ = ["main"]

IMAGES_SEED = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one study, prints its summary, and writes it next to its rows.

    Raises:
        ValueError: If the model optimises no latents, or the file holds rows of other settings.
    """
    options = _parser().parse_args(arguments)
    study = STUDIES[options.study]
    name, count = options.model or study.model, options.images or study.images
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    images = load_dataset(options.dataset, options.split, root=options.data_root)
    x, y = images.stratified(count, seed=IMAGES_SEED).batch(slice(None))
    paths = Paths(
        _model(name, options).to(options.device),
        attack_steps=options.attack_steps,
        attack_budget=_budget(options.attack_budget),
        draws=options.draws,
    )
    settings = {
        "study": options.study,
        "model": name,
        "dataset": options.dataset,
        "split": options.split,
        "method": options.method,
        "budget": options.budget,
        "attack_steps": options.attack_steps,
        "attack_budget": options.attack_budget,
        "draws": options.draws,
    }
    measure, path = partial(study.measure, paths), options.json
    x, y = x.to(options.device), y.to(options.device)
    columns = run_in_batches(measure, x, y, batch_size=options.batch_size, settings=settings, path=path)
    summary = {"images": len(columns["label"]), **study.summarize(columns)}
    sys.stdout.writelines(f"{key}: {value:.6g}\n" for key, value in summary.items())
    if path is not None:
        write_json(path, {"settings": settings, "summary": summary, "columns": columns})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m genrobust.benchmarks.speed.agreement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = ", ".join(f"{study.images} for {name}" for name, study in STUDIES.items())
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--images", type=int, help=f"of every class of the split: {defaults}")
    parser.add_argument("--batch-size", type=int, default=50, help="images at once, and between two saves")
    parser.add_argument("--json", type=Path, help="rows and summary; it goes on where the file ends")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--model", help="a shipped model, or a file; abs, and eabs for expected")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument(
        "--split", default="test", choices=get_args(Split), help="validation to compare settings"
    )
    parser.add_argument("--data-root", type=Path, help="folder of <dataset>.npz")
    parser.add_argument("--method", default="auto", help="of the fast path: auto, bfgs or adam")
    parser.add_argument("--budget", default="", help="of both paths, such as candidates=1000,steps=10")
    parser.add_argument("--attack-steps", type=int, default=20, help="of projected gradient descent")
    parser.add_argument("--attack-budget", default="", help="such as candidates=1000: while attacking")
    parser.add_argument("--draws", type=int, default=32, help="of an expected objective")
    return parser


def _model(name: str, options: argparse.Namespace) -> LatentClassifier:
    shipped = not name.endswith(".safetensors")
    model = load_model(name, dataset=options.dataset) if shipped else read_model(name)
    if not isinstance(model, LatentClassifier):
        raise ValueError(f"Expected a model that optimises latents, but got {name!r}")
    # The plain path has the envelope's gradient, and attacks on both must follow the same one.
    model = model.with_gradient("envelope")
    return model.with_inference(method=options.method, **_budget(options.budget))


def _budget(text: str) -> dict[str, Any]:
    """Reads `candidates=1000,steps=10`."""
    parts = [part.partition("=") for part in text.split(",") if part]
    if wrong := [name for name, _, value in parts if not value.isdigit()]:
        raise ValueError(f"Expected fields such as candidates=1000, but got no whole number for {wrong}")
    return {name: int(value) for name, _, value in parts}


if __name__ == "__main__":
    main()
