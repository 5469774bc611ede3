"""Suites from Python: `genrobust.evaluate(model, "quick")` for anybody's module."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, final

import pyarrow as pa
import torch
from jaxtyping import Float
from rich.console import Group
from torch import Tensor, nn

from ..classifier import Classifier
from ..data import ImageDataset, dataset_info, load_dataset
from ..randomness import FixedNoise, FreshNoise, Mode, isolated_rng, noise_source
from .engines import Engine, EngineName
from .references import has_gradient, reference
from .report import render_table, write_report
from .results import Results
from .runner import run_suite
from .statistics import Summary, summarise
from .suite_files import load_suite
from .suites import Attack, Scale, Suite, SuiteModel

__all__ = ["Evaluation", "WrappedModule", "as_classifier", "evaluate", "for_dataset"]

PROBES, PROBE_IMAGES = 5, 8  # how often, and how many images, an own module is shown: does its answer repeat?


@final
class WrappedModule(Classifier):
    """Anybody's module as a classifier of this package: images in [0, 1] go in, logits come out.

    The module is used as it is, in evaluation mode; gradients go through it.

    Attributes:
        module: The module.
        noise: What seeds the global generators while the module answers; None lets it draw as it does.
    """

    def __init__(self, module: nn.Module, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(input_shape=input_shape, num_classes=num_classes)
        self.module = module.eval()
        self.noise: FixedNoise | FreshNoise | None = None
        if next(self.module.parameters(), None) is None:
            self.register_parameter("place", nn.Parameter(torch.zeros(()), requires_grad=False))

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Give the module's logits.

        Raises:
            ValueError: If it answers anything but a row of logits for each image.
        """
        answer = self._answer(x)
        if not isinstance(answer, Tensor) or answer.shape != (len(x), self.num_classes):
            shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(
                f"Expected `model` to give logits of shape ({len(x)}, {self.num_classes}), but got {shape}"
            )
        return answer

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Give a variant whose module draws from newly seeded global generators; without noise, itself.

        A module that has a generator of its own goes on drawing from that.

        Args:
            mode: `"fixed"`: the same noise at every call. `"fresh"`: other noise at every call.
            seed: The seed of every call, or of the generator.
            generator: The generator of the calls' seeds; it advances with every call.
        """
        if not self.randomized:
            return self
        return self._variant(noise=noise_source(mode, seed=seed, generator=generator))

    def _answer(self, x: Tensor) -> Any:
        match self.noise:
            case None:
                return self.module(x)
            case FixedNoise(seed=seed):
                pass
            case FreshNoise(generator=generator):
                seed = int(torch.randint(1 << 31, (), generator=generator, device=generator.device))
        with isolated_rng(seed):
            return self.module(x)


@final
class _Function(nn.Module):
    """A function without parameters as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@final
@dataclass(frozen=True)
class Evaluation:
    """What a suite found about models.

    Attributes:
        results: The run, with its per-sample rows.
    """

    results: Results

    @property
    def folder(self) -> Path:
        """Where the run lies; the same folder goes on with it."""
        return self.results.folder

    @property
    def rows(self) -> pa.Table:
        """Per-sample rows; see `cells.SCHEMA`."""
        return self.results.rows

    @cached_property
    def _summary(self) -> Summary:
        return summarise(self.results)

    def summary(self) -> Summary:
        """Give robust accuracies, unions of attacks, comparisons and curves."""
        return self._summary

    def table(self) -> Group:
        """Give the table, for `rich.print`."""
        return render_table(self.results, self._summary)

    def query(self, sql: str) -> pa.Table:
        """Answer an SQL query over the view `rows`."""
        from .query import query_rows

        return query_rows(self.folder, sql)

    def report(self) -> tuple[Path, ...]:
        """Write the report into the run's folder; give the paths of its files."""
        return tuple(write_report(self.results))


