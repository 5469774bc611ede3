"""Attacks of ART, built and run by the entries of its catalogue."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, final

import numpy as np
import torch
from art.attacks import evasion
from art.attacks.evasion.laser_attack.laser_attack import LaserBeam, LaserBeamGenerator
from art.estimators.classification import PyTorchClassifier
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._targets import nearest_start
from .contract import AttackEntry, Crafted, keywords

__all__ = ["accepts", "craft", "legacy_numpy", "num_classes"]

Array = np.ndarray[Any, Any]

PER_IMAGE = frozenset({"guides", "x_adv_init", "x_tar"})  # arguments of `generate`, one row for each image
CALL_PARAMETERS = PER_IMAGE | {
    "cost_matrix",
    "focal",
    "mask",
    "maxiter",
    "obj_width",
    "pts",
    "scale",
    "x_init",
}
NOISE_STARTS = 64  # number of noise images that are candidates for a starting point, beside the batch
STEP = 0.25  # size of a step, as a fraction of epsilon
FIRST_STEP = 2.0  # size of the first step, for attacks that halve their steps
HALVING = frozenset(
    {
        "AutoAttack",
        "AutoConjugateGradient",
        "AutoProjectedGradientDescent",
        "RescalingAutoConjugateGradient",
    }
)


def craft(
    entry: AttackEntry,
    target: Any,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    targeted: bool = False,
) -> Crafted:
    """Runs one of ART's attacks on one batch.

    An attack that needs an adversarial starting point starts at the nearest one in the batch or in uniform
    noise. Images without a starting point are returned unchanged. If `targeted` is False, an attack that
    always needs a target gets the runner-up class, and an attack that makes one perturbation for all images
    gets a class that no image has. GeoDA runs in a separate working directory.

    Args:
        entry: The attack, with its parameters: arguments of its constructor or of its `generate`
            (`x_adv_init`, `mask`, ...), or the `scale` of a patch. A parameter may be an entry too, for
            attacks made of others.
        target: The estimator that `wrap_for_art` returned.
        images: Images in [0, 1].
        labels: Their classes, or the target classes if `targeted`.
        epsilon: Radius of the ball, for attacks that need one. Default step sizes are a quarter of it, or
            twice the radius if the attack halves them on the way.
        targeted: Whether the attack is to reach `labels`.

    Returns:
        The images; ART does not say where it succeeded.

    Raises:
        ValueError: If ART lacks the attack here, or the attack cannot be targeted, lacks an epsilon, or does
            not take a parameter.
    """
    merged = dict(entry.parameters)
    call = {name: merged.pop(name) for name in CALL_PARAMETERS & merged.keys()}
    layout = (0, 1, 2, 3) if target.channels_first else (0, 2, 3, 1)
    task = _Task(
        estimator=target,
        x=images.detach().permute(layout).cpu().numpy().astype(np.float32),
        labels=labels.cpu().numpy(),
        targeted=targeted,
        call=call,
    )
    with _surroundings(entry.name):
        attack = _build(replace(entry, parameters=merged), target, epsilon=epsilon, targeted=targeted)
        found = MANNERS.get(entry.name, _plainly)(attack, task)
    first = found if target.channels_first else found.transpose(0, 3, 1, 2)
    return Crafted(torch.from_numpy(np.ascontiguousarray(first)).to(images))


def accepts(name: str) -> dict[str, inspect.Parameter]:
    """Returns the parameters of an attack; see `contract.Implementation`."""
    taken = dict(inspect.signature(_kind(name)).parameters)
    beams = ("min_laser_beam", "max_laser_beam") if "laser_generator" in taken else ()
    own = {name: part for name, part in taken.items() if name not in ("estimator", "classifier")}
    return own | keywords(*CALL_PARAMETERS, *beams)


@contextmanager
def legacy_numpy() -> Iterator[None]:
    """Provides what NumPy 2 removed and ART still calls: `np.mat` for GeoDA, `np.asfarray` for LaserAttack.

    The names exist for the whole process while the block runs, and not after it.
    """

    def as_floats(values: Any) -> Array:
        return np.asarray(values, dtype=float)

    stand_ins = {"mat": np.asarray, "asfarray": as_floats}
    with _substituted(np, {name: it for name, it in stand_ins.items() if not hasattr(np, name)}):
        yield


def num_classes(estimator: Any) -> int:
    """Returns the K classes behind an estimator of `wrap_for_art`, without the column "reject".

    Raises:
        ValueError: If `estimator` is not one of `wrap_for_art`.
    """
    # ART gives no access to the prediction function of a black box.
    white_box = isinstance(estimator, PyTorchClassifier)
    module = estimator.model if white_box else getattr(estimator, "_predict_fn", None)
    count = getattr(module, "num_classes", None)
    if not isinstance(count, int):
        raise ValueError(f"Expected an estimator of `wrap_for_art`, but got {type(estimator).__name__}")
    return count


# Building attacks.


def _kind(name: str) -> Any:
    kind = getattr(evasion, name, None)
    if kind is None:
        raise ValueError(f"Expected an attack that ART exports here, but got {name!r}")
    return kind


def _build(entry: AttackEntry, estimator: Any, *, epsilon: float | None, targeted: bool) -> Any:
    """Builds the toolkit's own attack object, and the attack objects that it contains."""
    kind = _kind(entry.name)
    if targeted and not entry.targeted:
        raise ValueError(f"Expected an attack that can be told its target, but got {entry.name!r}")

    def built(value: Any) -> Any:
        if isinstance(value, AttackEntry):
            return _build(value, estimator, epsilon=epsilon, targeted=targeted)
        return [built(part) for part in value] if isinstance(value, list) else value

    accepted = inspect.signature(kind).parameters
    given = {name: built(value) for name, value in _with_generators(entry.parameters).items()}
    unknown = sorted(given.keys() - accepted.keys())
    if unknown:
        raise ValueError(f"Expected parameters that {entry.name} takes, but got {unknown}")
    offered = {"targeted": targeted, "verbose": False, **_sizes(estimator), **_radius(entry, epsilon)}
    attack = kind(estimator, **{name: it for name, it in offered.items() if name in accepted} | given)
    for part in getattr(attack, "attacks", ()):  # AutoAttack has no switch for its output
        part.set_params(verbose=False)
    return attack


