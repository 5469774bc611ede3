"""secml-torch: `wrap_for_secml(model)` returns a `BasePyTorchClassifier` that its attacks take unchanged."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ..attack_view import AttackView, Output, attack_view
from ..contract import Classifier
from ..external import check_classifier
from ..verification import wrong_and_accepted
from ._stand_ins import importing_advlib
from ._targets import nearest_claim_of_every_class
from .contract import AttackEntry, Crafted, keywords

try:
    with importing_advlib():  # which secml-torch imports where it is installed
        from secmlt.adv import evasion
        from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier
except ImportError as error:
    raise ImportError(
        "Expected secml-torch to be installed: pip install 'genrobust[secmltorch]'", name="secmlt"
    ) from error

__all__ = ["SecmlModel", "accepts", "craft", "successes", "wrap", "wrap_for_secml"]

NATIVE = {"DDNNative": "ddn", "FMNNative": "fmn", "PGDNative": "pgd"}
# `secmlt.adv.evasion` exports the attacks of Foolbox and adv-lib, but for this one.
HOMES = {**NATIVE, "FMNFoolbox": "foolbox_attacks.foolbox_fmn"}
FILLED_IN = {"self", "y_target", "perturbation_model", "kwargs"}
STRIDE = 2.5  # steps times step size, in radii: this crosses the ball (Madry et al. 2018)


@final
class SecmlModel(BasePyTorchClassifier):  # type: ignore[misc]  # secml-torch has no types
    """A classifier as secml-torch's own type of model.

    Its attacks of Foolbox and adv-lib take the module (`model`) and leave the methods aside. The surrogate
    gradient and the expectation are therefore in that module.

    Attributes:
        num_classes: K.
        rejects: Whether the logits have a further column K, "reject".
    """

    def __init__(self, model: Classifier, view: AttackView) -> None:
        super().__init__(view)
        self.num_classes = model.num_classes
        self.rejects = model.rejects

    def decision_function(self, x: Tensor, *args: Any, **kwargs: Any) -> Float[Tensor, "batch columns"]:
        """Returns logits on the device of the images, where secml-torch's native attacks expect them."""
        logits: Tensor = super().decision_function(x, *args, **kwargs)
        return logits.to(x.device)


def wrap_for_secml(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> SecmlModel:
    """Wraps a classifier as `genrobust.wrap_for_secml` says.

    secml-torch's own EOT adds noise to the images, and estimates the gradient by differences.
    """
    model = check_classifier(model)
    return SecmlModel(model, attack_view(model, eot=eot, output=output, seed=seed))


wrap = wrap_for_secml


@torch.no_grad()
def successes(
    model: SecmlModel,
    x_adv: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    targeted: bool = False,
) -> Bool[Tensor, " batch"]:
    """Returns where an attack succeeded: the logits are finite, and the decision is wrong and no rejection.

    secml-torch's `AttackSuccessRate` counts "reject" as another wrong class, and logits of NaN as class 0.

    Args:
        model: The model that `wrap_for_secml` returned.
        x_adv: The images that the attack returned.
        y: The true classes, or the target classes if `targeted`.
        targeted: Whether success means to reach `y`.
    """
    return wrong_and_accepted(
        model.decision_function(x_adv), y, num_classes=model.num_classes, targeted=targeted
    )


def craft(
    entry: AttackEntry,
    target: SecmlModel,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    targeted: bool = False,
) -> Crafted:
    """Runs one attack on one batch; see `contract.Implementation`.

    The function fills in the norm that the entry is for, and a step size that crosses the ball. On a model
    that may reject, an attack that can be targeted runs against every other class, and each image's closest
    success is kept. Native attacks compute on the CPU, and only their queries on the model's device. An
    attack that finds no starting point for an image runs image by image, and returns such an image unchanged.

    secml-torch never says whether an attack succeeded.

    Args:
        entry: The attack, with its parameters.
        target: The model that `wrap_for_secml` returned.
        images: Images in [0, 1], on the model's device.
        labels: Their classes, or the target classes if `targeted`.
        epsilon: Radius of the ball, for attacks that search within one; others look for the nearest example.
        targeted: Whether the attack is to reach `labels`.

    Raises:
        ValueError: If secml-torch lacks the attack, if the attack takes other parameters, if it needs one
            radius and gets none or two, if it cannot be targeted, or if an image is outside [0, 1].
    """
    if targeted and not entry.targeted:
        raise ValueError(f"Expected `targeted` of False for {entry.name}, which cannot be told a class")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"Expected `images` in [0, 1], but got {images.min():.7g} to {images.max():.7g}")
    kind, settings = _kind(entry.name), _settings(entry, epsilon)
    home = torch.device("cpu") if _name(entry.name) in NATIVE else images.device

    def run(x: Tensor, y: Tensor, targeted: bool) -> Tensor:
        attack = kind(**settings, **({"y_target": y} if targeted else {}))
        loader = DataLoader(TensorDataset(x, y), batch_size=len(x))
        with torch.enable_grad():
            found: Tensor = attack(target, loader).dataset.tensors[0]
        return found.detach()

    def over_batch(goal: Tensor, targeted: bool) -> Tensor:
        x, y = images.to(home), goal.to(home)
        try:
            return run(x, y, targeted).to(images)
        except ValueError as error:
            if not _without_start(error):
                raise
        return _one_by_one(run, x, y, targeted).to(images)

    def toward(goal: Tensor) -> Crafted:
        found = over_batch(goal, True)
        return Crafted(found, successes(target, found, labels))

    if target.rejects and entry.targeted and not targeted:
        return nearest_claim_of_every_class(
            toward, images, labels, num_classes=target.num_classes, norm=entry.measure
        )
    return Crafted(over_batch(labels, targeted))


