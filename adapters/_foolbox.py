"""Foolbox: `wrap_for_foolbox(model)` returns a `foolbox.models.Model` that its attacks take unchanged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from typing import Any, TypeAlias, TypeVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._fields import check_integer
from ..attack_view import Output, attack_view
from ..checks import check_classes
from ..contract import Classifier
from ..external import check_classifier
from ..verification import Norm, distance, wrong_and_accepted
from ._targets import nearest_claim_of_every_class, nearest_start, runner_up
from .contract import AttackEntry, Crafted, keywords

try:
    import foolbox
    from eagerpy.astensor import astensor, astensor_
    from foolbox import attacks
    from foolbox.attacks.base import FixedEpsilonAttack
    from foolbox.attacks.brendel_bethge import BrendelBethgeAttack
    from foolbox.attacks.fast_minimum_norm import FMNAttackLp
    from foolbox.attacks.gradient_descent_base import BaseGradientDescent
    from foolbox.criteria import Criterion, Misclassification, TargetedMisclassification
    from foolbox.models import PyTorchModel
except ImportError as error:
    raise ImportError(
        "Expected Foolbox to be installed: pip install 'genrobust[foolbox]'", name="foolbox"
    ) from error

__all__ = ["FoolboxModel", "WrongAndAccepted", "accepts", "craft", "wrap", "wrap_for_foolbox"]

STARTS = "starting_points"
NOISE_DRAWS = 50  # uniform noise images that are tried as starting points if no image of the batch serves
SPARSE_NOISE_STEPS = 100  # salt and pepper images, which are starting points with few changed pixels

T = TypeVar("T")
_MakeCriterion: TypeAlias = Callable[[Tensor], Criterion]

# Foolbox 3.3 answers "unsupported criterion" to all criteria but its own two, or but one of these.
_OWN_CRITERIA_ONLY = (
    BaseGradientDescent,
    BrendelBethgeAttack,
    FMNAttackLp,
    attacks.DDNAttack,
    attacks.EADAttack,
    attacks.GenAttack,
    attacks.L2CarliniWagnerAttack,
    attacks.NewtonFoolAttack,
    attacks.VirtualAdversarialAttack,
)
_WALK_FROM_AN_EXAMPLE = (
    BrendelBethgeAttack,
    attacks.BoundaryAttack,
    attacks.HopSkipJumpAttack,
    attacks.PointwiseAttack,
)


@final
class FoolboxModel(PyTorchModel):
    """A classifier as Foolbox's own type of model.

    Attributes:
        num_classes: K.
        rejects: Whether the logits have a further column K, "reject".
    """

    def __init__(self, model: Classifier, view: nn.Module) -> None:
        super().__init__(view, bounds=(0, 1), device=model.like.device)
        self.num_classes = model.num_classes
        self.rejects = model.rejects


@final
class WrongAndAccepted(Criterion):
    """The criterion for models that may reject: a class that is neither the label nor "reject".

    Decision-based attacks, noise attacks and DeepFool take it. The others (PGD, C&W, DDN, EAD, FMN,
    Brendel-Bethge) only take Foolbox's own criteria. They reach such examples through every other class in
    turn; see `genrobust.attack_every_class`. Logits of NaN, for invalid images, do not count.

    Args:
        labels: Classes of the unperturbed images.
        num_classes: K, the column "reject" not counted.
    """

    def __init__(self, labels: Int[Tensor, " batch"], num_classes: int) -> None:
        self.num_classes = check_integer(num_classes, "num_classes")
        self.labels = astensor(check_classes(labels, num_classes=self.num_classes))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.labels!r}, {self.num_classes})"

    def __call__(self, perturbed: T, outputs: T) -> T:
        """Returns which rows of logits, shape (B, K) or (B, K + 1), are wrong and not rejected."""
        del perturbed
        logits, restore_type = astensor_(outputs)
        fooled = wrong_and_accepted(logits.raw, self.labels.raw, num_classes=self.num_classes)
        adversarial: T = restore_type(astensor(fooled))
        return adversarial


def wrap_for_foolbox(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> FoolboxModel:
    """Wraps a classifier as `genrobust.wrap_for_foolbox` says.

    Foolbox's own EoT wrapper averages logits, whatever the model.
    """
    model = check_classifier(model)
    return FoolboxModel(model, attack_view(model, eot=eot, output=output, seed=seed))


wrap = wrap_for_foolbox


def craft(
    entry: AttackEntry,
    target: FoolboxModel,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    targeted: bool = False,
) -> Crafted:
    """Runs one attack on one batch; see `contract.Implementation`.

    Attacks that need an adversarial starting point start at the parameter `starting_points`, at another image
    of the batch, or at noise. Images without a starting point are returned unchanged. `DatasetAttack` draws
    from the batch. GenAttack needs a target and gets the most likely wrong class. On a model that may reject,
    an attack that only takes Foolbox's criteria runs against every other class, and each image's nearest
    claim is kept. The few attacks that cannot be targeted either (FGM, NewtonFool, virtual adversarial) stop
    at the first rejection.

    Args:
        entry: The attack, with its parameters.
        target: The model that `wrap_for_foolbox` returned.
        images: Images in [0, 1], on the model's device.
        labels: Their classes, or the target classes if `targeted`.
        epsilon: Radius of the ball, for attacks that search within one; others look for the nearest example.
        targeted: Whether the attack is to reach `labels`.

    Raises:
        ValueError: If Foolbox lacks the attack, if the attack takes other parameters, if it needs an
            `epsilon` and gets none, if it cannot be targeted, or if an image is outside [0, 1].
    """
    if targeted and not entry.targeted:
        raise ValueError(f"Expected `targeted` of False for {entry.name}, which cannot be told a class")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"Expected `images` in [0, 1], but got {images.min():.7g} to {images.max():.7g}")
    parameters = dict(entry.parameters)
    starts = parameters.pop(STARTS, None)
    attack = _build(entry.name, parameters)
    within = isinstance(attack, FixedEpsilonAttack)
    if within and epsilon is None:
        raise ValueError(f"Expected an `epsilon` for {entry.name}, which searches in a ball, but got none")
    task = _Task(attack, target, images, entry.measure, epsilon if within else None, starts)
    if targeted:
        return _run(task, labels, TargetedMisclassification)
    if isinstance(attack, attacks.GenAttack):
        with torch.no_grad():
            goal = runner_up(target(images), labels, num_classes=target.num_classes)
        return _run(task, goal, TargetedMisclassification)
    if target.rejects and not isinstance(attack, _OWN_CRITERIA_ONLY):
        return _run(task, labels, partial(WrongAndAccepted, num_classes=target.num_classes))
    if target.rejects and entry.targeted:
        return nearest_claim_of_every_class(
            lambda goal: _run(task, goal, TargetedMisclassification),
            images,
            labels,
            num_classes=target.num_classes,
            norm=task.norm,
        )
    return _run(task, labels, Misclassification)


def accepts(name: str) -> dict[str, Parameter]:
    """Returns the parameters of an attack; see `contract.Implementation`."""
    kind = _kind(name)
    walks = issubclass(kind, _WALK_FROM_AN_EXAMPLE)
    return dict(signature(kind).parameters) | (keywords(STARTS) if walks else {})


@final
@dataclass(frozen=True)
class _Task:
    attack: foolbox.Attack
    target: FoolboxModel
    images: Tensor
    norm: Norm
    bound: float | None
    starts: Tensor | None = None

    def call(self, rows: Tensor, criterion: Criterion, **arguments: Any) -> tuple[Tensor, Tensor]:
        """Attacks some of the images, and returns Foolbox's images and its claims."""
        run: Callable[..., tuple[Tensor, Tensor, Tensor]] = self.attack.__call__
        _, clipped, claimed = run(self.target, self.images[rows], criterion, epsilons=self.bound, **arguments)
        return clipped.detach(), claimed.bool()