def _radius(entry: AttackEntry, epsilon: float | None) -> dict[str, Any]:
    """Returns epsilon under all its names, and the step sizes that depend on it."""
    if not entry.needs_epsilon:
        return {}
    if epsilon is None:
        raise ValueError(f"Expected an `epsilon` for {entry.name}, but got none")
    step = (FIRST_STEP if entry.name in HALVING else STEP) * epsilon
    threshold = epsilon if entry.norm == "l0" else 255 * epsilon + 1e-6  # pixels, or grey levels
    radius = {"eps": epsilon, "eps_step": step, "step_size": step, "th": int(threshold)}
    return {"delta": epsilon, **radius} if entry.name.startswith("FeatureAdversaries") else radius


def _sizes(estimator: Any) -> dict[str, Any]:
    """Returns the parameters that depend on the shape of the images."""
    shape = estimator.input_shape
    channels, height, width = shape if estimator.channels_first else (shape[2], *shape[:2])
    edge = min(height, width)
    return {
        "net_size": (width, height),
        "noise_size": (width, height),
        "patch_shape": (channels, edge, edge),
    }


def _with_generators(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Adds LaserAttack's generator of beams: wavelength (nm), angle (rad), bias and width (pixels)."""
    given = dict(parameters)
    beams = [given.pop(name) for name in ("min_laser_beam", "max_laser_beam") if name in given]
    if len(beams) == 2:
        given["laser_generator"] = LaserBeamGenerator(*(LaserBeam.from_array(list(it)) for it in beams))
    return given


# Running attacks, each as it wants to be called.


@final
@dataclass(frozen=True, kw_only=True)
class _Task:
    """The task of an attack.

    Attributes:
        estimator: The victim.
        x: Clean images, in the victim's layout.
        labels: Their classes, or the target classes if `targeted`.
        targeted: Whether the attack is to reach `labels`.
        call: Further arguments of `generate`.
    """

    estimator: Any
    x: Array
    labels: Array
    targeted: bool
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def y(self) -> Array:
        """The labels in ART's one-hot code."""
        return np.eye(self.estimator.nb_classes, dtype=np.float32)[self.labels]

    def rows(self, chosen: Array) -> "_Task":
        """Returns the task for some of the images."""
        call = {name: it[chosen] if name in PER_IMAGE else it for name, it in self.call.items()}
        return replace(self, x=self.x[chosen], labels=self.labels[chosen], call=call)

    def toward(self, labels: Array) -> "_Task":
        """Returns the task with other labels."""
        return replace(self, labels=labels)

    def saying(self, name: str, value: Any) -> "_Task":
        """Returns the task with a further argument."""
        return replace(self, call={**self.call, name: value})


Manner = Callable[[Any, _Task], Array]


def _plainly(attack: Any, task: _Task) -> Array:
    images: Array = attack.generate(task.x, y=task.y, **task.call)
    return images


def _with_indices(attack: Any, task: _Task) -> Array:
    images: Array = attack.generate(task.x, y=task.labels, **task.call)
    return images


def _with_targets_only(attack: Any, task: _Task) -> Array:
    # ART would read labels as targets.
    images: Array = attack.generate(task.x, y=task.y if task.targeted else None, **task.call)
    return images


def _patched(attack: Any, task: _Task) -> Array:
    attack.generate(task.x, y=task.y)
    images: Array = attack.apply_patch(task.x, task.call.get("scale", 0.5))
    return images


def _one_by_one(manner: Manner) -> Manner:
    def each(attack: Any, task: _Task) -> Array:
        rows = (task.rows(np.array([row])) for row in range(len(task.x)))
        return np.concatenate([manner(attack, row) for row in rows])

    return each


def _toward_runner_up(attack: Any, task: _Task) -> Array:
    return _plainly(attack, task if task.targeted else task.toward(_rivals(task).argmax(1)))


def _toward_one_class(manner: Manner) -> Manner:
    def toward(attack: Any, task: _Task) -> Array:
        if task.targeted:
            return manner(attack, task)
        scores = _rivals(task)
        absent = np.isfinite(scores).all(0)
        best = np.where(absent, scores.mean(0), -np.inf) if absent.any() else np.isfinite(scores).sum(0)
        return manner(attack, task.toward(np.full_like(task.labels, best.argmax())))

    return toward


def _from_starts(keyword: str, *, manner: Manner = _plainly) -> Manner:
    """Returns a manner that passes an adversarial image per image as `keyword`, unless the caller did."""

    def start(attack: Any, task: _Task) -> Array:
        if keyword in task.call:
            return manner(attack, task)
        points, found = _starting_points(task)
        images = task.x.copy()
        if found.any():
            images[found] = manner(attack, task.rows(found).saying(keyword, points[found]))
        return images

    return start


def _toward_guides(attack: Any, task: _Task) -> Array:
    call = dict(task.call)
    images: Array = attack.generate(task.x, call.pop("guides"), **call)
    return images


def _toward_examples(attack: Any, task: _Task) -> Array:
    return _plainly(attack, task.toward(task.estimator.predict(task.call["x_tar"]).argmax(1)))


MANNERS: dict[str, Manner] = {
    "AdversarialPatch": _patched,
    "AdversarialPatchNumpy": _toward_one_class(_patched),
    "AdversarialPatchPyTorch": _patched,
    "BoundaryAttack": _from_starts("x_adv_init"),
    "BrendelBethgeAttack": _from_starts("x_adv_init", manner=_one_by_one(_plainly)),
    "FeatureAdversariesNumpy": _from_starts("guides", manner=_one_by_one(_toward_guides)),
    "FeatureAdversariesPyTorch": _from_starts("guides", manner=_toward_guides),
    "GRAPHITEBlackbox": _from_starts("x_tar", manner=_toward_examples),
    "GRAPHITEWhiteboxPyTorch": _toward_runner_up,
    "HopSkipJump": _from_starts("x_adv_init"),
    "LaserAttack": _with_indices,
    "SaliencyMapMethod": _toward_runner_up,
    "ShadowAttack": _one_by_one(_with_targets_only),
    "TargetedUniversalPerturbation": _toward_one_class(_plainly),
}


def _rivals(task: _Task) -> Array:
    """Returns the scores of the classes that a decision may change to; label and "reject" are excluded."""
    scores: Array = np.array(task.estimator.predict(task.x))[:, : num_classes(task.estimator)]
    scores[np.arange(len(scores)), task.labels] = -np.inf
    return scores


def _starting_points(task: _Task) -> tuple[Float[np.ndarray, "batch ..."], Bool[np.ndarray, " batch"]]:
    """Returns for every image the nearest one with another decision, or with the target class, if any."""
    low, high = task.estimator.clip_values
    noise = np.random.uniform(low, high, (NOISE_STARTS, *task.x.shape[1:]))  # noqa: NPY002
    candidates = np.concatenate([task.x, noise.astype(np.float32)])
    decisions = task.estimator.predict(candidates).argmax(1)
    same = decisions == task.labels[:, None]
    usable = (same if task.targeted else ~same) & (decisions < num_classes(task.estimator))
    tensors = (torch.from_numpy(array) for array in (task.x, candidates, usable))
    points, distances = nearest_start(*tensors, norm="l2")
    return points.numpy(), distances.isfinite().numpy()


# What attacks do to the process around them.


@contextmanager
def _surroundings(name: str) -> Iterator[None]:
    with ExitStack() as stack:
        if name in ("GeoDA", "LaserAttack"):
            stack.enter_context(legacy_numpy())
        if name == "GeoDA":  # writes a file into the working directory, and trusts one that is there
            stack.enter_context(chdir(stack.enter_context(TemporaryDirectory())))
        if name == "BrendelBethgeAttack":  # there is no switch for this output
            stack.enter_context(_substituted(import_module("tqdm.auto"), {"trange": range}))
        yield


@contextmanager
def _substituted(module: ModuleType, names: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in names if hasattr(module, name)}
    for name, value in names.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name in names:
            if name in before:
                setattr(module, name, before[name])
            else:
                delattr(module, name)
