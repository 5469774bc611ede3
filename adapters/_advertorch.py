"""AdverTorch, imported under a current torch; its attacks take a wrapped model as `predict`."""

import builtins
import copy
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..attack_view import AttackView, Output, attack_view
from ..contract import Classifier
from ..verification import clean_where_black, wrong_and_accepted
from ._targets import runner_up
from .catalogues.advertorch import ADVERTORCH
from .contract import AttackEntry, Crafted, keywords

__all__ = ["craft", "import_advertorch", "successes", "wrap_for_advertorch"]

DEPRECATIONS = (
    "This overload of add_ is deprecated",
    "indexing with dtype torch.uint8 is now deprecated",
    "Default grid_sample and affine_grid behavior has changed",
    "Detected call of `lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`",
)
ROUNDING = 1e-6
STEPS = ("eps", "eps_iter", "delta", "lr")  # AdverTorch asserts that these are not integers


def _check_installed() -> None:
    known = sys.modules["advertorch"] if "advertorch" in sys.modules else find_spec("advertorch")
    if known is None:
        raise ImportError(
            "Expected AdverTorch to be installed: pip install 'genrobust[advertorch]'", name="advertorch"
        )


_check_installed()


def wrap_for_advertorch(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> AttackView:
    """Wraps a classifier as `genrobust.wrap_for_advertorch` says."""
    return attack_view(model, eot=eot, output=output, seed=seed)


wrap = wrap_for_advertorch


@torch.no_grad()
def successes(
    predict: nn.Module,
    x_adv: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    targeted: bool = False,
) -> Bool[Tensor, " batch"]:
    """Returns where an attack succeeded: the logits are finite, and the decision is wrong and no rejection.

    Args:
        predict: The model that `wrap_for_advertorch` returned.
        x_adv: The images that the attack returned.
        y: The true classes, or the target classes if `targeted`.
        targeted: Whether success means to reach `y`.

    Raises:
        ValueError: If `predict` is another module.
    """
    num_classes = _classifier(predict).num_classes
    return wrong_and_accepted(predict(x_adv), y, num_classes=num_classes, targeted=targeted)


def craft(
    entry: AttackEntry,
    target: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    targeted: bool = False,
) -> Crafted:
    """Runs one attack of AdverTorch on one batch.

    If an attack can only be targeted (JSMA) and `targeted` is False, its target is each image's runner-up
    class. FastFeatureAttack imitates the logits of a guide image. The guides are `guide`, a batch of equally
    many images, or by default each image's nearest one of another class in the batch.

    Args:
        entry: The attack, with its parameters.
        target: The model that `wrap_for_advertorch` returned.
        images: Images in [0, 1], on the model's device.
        labels: Their classes, or the target classes if `targeted`.
        epsilon: Radius of the ball, for attacks that need one; a radius per image goes into `eps`.
        targeted: Whether the attack is to reach `labels`.

    Raises:
        ValueError: If the attack cannot be targeted, lacks an epsilon, does not take a parameter, or finds no
            guide.
    """
    if targeted and not entry.targeted:
        raise ValueError(
            f"Expected `targeted` to be False for {entry.name}, which takes no class, but got True"
        )
    goal, parameters = labels, dict(entry.parameters)
    if entry.name == "FastFeatureAttack":
        goal = parameters.pop("guide", None)
        goal = _guides(images, labels) if goal is None else goal
    attack = _build(import_advertorch().attacks, entry, target, epsilon, targeted, parameters)
    with _quiet(), torch.enable_grad():
        if not targeted and getattr(attack, "targeted", False):
            with torch.no_grad():
                goal = runner_up(target(images), labels, num_classes=_classifier(target).num_classes)
        found: Tensor = attack.perturb(images, goal)
    return Crafted(found.detach())


def accepts(name: str) -> dict[str, inspect.Parameter]:
    """Returns the parameters of an attack; see `contract.Implementation`."""
    attacks = import_advertorch().attacks
    if not hasattr(attacks, name):
        raise ValueError(f"Expected an attack of AdverTorch, but got {name!r}")
    taken = dict(inspect.signature(getattr(attacks, name)).parameters)
    del taken["predict"]
    return taken | (keywords("guide") if name == "FastFeatureAttack" else {})


def _build(
    attacks: ModuleType,
    entry: AttackEntry,
    target: nn.Module,
    epsilon: float | None,
    targeted: bool,
    parameters: Mapping[str, Any],
) -> Any:
    attack_type = getattr(attacks, entry.name)
    accepted = inspect.signature(attack_type).parameters
    settings = dict(parameters)
    if entry.needs_epsilon and epsilon is None and "eps" not in settings:
        raise ValueError(f"Expected an `epsilon` for {entry.name}, but got none")
    if "base_adversaries" in accepted:
        bases = [ADVERTORCH.attack(name) for name in settings["base_adversaries"]]
        settings["base_adversaries"] = [
            _build(attacks, base, target, epsilon, targeted, base.parameters) for base in bases
        ]
    elif entry.needs_epsilon:
        settings.setdefault("eps", epsilon)
    if "num_classes" in accepted:
        settings.setdefault("num_classes", _classifier(target).num_columns)
    if "targeted" in accepted:
        settings["targeted"] = targeted
    unknown = sorted(settings.keys() - accepted.keys())
    if unknown:
        raise ValueError(f"Expected parameters that {entry.name} takes, but got {unknown}")
    for name in settings.keys() & set(STEPS):
        if isinstance(settings[name], int):
            settings[name] = float(settings[name])
    return attack_type(target, **settings)


def _classifier(predict: nn.Module) -> Classifier:
    if not isinstance(predict, AttackView):
        raise ValueError(
            f"Expected what `wrap_for_advertorch` gives for `predict`, but got {type(predict).__name__}"
        )
    return predict.model


def _guides(images: Tensor, labels: Tensor) -> Tensor:
    """Returns for every image the nearest image of the batch that has another class."""
    distances = torch.cdist(images.flatten(1), images.flatten(1))
    distances = distances.masked_fill(labels[:, None] == labels, torch.inf)
    nearest = distances.min(1)
    if nearest.values.isinf().any():
        raise ValueError("Expected a `guide` for FastFeatureAttack or images of two classes, but got neither")
    return images[nearest.indices]


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in DEPRECATIONS:
            warnings.filterwarnings("ignore", message=message)
        yield


# The import.


def import_advertorch() -> ModuleType:
    """Imports AdverTorch under a current torch and SciPy, even after an import that failed.

    AdverTorch 0.2.3 imports `torch.autograd.gradcheck.zero_gradients`, which torch removed. The name exists
    during the import. AdverTorch's L-BFGS attacks pass arguments that SciPy removed. A private import of
    SciPy drops them. The method `perturb` of four of AdverTorch's classes is repaired, because it misleads:

    - `LBFGSAttack(targeted=False)` returns its input, because it negates the loss and not the gradient, and
      keeps only images of the old class. After the repair, the targeted algorithm reaches any other class.
    - `SpatialTransformAttack` and `ChooseBestAttack` return black images on failure. A targeted
      `ChooseBestAttack` returns the worst of its attacks. After the repair, they return the clean image, and
      the best attack.
    - `LocalSearchAttack` rounds the pixels that it does not change, and all of them count in L0. After the
      repair, it leaves these pixels alone.

    Nothing outside AdverTorch's modules stays changed. A second call returns the same module.

    Returns:
        The package, with `attacks`, `defenses`, `bpda` and `context`.

    Raises:
        ImportError: If AdverTorch or a package that it needs is not installed.
    """
    _check_installed()
    imported = "advertorch" in sys.modules
    if not imported:
        _forget_failed_import()
    gradcheck = import_module("torch.autograd.gradcheck")  # `import ... as` would bind the function
    try:
        with _provided(gradcheck, "zero_gradients", _zero_gradients):
            advertorch = import_module("advertorch")
            for name in ("attacks", "bpda", "context", "defenses"):
                import_module(f"advertorch.{name}")
    except ImportError as error:
        if not imported:
            _forget_failed_import()
        raise ImportError(
            f"Expected what AdverTorch needs to be installed ({error}): pip install 'genrobust[advertorch]'",
            name=error.name,
        ) from error
    attacks = advertorch.attacks
    _repair(attacks.LBFGSAttack, _repaired_lbfgs)
    _repair(attacks.SpatialTransformAttack, _repaired_spatial)
    _repair(attacks.ChooseBestAttack, _repaired_choice)
    _repair(attacks.LocalSearchAttack, _repaired_local_search)
    return advertorch


def _forget_failed_import() -> None:
    """Drops the modules of a failed import, which the next import would find without their package."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "advertorch":
            del sys.modules[name]


@contextmanager
def _provided(module: ModuleType, name: str, value: object) -> Iterator[None]:
    if hasattr(module, name):
        yield
        return
    setattr(module, name, value)
    try:
        yield
    finally:
        delattr(module, name)


def _zero_gradients(x: Tensor) -> None:
    x.grad = None  # the next backward pass creates it again


def _repair(attack: Any, make: Callable[[Any], Callable[..., Tensor]]) -> None:
    """Replaces the `perturb` of one of AdverTorch's classes, once; the toolkit's own stays as `__wrapped__`.

    A subclass cannot replace the class, whose constructor looks itself up by name.
    """
    stock = attack.perturb
    if not hasattr(stock, "__wrapped__"):
        attack.perturb = wraps(stock)(make(stock))


def _repaired_lbfgs(stock: Any) -> Callable[..., Tensor]:
    reach = _with_private_scipy(stock)

    def perturb(self: Any, x: Tensor, y: Tensor | None = None) -> Tensor:
        attack = self
        if not self.targeted:
            leave = self._get_predicted_label(x) if y is None else y
            attack, y = copy.copy(self), torch.ones_like(leave)
            attack.predict, attack.targeted = _against_the_rest(self.predict, leave), True
        found: Tensor = reach(attack, x, y)
        return found

    return perturb


def _repaired_spatial(stock: Any) -> Callable[..., Tensor]:
    transform = _with_private_scipy(stock)

    def perturb(self: Any, x: Tensor, y: Tensor | None = None) -> Tensor:
        return clean_where_black(transform(self, x, y), x)

    return perturb


def _repaired_choice(stock: Any) -> Callable[..., Tensor]:
    def perturb(self: Any, x: Tensor, y: Tensor | None = None) -> Tensor:
        chooser = self
        if self.targeted:
            chooser = copy.copy(self)
            chooser.loss_fn = lambda logits, goal: -self.loss_fn(logits, goal)
        return clean_where_black(stock(chooser, x, y), x)

    return perturb


def _repaired_local_search(stock: Any) -> Callable[..., Tensor]:
    def perturb(self: Any, x: Tensor, y: Tensor | None = None) -> Tensor:
        found: Tensor = stock(self, x, y)
        return torch.where((found - x).abs() <= ROUNDING, x.detach(), found)

    return perturb


def _against_the_rest(predict: Callable[[Tensor], Tensor], labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns a model of two classes: 0 is the label, 1 the best of the other classes."""

    def predict_pair(x: Tensor) -> Tensor:
        logits = predict(x)
        own = logits.gather(1, labels[:, None])[:, 0]
        other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        return torch.stack([own, other], 1)

    return predict_pair


def _with_private_scipy(function: FunctionType) -> FunctionType:
    """Returns a function whose own import of `scipy.optimize` finds an L-BFGS that ignores `iprint`.

    Only this function sees that L-BFGS. SciPy and its other users are unchanged.
    """

    def fmin_l_bfgs_b(*arguments: Any, iprint: int = 0, **keywords: Any) -> Any:
        del iprint
        return import_module("scipy.optimize").fmin_l_bfgs_b(*arguments, **keywords)

    def import_(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "scipy.optimize":
            return SimpleNamespace(fmin_l_bfgs_b=fmin_l_bfgs_b)
        return builtins.__import__(name, *arguments, **keywords)

    scope = {**function.__globals__, "__builtins__": {**vars(builtins), "__import__": import_}}
    return FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