def accepts(name: str) -> dict[str, inspect.Parameter]:
    """Returns the parameters of an attack; see `contract.Implementation`."""
    taken = inspect.signature(_kind(name).__init__).parameters
    return {name: part for name, part in taken.items() if name not in FILLED_IN} | keywords("trackers")


def _one_by_one(
    run: Callable[[Tensor, Tensor, bool], Tensor], images: Tensor, goal: Tensor, targeted: bool
) -> Tensor:
    """Returns what an attack makes of each image alone; the image itself where it finds no start."""
    found = images.clone()
    for row in range(len(images)):
        alone = slice(row, row + 1)
        try:
            found[alone] = run(images[alone], goal[alone], targeted)
        except ValueError as error:
            if not _without_start(error):
                raise
    return found


def _without_start(error: ValueError) -> bool:
    return "init_attack failed" in str(error)


def _name(entry: str) -> str:
    """Returns the name of a class of secml-torch, without the norm that an entry may add."""
    return entry.partition("-")[0]


def _kind(entry: str) -> Any:
    name = _name(entry)
    home = import_module(f"{evasion.__name__}.{HOMES[name]}") if name in HOMES else evasion
    found = vars(home).get(name)
    if not isinstance(found, type):
        raise ValueError(f"Expected an attack of secml-torch that is installed here, but got {entry!r}")
    return found


def _settings(entry: AttackEntry, epsilon: float | None) -> dict[str, Any]:
    taken = inspect.signature(_kind(entry.name).__init__).parameters
    settings = dict(entry.parameters)
    if unknown := sorted(settings.keys() - accepts(entry.name).keys()):
        raise ValueError(f"Expected parameters that {entry.name} takes, but got {unknown}")
    if entry.needs_epsilon:
        if (epsilon is None) != ("epsilon" in settings):
            raise ValueError(
                f"Expected one radius for {entry.name}, as `epsilon` or among its parameters, "
                f"but got {epsilon} and {settings.get('epsilon')}"
            )
        settings.setdefault("epsilon", epsilon)
        if "step_size" in taken:
            settings.setdefault("step_size", STRIDE * settings["epsilon"] / settings["num_steps"])
    if "perturbation_model" in taken:
        settings["perturbation_model"] = entry.norm
    return settings
