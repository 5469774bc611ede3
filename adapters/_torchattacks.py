"""torchattacks: `wrap_for_torchattacks(model)` returns an `nn.Module` that its attacks take unchanged."""

import inspect
import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .._fields import checked
from ..attack_view import AttackView, Output, attack_view
from ..checks import check_layout, check_range, valid_images
from ..contract import Classifier
from ..external import check_classifier
from ..gradients import Unrolled
from ..verification import wrong_and_accepted
from ._targets import nearest_claim_of_every_class
from .catalogues.torchattacks import TORCHATTACKS
from .contract import AttackEntry, Crafted

try:
    import torchattacks
    from torchattacks.attack import Attack
except ImportError as error:
    raise ImportError(
        "Expected torchattacks to be installed: pip install 'genrobust[torchattacks]'", name="torchattacks"
    ) from error

__all__ = [
    "FunctionAttack",
    "TorchattacksModel",
    "accepts",
    "as_torchattacks",
    "craft",
    "successes",
    "wrap_for_torchattacks",
]

RADII = ("eps", "max_epsilon")  # torchattacks' names for the radius of the ball
STRIDE = 2.5  # steps times step size, in radii: this crosses the ball (Madry et al. 2018)
SEEDS = 1 << 31
# Their first step writes into the clean images, whose pixels they then restore. The model evaluated the
# nearest images.
RETURN_BEYOND = ("EADL1", "EADEN")

Crafting = Callable[[Tensor, Tensor], Tensor]


@final
class TorchattacksModel(nn.Module):
    """A classifier in the form that torchattacks' attacks need.

    torchattacks knows no bounds. Attacks that look ahead or add noise query points outside [0, 1]. The model
    evaluates the nearest image and returns the gradient there. Weights get a gradient only in training mode,
    in which LGV fine-tunes. For a generative classifier, this is the gradient through its reconstructions
    with constant latents. All attacks run in evaluation mode.

    Attributes:
        num_classes: K.
        num_columns: Number of columns of the output: K, or K + 1 if the classifier may reject.
        rejects: Whether the output has a further column K, "reject".
    """

    def __init__(self, model: Classifier, view: AttackView, *, output: Output) -> None:
        super().__init__()
        self.view = view
        self.output = output
        self.input_shape = model.input_shape
        self.num_classes = model.num_classes
        self.num_columns = model.num_columns
        self.rejects = model.rejects
        self.eval()

    def forward(self, x: Tensor) -> Float[Tensor, "batch columns"]:
        """Returns shifted logits; NaN for rows that are not finite.

        Each row is shifted so that its smallest logit is 1. Softmax, decision and differences do not change.
        C&W, EAD and the margin loss of UPGD mask logits with zeros before they take the largest one. This
        fails if all logits are negative, as log-likelihoods are.

        Shape: (B, C, H, W) -> (B, K), or (B, K + 1) if the classifier may reject.

        Raises:
            ValueError: If `x` is not a batch of images of this model, or has another scale than [0, 1].
            TypeError: If `x` is not a tensor.
        """
        model: nn.Module = self.view
        if self.training and "unrolled" in self.view.model.gradients:
            # The envelope has no gradient in the weights.
            model = self.view.model.with_gradient(Unrolled(through_weights=True))
        answers: Tensor = model(x)
        if self.output != "logits":
            return answers
        return answers - answers.detach().amin(1, keepdim=True) + 1