def _kind(name: str) -> type[foolbox.Attack]:
    found = getattr(attacks, name, None)
    if not (isinstance(found, type) and issubclass(found, foolbox.Attack)):
        raise ValueError(f"Expected an attack of Foolbox {foolbox.__version__}, but got {name!r}")
    return found


def _build(name: str, parameters: Mapping[str, Any]) -> foolbox.Attack:
    try:
        built: foolbox.Attack = _kind(name)(**parameters)
    except TypeError as error:
        raise ValueError(f"Expected `parameters` that {name} takes: {error}") from error
    return built


def _run(task: _Task, labels: Tensor, criterion: _MakeCriterion) -> Crafted:
    attack, images = task.attack, task.images
    if isinstance(attack, attacks.BinarizationRefinementAttack):
        return _refine_negatives(task, labels, criterion)
    if isinstance(attack, attacks.DatasetAttack):
        attack.feed(task.target, astensor(images))
    if not isinstance(attack, _WALK_FROM_AN_EXAMPLE):
        return Crafted(*task.call(torch.arange(len(images), device=images.device), criterion(labels)))
    if task.starts is not None:
        everything = torch.arange(len(images), device=images.device)
        return Crafted(*task.call(everything, criterion(labels), starting_points=task.starts))
    points, distances = _starting_points(task, criterion(labels))
    crafted, claimed = images.clone(), distances == 0  # already adversarial
    rows = (distances > 0) & distances.isfinite()
    if rows.any():
        crafted[rows], claimed[rows] = task.call(rows, criterion(labels[rows]), starting_points=points[rows])
    return Crafted(crafted, claimed)


def _refine_negatives(task: _Task, labels: Tensor, criterion: _MakeCriterion) -> Crafted:
    """Refines the images' negatives one by one, because the attack raises if one decision changes."""
    crafted, claimed = task.images.clone(), torch.zeros_like(labels, dtype=torch.bool)
    for row in torch.arange(len(labels), device=labels.device).split(1):
        try:
            crafted[row], claimed[row] = task.call(
                row, criterion(labels[row]), starting_points=1 - task.images[row]
            )
        except ValueError as error:
            if "threshold does not match" not in str(error):
                raise
    return Crafted(crafted, claimed)


@torch.no_grad()
def _starting_points(task: _Task, criterion: Criterion) -> tuple[Tensor, Tensor]:
    """Returns for every image the nearest adversarial one of the batch or of noise, and its distance."""
    images, target = task.images, task.target

    def nearest_of(pool: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(pool, target(pool), strict=True)
        usable = [
            criterion(other.expand_as(images), answer.expand(len(images), -1)) for other, answer in pairs
        ]
        return nearest_start(images, pool, torch.stack(usable, dim=1), norm=task.norm)

    points, nearest = nearest_of(images)
    if task.norm == "l0":
        sparse = attacks.SaltAndPepperNoiseAttack(steps=SPARSE_NOISE_STEPS).run(target, images, criterion)
        length = distance(sparse - images, task.norm)
        better = criterion(sparse, target(sparse)) & (length < nearest)
        points[better], nearest[better] = sparse[better], length[better]
    for _ in range(NOISE_DRAWS):
        if nearest.isfinite().all():
            break
        found, length = nearest_of(torch.rand_like(images))
        better = length < nearest
        points[better], nearest[better] = found[better], length[better]
    return points, nearest
