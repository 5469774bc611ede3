"""What an attack makes of a batch, before any verdict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..._brief import one_line
from ..._modules import cheaper
from ...capabilities import DecidesByEncoder, Defended, Tightens
from ...contract import Classifier, GenerativeClassifier
from ...data import ImageDataset
from ...verification import BestSeen, Calls, counted_calls, reseeded, without_loss_gradient
from ..suites.model import BARE, ENCODER, TIGHTENED, Attack
from .cells import Cell, derived_seed
from .tasks import Task
from .toolkits import claims, craft, goals_of, shortened, uses_gradients

__all__ = ["Attempt", "TransferMemory", "attempt", "on_device"]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The output of an attack on some rows of a batch.

    Attributes:
        images: What the attack returned.
        claimed: Where its toolkit says that it succeeded; of a toolkit that makes no claims, where the
            attacked model is wrong.
        lengthened: Where the perturbation of a minimal-norm attack may be lengthened: where success is
            claimed, and everywhere for a toolkit that makes no claims.
        seen: The best examples among all images that the attack asked about.
        calls: All calls of the attack on these rows.
        zero_gradient: Where the gradient that the attack is shown vanishes.
        goals: The classes that a targeted attack goes for.
    """

    images: Float[Tensor, "rows channels height width"]
    claimed: Bool[Tensor, " rows"]
    lengthened: Bool[Tensor, " rows"]
    seen: BestSeen
    calls: Calls
    zero_gradient: Bool[Tensor, " rows"]
    goals: Int[Tensor, " rows"] | None

    __repr__ = one_line


class TransferMemory:
    """Keeps the last examples that were made against another model.

    The cells that these are transferred to follow one another: each would make them again.
    """

    def __init__(self) -> None:
        self._source: Classifier | None = None
        self._key: tuple[object, ...] = ()
        self._attempt: Attempt | None = None

    def recalled(
        self, task: Task, attack: Attack, models: Mapping[str, Classifier], make: Callable[[], Attempt]
    ) -> Attempt:
        """Returns what the same attack made of the same images against the same model, or has it made."""
        source = models[task.models[-1]]
        key = (task.seed, attack, task.cell.epsilon, task.content, task.suite.attack_inference)
        if self._attempt is None or source is not self._source or key != self._key:
            self._source, self._key, self._attempt = source, key, make()
        return self._attempt


def attempt(
    task: Task,
    attack: Attack,
    models: Mapping[str, Classifier],
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    number: int,
    rows: Int[Tensor, " rows"],
) -> Attempt:
    """Attacks some rows of a batch.

    Args:
        task: The cell.
        attack: Its attack.
        models: At least the task's models.
        images: All images of the batch.
        labels: Their classes.
        number: How often these rows were attacked before. It gives the attack, the noise and the candidates
            that it meets other seeds.
        rows: Which images are attacked.
    """
    first_seed = _attack_seed(task)
    seed = first_seed if number == 0 else derived_seed(first_seed, "attempt", number)
    attacked = reseeded(_attacked(task, attack, models), number)
    x, y = images[rows], labels[rows]
    goals = goals_of(attack, labels, attacked.num_classes, seed=first_seed)
    goals = None if goals is None else goals[rows]
    pool = None if task.pool is None else on_device(task.pool, attacked)
    eot, epsilon = _draws(attack, attacked), task.cell.epsilon
    seen = BestSeen(x, y, norm=attack.norm, epsilon=epsilon, num_classes=attacked.num_classes)
    with counted_calls(seen) as calls:
        made = craft(attack, attacked, x, y, goals=goals, epsilon=epsilon, seed=seed, eot=eot, pool=pool)
    seen.images = shortened(seen.images, attacked, x)
    claiming = claims(attack, attacked, made, y if goals is None else goals)
    vanished = torch.zeros_like(y, dtype=torch.bool)
    if uses_gradients(attack):
        vanished = without_loss_gradient(attacked, x, y, eot=eot)
    return Attempt(
        images=made.images,
        claimed=claiming,
        lengthened=torch.ones_like(claiming) if made.claimed is None else claiming,
        seen=seen,
        calls=calls,
        zero_gradient=vanished,
        goals=goals,
    )


def _attack_seed(task: Task) -> int:
    # The examples of another model are the same for every model that they are transferred to.
    return derived_seed(task.seed, Cell(**{**vars(task.cell), "model": task.models[-1]}).key)


def on_device(
    dataset: ImageDataset, model: Classifier
) -> tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]:
    """Returns a batch of images and their classes where a model is."""
    device = model.like.device
    images, labels = dataset.batch(slice(None))
    # Autograd takes no tensors that were made in inference mode.
    return images.clone().to(device), labels.clone().to(device)


def _attacked(task: Task, attack: Attack, models: Mapping[str, Classifier]) -> Classifier:
    """Returns the attacked model: the model with the attack's budget, or another model to transfer from."""
    model = models[task.models[-1]]
    if attack.against == BARE:
        if not isinstance(model, Defended):
            raise ValueError(
                f"Expected a purified or selective model, but {task.cell.model!r} has no bare one"
            )
        model = model.bare()
    if attack.against == ENCODER:
        inner = model.bare() if isinstance(model, Defended) else model
        if not isinstance(inner, DecidesByEncoder):
            raise ValueError(
                f"Expected a model that decides by its encoder, but {task.cell.model!r} does not"
            )
        return inner.encoder_view()
    if attack.against == TIGHTENED:
        if not isinstance(model, Tightens):
            raise ValueError(
                f"Expected a model whose inference can be tightened, but got {task.cell.model!r}"
            )
        model = model.tightened()
    if isinstance(model, GenerativeClassifier):
        model = cheaper(model, task.suite.attack_inference)
    return model if attack.gradient is None else model.with_gradient(attack.gradient)


def _draws(attack: Attack, attacked: Classifier) -> int:
    """Returns the number of draws of noise per query."""
    return attack.eot if attacked.randomized else 1
