"""The functions that need a toolkit or the benchmarks: importing them needs neither, calling them does."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from .attack_view import AttackView, Output
from .contract import Classifier

if TYPE_CHECKING:
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier

    from .adapters._autoattack import AutoAttackBudget, AutoAttackNorm, Version
    from .adapters._foolbox import FoolboxModel, WrongAndAccepted
    from .adapters._robustbench import AutoAttackResult
    from .adapters._secmltorch import SecmlModel
    from .adapters._torchattacks import Crafting, FunctionAttack, TorchattacksModel
    from .attacks.pgd import BallNorm
    from .auditing import AuditBudget, AuditReport
    from .benchmarks.evaluate import AnyAttack, Evaluation
    from .benchmarks.run.engines import EngineName
    from .benchmarks.suites.model import Scale, Suite
    from .data import ImageDataset, Split

__all__ = [
    "as_torchattacks",
    "audit",
    "criterion_for_foolbox",
    "evaluate",
    "import_advertorch",
    "import_advlib",
    "run_autoattack",
    "wrap_for_advertorch",
    "wrap_for_advlib",
    "wrap_for_art",
    "wrap_for_foolbox",
    "wrap_for_robustbench",
    "wrap_for_secml",
    "wrap_for_torchattacks",
]


def wrap_for_foolbox(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> "FoolboxModel":
    """Wraps a classifier for Foolbox 3: bounds (0, 1), on the model's device.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query. 1 attacks the model as it is; above 1 every query
            combines fresh draws, as the model says.
        output: `"logits"`, `"probabilities"`, or `"decisions"` for decision-based attacks.
        seed: The seed of those draws.

    Raises:
        ImportError: If Foolbox is not installed.
        ValueError: If `eot` is no integer of at least 1, or above 1 for a model without randomness.
    """
    from .adapters import _foolbox

    return _foolbox.wrap_for_foolbox(model, eot, output=output, seed=seed)


def criterion_for_foolbox(labels: Int[Tensor, " batch"], num_classes: int) -> "WrongAndAccepted":
    """Returns Foolbox's criterion for a model that may reject: a class other than the label, not "reject".

    Args:
        labels: The classes of the clean images.
        num_classes: K; the column "reject" does not count.

    Raises:
        ImportError: If Foolbox is not installed.
    """
    from .adapters import _foolbox

    return _foolbox.WrongAndAccepted(labels, num_classes)


def wrap_for_art(
    model: Classifier,
    eot: int = 1,
    clip_values: tuple[float, float] = (0, 1),
    *,
    output: Output = "logits",
    black_box: bool = False,
    channels_first: bool = True,
    seed: int = 0,
) -> "PyTorchClassifier | BlackBoxClassifierNeuralNetwork":
    """Wraps a classifier for ART, as a stock `PyTorchClassifier` on the model's device.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query. 1 attacks the model as it is; above 1 every query
            combines fresh draws, as the model says.
        clip_values: Bounds that attacks keep to, within [0, 1].
        output: `"logits"`, `"probabilities"`, or `"decisions"` for decision-based attacks.
        black_box: Return a `BlackBoxClassifierNeuralNetwork`, which only predicts.
        channels_first: Whether images are (C, H, W); LaserAttack takes (H, W, C) only.
        seed: The seed of those draws.

    Raises:
        ImportError: If ART is not installed.
        ValueError: If `eot` is no integer of at least 1, or above 1 for a model without randomness; if
            `clip_values` are no interval within [0, 1]; or if ART does not know the model's device.
    """
    from .adapters import _art

    return _art.wrap_for_art(
        model,
        eot,
        clip_values,
        output=output,
        black_box=black_box,
        channels_first=channels_first,
        seed=seed,
    )


def wrap_for_advertorch(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> AttackView:
    """Wraps a classifier for the argument `predict` of AdverTorch's attacks.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query. 1 attacks the model as it is; above 1 every query
            combines fresh draws, as the model says.
        output: `"logits"`, `"probabilities"`, or `"decisions"` for decision-based attacks.
        seed: The seed of those draws.

    Raises:
        ImportError: If AdverTorch is not installed.
        ValueError: If `eot` is no integer of at least 1, or above 1 for a model without randomness.
    """
    from .adapters import _advertorch

    return _advertorch.wrap_for_advertorch(model, eot, output=output, seed=seed)


def import_advertorch() -> ModuleType:
    """Imports AdverTorch under a current torch and SciPy, with four of its attacks repaired.

    Raises:
        ImportError: If AdverTorch is not installed.
    """
    from .adapters import _advertorch

    return _advertorch.import_advertorch()


def wrap_for_advlib(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> AttackView:
    """Wraps a classifier for the argument `model` of adv-lib's attacks and of its `run_attack`.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query. 1 attacks the model as it is; above 1 every query
            combines fresh draws, as the model says.
        output: `"logits"`, which every attack of adv-lib expects, `"probabilities"` or `"decisions"`.
        seed: The seed of those draws.

    Raises:
        ImportError: If adv-lib is not installed.
        ValueError: If `eot` is no integer of at least 1, or above 1 for a model without randomness.
    """
    from .adapters import _advlib

    return _advlib.wrap_for_advlib(model, eot, output=output, seed=seed)


def import_advlib() -> ModuleType:
    """Imports adv-lib without visdom, which does not build any more.

    Raises:
        ImportError: If adv-lib or a package that it needs is not installed.
    """
    from .adapters import _advlib

    return _advlib.import_advlib()


def wrap_for_secml(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> "SecmlModel":
    """Wraps a classifier for secml-torch: its attacks, trackers and metrics take it as their `model`.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query. 1 attacks the model as it is; above 1 every query
            combines fresh draws, as the model says.
        output: `"logits"`, `"probabilities"`, or `"decisions"` for decision-based attacks.
        seed: The seed of those draws.

    Raises:
        ImportError: If secml-torch is not installed.
        ValueError: If `eot` is no integer of at least 1, or above 1 for a model without randomness.
    """
    from .adapters import _secmltorch

    return _secmltorch.wrap_for_secml(model, eot, output=output, seed=seed)


def wrap_for_torchattacks(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> "TorchattacksModel":
    """Wraps a classifier for torchattacks 3, whose attacks take it like any `nn.Module`.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query. 1 attacks the model as it is; above 1 every query
            combines fresh draws, whose generator torchattacks cannot reset.
        output: `"logits"`, `"probabilities"`, or `"decisions"` for decision-based attacks.
        seed: The seed of those draws.

    Raises:
        ImportError: If torchattacks is not installed.
        ValueError: If `eot` is no integer of at least 1, or above 1 for a model without randomness.
    """
    from .adapters import _torchattacks

    return _torchattacks.wrap_for_torchattacks(model, eot, output=output, seed=seed)


def as_torchattacks(
    name: str, model: nn.Module, attack: "Crafting", *, targeted_attack: "Crafting | None" = None
) -> "FunctionAttack":
    """Makes an attack of torchattacks of a function, such as another toolkit's attack.

    Args:
        name: What the attack is called.
        model: What `wrap_for_torchattacks` returned.
        attack: Returns adversarial images for images and their classes.
        targeted_attack: Returns them for images and the classes to reach.

    Raises:
        ImportError: If torchattacks is not installed.
        ValueError: If `name` is no string.
        TypeError: If `model` is no module, or an attack no function.
    """
    from .adapters import _torchattacks

    return _torchattacks.as_torchattacks(name, model, attack, targeted_attack=targeted_attack)


def wrap_for_robustbench(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> AttackView:
    """Wraps a classifier for `robustbench.benchmark` and AutoAttack.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query, which the model combines.
        output: `"logits"`, which AutoAttack expects; `"probabilities"`, which it flags; or `"decisions"`, on
            which only Square runs.
        seed: The seed of those draws.

    Raises:
        ImportError: If AutoAttack is not installed.
        ValueError: If `eot` is no integer of at least 1, or above 1 for a model without randomness.
    """
    from .adapters import _robustbench

    return _robustbench.wrap_for_robustbench(model, eot, output=output, seed=seed)


def run_autoattack(
    model: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channels height width"],
    labels: Integer[Tensor, " batch"],
    *,
    norm: "AutoAttackNorm" = "linf",
    epsilon: float,
    version: "Version" = "standard",
    attacks: Sequence[str] | None = None,
    budget: "AutoAttackBudget | None" = None,
    eot: int = 1,
    output: Output = "logits",
    batch_size: int = 250,
    seed: int = 0,
    again: int = 3,
    judge: Callable[[Tensor], Tensor] | None = None,
    package: str | None = None,
) -> "AutoAttackResult":
    """Runs AutoAttack, and judges what it returns with fresh noise.

    Args:
        model: The model that is attacked; any module or function from images to logits, which
            `as_classifier` wraps.
        images: Clean images in [0, 1], of any float dtype, on the model's device.
        labels: Their classes: integers of any width in [0, K).
        norm: The norm of the threat model.
        epsilon: The radius of the ball.
        version: `"standard"` (RobustBench's), `"plus"`, or `"rand"`, which attacks a randomised model with
            fresh noise.
        attacks: Out of `"apgd-ce"`, `"apgd-dlr"`, `"apgd-t"`, `"fab"`, `"fab-t"`, `"square"`, in order; by
            default those of the version.
        budget: Settings in place of the version's.
        eot: Draws of the model's noise per query.
        output: What AutoAttack is shown.
        batch_size: Images per batch; AutoAttack's checks, and the rules', look at the first batch.
        seed: The seed of AutoAttack and of the draws.
        again: How often AutoAttack may run again on images whose claim fell.
        judge: The model with the budget that verdicts are made with; by default `model`.
        package: `"pyautoattack"` or `"autoattack"`; by default the first that is installed.

    Raises:
        ValueError: If an argument is invalid, or an attack needs more classes than the model has, or a
            gradient that it does not have.
        ImportError: If AutoAttack is not installed.
    """
    from .adapters import _robustbench

    return _robustbench.run_autoattack(
        model,
        images,
        labels,
        norm=norm,
        epsilon=epsilon,
        version=version,
        attacks=attacks,
        budget=budget,
        eot=eot,
        output=output,
        batch_size=batch_size,
        seed=seed,
        again=again,
        judge=judge,
        package=package,
    )


def audit(
    model: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channels height width"],
    labels: Integer[Tensor, " batch"],
    *,
    norm: "BallNorm" = "linf",
    epsilon: float,
    attacked: Callable[[Tensor], Tensor] | None = None,
    sources: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    budget: "AuditBudget | None" = None,
    checks: Sequence[str] | None = None,
    seed: int = 0,
    name: str | None = None,
    show_progress: bool = True,
) -> "AuditReport":
    """Checks whether a robustness number of a model would be believable, by attacks of its own.

    Args:
        model: The deployed model, whose decisions count; any module or function from images in [0, 1] to
            logits, which `as_classifier` wraps.
        images: Clean images in [0, 1], of any float dtype.
        labels: Their classes: integers of any width in [0, K).
        norm: The norm of the threat model, `"linf"` or `"l2"`.
        epsilon: The radius of the ball.
        attacked: A cheaper variant of the model, which attacks query; by default the model itself, or, if it
            searches latents, the model with the budget's `candidates` and `refinement`.
        sources: Other models of the same images, by name, whose adversarial examples are transferred.
        budget: How hard the checks try; by default `AuditBudget.fitting(model)`.
        checks: Names of checks; by default all.
        seed: The seed of every draw.
        name: What the report calls the model; by default its class.
        show_progress: Print each verdict on the standard error stream.

    Raises:
        ImportError: If the extra `bench` is not installed.
        ValueError: If an argument is invalid, or a check is unknown.

    Example:
        >>> from genrobust import audit, load_dataset, load_model
        >>> images, labels = load_dataset("digits", "test").batch(slice(4))
        >>> model = load_model("cnn", dataset="digits")
        >>> report = audit(model, images, labels, epsilon=0.1, checks=["zero gradient"], show_progress=False)
        >>> report.finding("zero gradient").verdict
        'pass'
    """
    from .auditing import running

    return running.audit(
        model,
        images,
        labels,
        norm=norm,
        epsilon=epsilon,
        attacked=attacked,
        sources=sources,
        budget=budget,
        checks=checks,
        seed=seed,
        name=name,
        show_progress=show_progress,
    )


def evaluate(
    model: Callable[[Tensor], Tensor] | Mapping[str, Callable[[Tensor], Tensor]],
    suite: "str | Path | Suite" = "quick",
    *,
    attacks: "Sequence[AnyAttack]" = (),
    dataset: "ImageDataset | str | None" = None,
    split: "Split" = "test",
    scale: "Scale" = "small",
    compare_with: tuple[str, ...] = (),
    out: Path | str | None = None,
    samples: int | None = None,
    seed: int = 0,
    jobs: int | None = None,
    engine: "EngineName" = "local",
    address: str | None = None,
    keep_examples: bool = False,
    show_progress: bool = True,
) -> "Evaluation":
    """Runs a suite against your own model, generative or not.

    Args:
        model: A module, or any differentiable function, from images in [0, 1] of shape (B, C, H, W) to logits
            (B, K); a classifier of this package; or several of them by name.
        suite: The name of a suite, the path of a TOML file, or a suite.
        attacks: Attacks beside the suite's own: functions that `register_attack` decorates, their names, or
            entries of a suite.
        dataset: The images, or the name of a data set; by default the suite's.
        split: The part of a named data set that is attacked; `"validation"` to compare settings without a
            look at the test images.
        scale: `"paper"`, as published, or `"small"`.
        compare_with: Models of the zoo that are attacked beside it.
        out: The folder of the run, which the same call continues; a new temporary one if None.
        samples: The number of images; the suite's own number if None.
        seed: The seed of the choice of images, of attacks and noise.
        jobs: The number of processes.
        engine: `"local"`, or `"dask"` or `"ray"` for an existing cluster.
        address: The address of the cluster.
        keep_examples: Keep every adversarial image.
        show_progress: Show progress on the standard error stream.

    Raises:
        ImportError: If the extra `bench` is not installed.
        ValueError: If the suite or an attack is unknown, the suite has no threat model of an attack's norm,
            the model does not take its images, there is a `split` of images in memory, or `compare_with`
            names a model that is given too.
        RuntimeError: If a cell failed; its attribute `evaluation` has what is there.

    Example:
        >>> from genrobust import evaluate, load_model
        >>> found = evaluate(load_model("cnn", dataset="digits"), samples=2, show_progress=False)
        >>> found.rows.num_rows > 0
        True
    """
    from .benchmarks import evaluate as implementation

    return implementation.evaluate(
        model,
        suite,
        attacks=attacks,
        dataset=dataset,
        split=split,
        scale=scale,
        compare_with=compare_with,
        out=out,
        samples=samples,
        seed=seed,
        jobs=jobs,
        engine=engine,
        address=address,
        keep_examples=keep_examples,
        show_progress=show_progress,
    )