def wrap_for_torchattacks(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> TorchattacksModel:
    """Wraps a classifier as `genrobust.wrap_for_torchattacks` says."""
    model = check_classifier(model)
    view = attack_view(model, eot=eot, output=output, seed=seed)
    return TorchattacksModel(model, view, output=output)


wrap = wrap_for_torchattacks


def craft(
    entry: AttackEntry,
    target: TorchattacksModel,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    targeted: bool = False,
) -> Crafted:
    """Runs one attack on one batch; see `contract.Implementation`.

    The function fills in missing parameters: the radius, a step size that crosses the ball, the number of
    classes, and a seed from torch's global generator, where torchattacks would take the clock or 0. JSMA
    needs a target and gets the most likely wrong class. MultiAttack takes names of attacks. LGV fine-tunes on
    the attacked images by default (`trainloader`). On a model that may reject, an attack that can be targeted
    runs against every other class, and each image's closest success is kept.

    torchattacks never says whether an attack succeeded.

    Args:
        entry: The attack, with its parameters.
        target: The model that `wrap_for_torchattacks` returned.
        images: Images in [0, 1], on the model's device.
        labels: Their classes, or the target classes if `targeted`.
        epsilon: Radius of the ball, for attacks that search within one; others look for the nearest example.
        targeted: Whether the attack is to reach `labels`.

    Raises:
        ValueError: If torchattacks lacks the attack, if the attack takes other parameters, if it needs one
            radius and gets none or two, if it cannot be targeted, or if LGV is to fine-tune a model whose
            weights get no gradient.
    """
    if targeted and not entry.targeted:
        raise ValueError(f"Expected `targeted` of False for {entry.name}, which cannot be told a class")
    check_layout(images, input_shape=target.input_shape, device=next(target.parameters(), images).device)
    check_range(images)
    attack = _build(entry.name, entry.parameters, target, epsilon)
    if entry.name == "LGV":
        _collect(attack, images, labels)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    elif target.rejects and entry.targeted:
        return _through_every_class(attack, entry, target, images, labels)
    elif entry.name == "JSMA":
        attack.set_mode_targeted_least_likely(kth_min=target.num_columns - 1, quiet=True)
    return Crafted(_run(attack, entry, images, labels))


def accepts(name: str) -> dict[str, inspect.Parameter]:
    """Returns the parameters of an attack; see `contract.Implementation`."""
    taken = _taken(_kind(name), {})
    return {name: part for name, part in taken.items() if name != "model"}


@torch.no_grad()
def successes(
    model: Classifier | TorchattacksModel,
    x_adv: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
) -> Bool[Tensor, " batch"]:
    """Returns which rows are valid images that the model labels wrongly and does not reject.

    torchattacks itself, in MultiAttack and AutoAttack, counts "reject" as another wrong class.

    Args:
        model: A classifier, or the result of `wrap_for_torchattacks`.
        x_adv: The images that an attack returned, not necessarily finite or in [0, 1].
        y: The classes of the clean images.
    """
    valid = valid_images(x_adv)
    found = torch.zeros_like(valid)
    if valid.any():
        found[valid] = wrong_and_accepted(model(x_adv[valid]), y[valid], num_classes=model.num_classes)
    return found


def as_torchattacks(
    name: str, model: nn.Module, attack: Crafting, *, targeted_attack: Crafting | None = None
) -> "FunctionAttack":
    """Builds an attack from a function, as `genrobust.as_torchattacks` says.

    It works with MultiAttack, whose attacks must share one `model`, and with `save`. With a `targeted_attack`
    it works with all of torchattacks' ways to choose target labels.
    """
    checked(name, str, "`name`")
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected `model` to be a module, but got {type(model).__name__}")
    if not callable(attack):
        raise TypeError(f"Expected `attack` to be a function, but got {type(attack).__name__}")
    if targeted_attack is not None and not callable(targeted_attack):
        raise TypeError(
            f"Expected `targeted_attack` to be a function, but got {type(targeted_attack).__name__}"
        )
    return FunctionAttack(name, model, attack, targeted_attack)


@final
class FunctionAttack(Attack):  # type: ignore[misc]  # torchattacks has no types
    """An attack of torchattacks that calls a function; see `as_torchattacks`."""

    def __init__(
        self, name: str, model: nn.Module, attack: Crafting, targeted_attack: Crafting | None
    ) -> None:
        super().__init__(name, model)
        self.untargeted_attack = attack
        self.targeted_attack = targeted_attack
        self.supported_mode = ["default"] if targeted_attack is None else ["default", "targeted"]

    def forward(
        self, images: Float[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns adversarial images."""
        images = images.detach().clone().to(self.device)
        labels = labels.detach().clone().to(self.device)
        if self.targeted and self.targeted_attack is not None:
            return self.targeted_attack(images, self.get_target_label(images, labels)).detach()
        return self.untargeted_attack(images, labels).detach()


def _kind(name: str) -> Any:
    found = getattr(torchattacks, name, None)
    if not (isinstance(found, type) and issubclass(found, Attack)):
        raise ValueError(f"Expected an attack of torchattacks {torchattacks.__version__}, but got {name!r}")
    return found


def _taken(attack: Any, parameters: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    """Returns the arguments of an attack's constructor."""
    taken = dict(inspect.signature(attack).parameters)
    if attack is torchattacks.LGV:  # passes unknown arguments to the attack that it builds
        taken |= inspect.signature(parameters.get("attack_class", torchattacks.BIM)).parameters
    return taken


def _build(
    name: str, parameters: Mapping[str, Any], target: TorchattacksModel, epsilon: float | None
) -> Attack:
    found = _kind(name)
    try:
        if name == "MultiAttack":
            return _multi_attack(parameters, target, epsilon)
        return found(target, **_completed(found, parameters, target, epsilon))
    except TypeError as error:
        raise ValueError(f"Expected `parameters` that {name} takes: {error}") from error


def _completed(
    attack: Any, parameters: Mapping[str, Any], target: TorchattacksModel, epsilon: float | None
) -> dict[str, Any]:
    """Adds the parameters that depend on the batch, on the model, or on the caller's seed."""
    taken = _taken(attack, parameters)
    arguments = dict(parameters)
    radius = next((name for name in RADII if name in taken), "")
    if radius:
        if (epsilon is None) != (radius in arguments):
            raise ValueError(
                f"Expected one radius for {attack.__name__}, `epsilon` or {radius!r}, "
                f"but got {epsilon} and {arguments.get(radius)}"
            )
        arguments.setdefault(radius, epsilon)
    if "alpha" in taken and "alpha" not in arguments:
        steps = arguments.get("steps", taken["steps"].default if "steps" in taken else 2)
        arguments["alpha"] = STRIDE * arguments[radius] / steps
    if "n_classes" in taken:
        arguments.setdefault("n_classes", target.num_columns)
    if "seed" in taken and "seed" not in arguments:
        arguments["seed"] = int(torch.randint(SEEDS, ()))
    if "trainloader" in taken:
        arguments = {"trainloader": None, "verbose": False, **arguments}
    return arguments


def _multi_attack(parameters: Mapping[str, Any], target: TorchattacksModel, epsilon: float | None) -> Attack:
    parts = [
        _build(part, TORCHATTACKS.attack(part).parameters, target, epsilon) if isinstance(part, str) else part
        for part in parameters.get("attacks", ())
    ]
    return torchattacks.MultiAttack(**{**parameters, "attacks": parts})


def _collect(attack: Attack, images: Tensor, labels: Tensor) -> None:
    """Lets LGV fine-tune its copy of the model, without its progress bar."""
    attack.model.train()
    if not attack.model(images[:1]).requires_grad:
        raise ValueError("Expected logits with a gradient in the weights, which LGV fine-tunes, but got none")
    attack.model.eval()
    if attack.trainloader is None:
        attack.trainloader = [(images, labels)]
    with redirect_stderr(io.StringIO()):
        attack.collect_models()


def _run(attack: Attack, entry: AttackEntry, images: Tensor, labels: Tensor) -> Tensor:
    found: Tensor = attack(images, labels).detach()
    return found.clamp(0, 1) if entry.name in RETURN_BEYOND else found


def _through_every_class(
    attack: Attack, entry: AttackEntry, target: TorchattacksModel, images: Tensor, labels: Tensor
) -> Crafted:
    attack.set_mode_targeted_by_label(quiet=True)

    def toward(goal: Tensor) -> Crafted:
        found = _run(attack, entry, images, goal).to(images)
        return Crafted(found, successes(target, found, labels))

    return nearest_claim_of_every_class(
        toward, images, labels, num_classes=target.num_classes, norm=entry.measure
    )
