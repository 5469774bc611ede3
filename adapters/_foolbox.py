"""Foolbox: `wrap_for_foolbox(model)` gives a `foolbox.models.Model` that its attacks take unchanged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..classifier import Classifier
from ..views import Output, attack_view
from ._targets import nearest_claim_of_every_class, runner_up
from .registry import AttackEntry, Crafted
from .verification import Norm, distance, wrong_and_accepted

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

__all__ = ["FoolboxModel", "WrongAndAccepted", "craft", "wrap", "wrap_for_foolbox"]

NOISE_DRAWS = 50  # images of uniform noise that are tried as starting points, if no other image serves
SPARSE_NOISE_STEPS = 100  # of salt and pepper noise, as starting points for few changed pixels

T = TypeVar("T")
_MakeCriterion: TypeAlias = Callable[[Tensor], Criterion]

# Foolbox 3.3 answers "unsupported criterion" to all but its own two, or to all but one of them.
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
        super().__init__(view, bounds=(0, 1), device=next(model.parameters()).device)
        self.num_classes = model.num_classes
        self.rejects = model.rejects


@final
class WrongAndAccepted(Criterion):
    """What counts on a model that may reject: a class other than the label, and not "reject".

    For the attacks that see decisions, noise, and DeepFool. The others (PGD, C&W, DDN, EAD, FMN, Brendel-
    Bethge) take Foolbox's own criteria only, and reach such examples by way of every other class: see
    `genrobust.attack_every_class`. An answer of NaN, to what is no image, counts for nothing.

    Args:
        labels: Classes of the unperturbed images.
        num_classes: K, the column "reject" not counted.
    """

    def __init__(self, labels: Int[Tensor, " batch"], num_classes: int) -> None:
        self.labels = astensor(labels)
        self.num_classes = num_classes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.labels!r}, {self.num_classes})"

    def __call__(self, perturbed: T, outputs: T) -> T:
        """Say which rows of logits, shape (B, K) or (B, K + 1), are wrong and not rejected."""
        del perturbed
        logits, restore_type = astensor_(outputs)
        fooled = wrong_and_accepted(logits.raw, self.labels.raw, num_classes=self.num_classes)
        adversarial: T = restore_type(astensor(fooled))
        return adversarial


def wrap_for_foolbox(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> FoolboxModel:
    """Wrap a classifier for Foolbox 3: bounds (0, 1), on the device where the model is.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query. 1 attacks the model as it is (by default with fixed noise);
            above 1 every query is the log-mean-exp of fresh draws, which Foolbox's own EoT wrapper, averaging
            logits, does not give.
        output: `"logits"`, `"probabilities"`, or `"decisions"` (for decision-based attacks: the majority of
            draws that are the same at every query).
        seed: Of those draws.

    Raises:
        ImportError: If Foolbox is not installed.
        ValueError: If `eot` is below 1, or above 1 for a model without randomness.
    """
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
    **parameters: Any,
) -> Crafted:
    """Run one attack on one batch; see `registry.Implementation`.

    Attacks that walk from an adversarial image start from another image of the batch, or from noise; an image
    without such a start comes back unchanged. `DatasetAttack` draws from the batch. GenAttack, which needs a
    class to reach, is told the most likely other one. On a model that may reject, an attack that takes no
    criteria of one's own runs against every other class, and each image's nearest claim is kept; the few that
    cannot be told a class either (FGM, NewtonFool, virtual adversarial) stop at the first rejection.

    Args:
        entry: Which attack, with its parameters.
        target: What `wrap_for_foolbox` gave.
        images: Images in [0, 1], on the model's device.
        labels: Their classes; the classes to reach when `targeted`.
        epsilon: Radius of the ball, for attacks that search within one; others look for the nearest example.
        targeted: Whether `labels` are to be reached, not left.
        **parameters: In place of the entry's of the same name.

    Raises:
        ValueError: If Foolbox has no such attack, if it takes other parameters, if it needs an `epsilon` and
            gets none, if it cannot be told a class and is, or if an image is outside [0, 1].
    """
    if targeted and not entry.targeted:
        raise ValueError(f"Expected `targeted` of False for {entry.name}, which cannot be told a class")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"Expected `images` in [0, 1], but got {images.min():.7g} to {images.max():.7g}")
    attack = _build(entry.name, {**entry.parameters, **parameters})
    within = isinstance(attack, FixedEpsilonAttack)
    if within and epsilon is None:
        raise ValueError(f"Expected an `epsilon` for {entry.name}, which searches in a ball, but got none")
    task = _Task(attack, target, images, entry.measure, epsilon if within else None)
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


@final
@dataclass(frozen=True)
class _Task:
    attack: foolbox.Attack
    target: FoolboxModel
    images: Tensor
    norm: Norm
    bound: float | None

    def call(self, rows: Tensor, criterion: Criterion, **arguments: Any) -> tuple[Tensor, Tensor]:
        """Attack some of the images; give what Foolbox made of them, and its claims."""
        run: Callable[..., tuple[Tensor, Tensor, Tensor]] = self.attack.__call__
        _, clipped, claimed = run(self.target, self.images[rows], criterion, epsilons=self.bound, **arguments)
        return clipped.detach(), claimed.bool()


def _build(name: str, parameters: Mapping[str, Any]) -> foolbox.Attack:
    found = getattr(attacks, name, None)
    if not (isinstance(found, type) and issubclass(found, foolbox.Attack)):
        raise ValueError(f"Expected an attack of Foolbox {foolbox.__version__}, but got {name!r}")
    try:
        built: foolbox.Attack = found(**parameters)
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
    points, distances = _starting_points(task, criterion(labels))
    crafted, claimed = images.clone(), distances == 0  # adversarial as they are
    rows = (distances > 0) & distances.isfinite()
    if rows.any():
        crafted[rows], claimed[rows] = task.call(rows, criterion(labels[rows]), starting_points=points[rows])
    return Crafted(crafted, claimed)


def _refine_negatives(task: _Task, labels: Tensor, criterion: _MakeCriterion) -> Crafted:
    """Refine the images' negatives, one by one: the attack raises if that changes a single decision."""
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
    """Find for every image the nearest adversarial one of the batch, or noise; and how far it is."""
    images, target = task.images, task.target
    points = images.clone()
    nearest = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)

    def keep(candidates: Tensor, logits: Tensor) -> None:
        distances = distance(candidates - images, task.norm)
        better = criterion(candidates, logits) & (distances < nearest)
        points[better], nearest[better] = candidates[better], distances[better]

    logits = target(images)
    for shift in range(len(images)):
        keep(images.roll(shift, 0), logits.roll(shift, 0))
    if task.norm == "l0":
        sparse = attacks.SaltAndPepperNoiseAttack(steps=SPARSE_NOISE_STEPS).run(target, images, criterion)
        keep(sparse, target(sparse))
    for _ in range(NOISE_DRAWS):
        if nearest.isfinite().all():
            break
        noise = torch.rand_like(images)
        keep(noise, target(noise))
    return points, nearest
