"""adv-lib, imported without visdom; its attacks are functions that take a wrapped model."""

import inspect
import math
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..attack_view import AttackView, Output, attack_view, classifier_behind
from ..contract import Classifier
from ..verification import wrong_and_accepted
from ._stand_ins import importing_advlib
from ._targets import nearest_claim_of_every_class
from .contract import AttackEntry, Crafted, importable

__all__ = ["accepts", "craft", "import_advlib", "successes", "wrap", "wrap_for_advlib"]

RADII = ("ε", "eps")  # adv-lib's names for the radius of the ball
NORMS = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}
FILLED_IN = {"model", "inputs", "images", "labels", "targeted", "norm", "p", "num_classes", "kwargs"}
HOW = "pip install 'genrobust[advlib]', then pip install --no-deps adv-lib"


def _check_installed() -> None:
    if not importable("adv_lib"):
        raise ImportError(f"Expected adv-lib to be installed: {HOW}", name="adv_lib")


_check_installed()


def import_advlib() -> ModuleType:
    """Imports adv-lib where visdom is not installed, whose last release does not build any more.

    adv-lib 0.2.8 imports visdom and `distutils`, and uses them for plots and for the version of torch.
    Stand-ins have these names during the import. A visdom that is installed is used.

    Returns:
        The package, with `attacks` and `utils.attack_utils`.

    Raises:
        ImportError: If adv-lib or a package that it needs is not installed.
    """
    _check_installed()
    try:
        with importing_advlib():
            advlib = import_module("adv_lib")
            for name in ("attacks", "utils.attack_utils"):
                import_module(f"adv_lib.{name}")
    except ImportError as error:
        raise ImportError(
            f"Expected what adv-lib needs to be installed ({error}): {HOW}", name=error.name
        ) from error
    return advlib


def wrap_for_advlib(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> AttackView:
    """Wraps a classifier as `genrobust.wrap_for_advlib` says."""
    return attack_view(model, eot=eot, output=output, seed=seed)


wrap = wrap_for_advlib


@torch.no_grad()
def successes(
    model: nn.Module,
    x_adv: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    targeted: bool = False,
) -> Bool[Tensor, " batch"]:
    """Returns where an attack succeeded: the logits are finite, and the decision is wrong and no rejection.

    adv-lib's `compute_attack_metrics` counts "reject" as another wrong class, and logits of NaN as class 0.

    Args:
        model: The model that `wrap_for_advlib` returned.
        x_adv: The images that the attack returned.
        y: The true classes, or the target classes if `targeted`.
        targeted: Whether success means to reach `y`.

    Raises:
        ValueError: If `model` is another module.
    """
    num_classes = classifier_behind(model).num_classes
    return wrong_and_accepted(model(x_adv), y, num_classes=num_classes, targeted=targeted)


def craft(
    entry: AttackEntry,
    target: AttackView,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    targeted: bool = False,
) -> Crafted:
    """Runs one attack of adv-lib on one batch; see `contract.Implementation`.

    The function fills in the norm that the entry is for, and the number of classes. On a model that may
    reject, an attack that can be targeted runs against every other class, and each image's closest success is
    kept.

    adv-lib never says whether an attack succeeded.

    Args:
        entry: The attack, with its parameters.
        target: The model that `wrap_for_advlib` returned.
        images: Images in [0, 1], on the model's device.
        labels: Their classes, or the target classes if `targeted`.
        epsilon: Radius of the ball, for attacks that search within one; others look for the nearest example.
        targeted: Whether the attack is to reach `labels`.

    Raises:
        ValueError: If adv-lib lacks the attack, if the attack takes other parameters, if it needs one radius
            and gets none or two, if it cannot be targeted, or if an image is outside [0, 1].
    """
    if targeted and not entry.targeted:
        raise ValueError(f"Expected `targeted` of False for {entry.name}, which cannot be told a class")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"Expected `images` in [0, 1], but got {images.min():.7g} to {images.max():.7g}")
    model = classifier_behind(target)
    settings = _settings(entry, model, epsilon)

    def run(goal: Tensor, targeted: bool) -> Tensor:
        with torch.enable_grad():
            found: Tensor = _function(entry.name)(target, images.clone(), goal, targeted=targeted, **settings)
        return found.detach()

    def toward(goal: Tensor) -> Crafted:
        found = run(goal, True)
        return Crafted(found, successes(target, found, labels))

    if model.rejects and entry.targeted and not targeted:
        return nearest_claim_of_every_class(
            toward, images, labels, num_classes=model.num_classes, norm=entry.measure
        )
    return Crafted(run(labels, targeted))


def accepts(name: str) -> dict[str, inspect.Parameter]:
    """Returns the parameters of an attack; see `contract.Implementation`."""
    taken = inspect.signature(_function(name)).parameters
    return {name: part for name, part in taken.items() if name not in FILLED_IN}


def _function(name: str) -> FunctionType:
    """Returns the function of adv-lib behind an entry, whose name may end in a norm."""
    advlib = import_advlib()
    found = vars(advlib.attacks).get(name.partition("-")[0])
    if not isinstance(found, FunctionType):
        raise ValueError(f"Expected an attack of adv-lib {advlib.__version__}, but got {name!r}")
    return found


def _settings(entry: AttackEntry, model: Classifier, epsilon: float | None) -> dict[str, Any]:
    taken = inspect.signature(_function(entry.name)).parameters
    settings = dict(entry.parameters)
    if unknown := sorted(settings.keys() - accepts(entry.name).keys()):
        raise ValueError(f"Expected parameters that {entry.name} takes, but got {unknown}")
    if entry.needs_epsilon:
        radius = next(name for name in RADII if name in taken)
        if (epsilon is None) != (radius in settings):
            raise ValueError(
                f"Expected one radius for {entry.name}, `epsilon` or {radius!r}, "
                f"but got {epsilon} and {settings.get(radius)}"
            )
        settings.setdefault(radius, epsilon)
    for name in ("norm", "p"):
        if name in taken:
            settings[name] = NORMS[entry.norm]
    if "num_classes" in taken:
        settings["num_classes"] = model.num_columns
    return settings