def evaluate(
    model: Callable[[Tensor], Tensor] | Mapping[str, Callable[[Tensor], Tensor]],
    suite: str | Path | Suite = "quick",
    *,
    dataset: ImageDataset | str | None = None,
    scale: Scale = "small",
    compare_with: tuple[str, ...] = (),
    out: Path | str | None = None,
    samples: int | None = None,
    seed: int = 0,
    jobs: int | None = None,
    engine: EngineName = "local",
    address: str | None = None,
    keep_examples: bool = False,
    show_progress: bool = True,
) -> Evaluation:
    """Run a suite against your own model, generative or not.

    Args:
        model: A module, or any differentiable function, from images in [0, 1] of shape (B, C, H, W) to logits
            (B, K); a classifier of this package; or several of them by name. One whose logits differ when it
            is shown an image again is attacked with as many draws of its noise as the suite asks for, and
            judged with draws that no attack has seen.
        suite: Name of a suite, path of a TOML file, or a suite.
        dataset: The test images, if they are not those of the suite's dataset.
        scale: As published, or reduced.
        compare_with: Models of the zoo that are attacked beside it.
        out: Folder of the run, which the same call goes on with; a new temporary one if None.
        samples: Number of test images; the suite's own number if None.
        seed: Of the choice of images, of attacks and noise.
        jobs: Processes.
        engine: `"local"`, or `"dask"` or `"ray"` for an existing cluster.
        address: Of the cluster.
        keep_examples: Keep every adversarial image.
        show_progress: Show progress on the standard error stream.

    Raises:
        ValueError: If the suite is unknown, or the model does not take its images.

    Example:
        >>> from genrobust import evaluate, load_model
        >>> found = evaluate(load_model("cnn", dataset="digits"), samples=2, show_progress=False)
        >>> found.rows.num_rows > 0
        True
    """
    chosen = suite if isinstance(suite, Suite) else load_suite(suite, scale=scale)
    images = dataset if isinstance(dataset, ImageDataset) else load_dataset(dataset or chosen.dataset, "test")
    chosen = for_dataset(chosen, images.name)
    mine = model if isinstance(model, Mapping) else {"model": model}
    models: dict[str, Any] = {name: as_classifier(part, dataset=images) for name, part in mine.items()}
    chosen = _with_second_gradients(chosen, models)
    models |= {name: reference(chosen, name) for name in compare_with}
    results = run_suite(
        chosen.restricted(list(models)),
        models=models,
        dataset=images,
        out=Path(tempfile.mkdtemp(prefix=f"genrobust-{chosen.name}-")) if out is None else Path(out),
        samples=samples,
        seed=seed,
        engine=Engine(name=engine, address=address, jobs=jobs),
        keep_examples=keep_examples,
        show_progress=show_progress,
    )
    return Evaluation(results)


def _with_second_gradients(suite: Suite, models: Mapping[str, Classifier]) -> Suite:
    """Have attacks by a gradient of their own run on every given model that has it, as on the suite's."""

    def extended(attack: Attack) -> Attack:
        if attack.gradient is None:
            return attack
        able = [name for name, model in models.items() if has_gradient(model, attack.gradient)]
        return replace(attack, for_models=tuple(dict.fromkeys((*attack.for_models, *able))))

    known = [model.name for model in suite.models]
    entries = (SuiteModel(name=name, title=name) for name in models if name not in known)
    return replace(suite, models=(*suite.models, *entries), attacks=tuple(map(extended, suite.attacks)))


def as_classifier(model: Callable[[Tensor], Tensor], *, dataset: ImageDataset) -> Classifier:
    """Give a classifier of this package for what maps images of a dataset to logits."""
    if isinstance(model, Classifier):
        return model
    module = model if isinstance(model, nn.Module) else _Function(model)
    wrapped = WrappedModule(module, input_shape=dataset.input_shape, num_classes=dataset.num_classes)
    wrapped.randomized = _draws_noise(wrapped, dataset)
    return wrapped


@torch.no_grad()
def _draws_noise(model: Classifier, dataset: ImageDataset) -> bool:
    """Say whether logits differ when a few images are shown again, by more than rounding."""
    images, _ = dataset.batch(slice(PROBE_IMAGES))
    images = images.to(next(model.parameters()).device)
    with isolated_rng(0):
        first, *others = (model(images) for _ in range(PROBES))
    tolerance = 1e-4 * float(first.nan_to_num().abs().max())
    return not all(torch.allclose(first, other, rtol=0, atol=tolerance, equal_nan=True) for other in others)


def for_dataset(suite: Suite, dataset: str) -> Suite:
    """Give a suite on other images, without the paper's numbers, which are of its own.

    Raises:
        ValueError: If there is no such dataset.
    """
    if dataset == suite.dataset:
        return suite
    dataset_info(dataset)
    note = f"On {dataset}, not on the paper's {suite.dataset}, so that its numbers do not stand beside ours."
    return replace(suite, dataset=dataset, expected=(), reduced=(*suite.reduced, note) if suite.paper else ())
