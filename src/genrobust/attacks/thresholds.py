"""White-box attacks through both thresholds of a selective classifier (Ghosh et al. 2019, eq. 10 and 11)."""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attack_view import Query, classifier_behind
from ..selective import SelectiveClassifier, selective
from ._draws import uniform
from .registered import register_attack

__all__ = ["fooling_attack", "threshold_attack"]

_EVIDENCE = {"distance", "latent"}
_DETECTORS = "detectors of distance and latent"
_TINY = 1e-12


@register_attack("LinfThreshold", norm="linf", targets="always", asks_for=_DETECTORS)
@register_attack("Threshold", norm="l2", needs_epsilon=False, targets="always", asks_for=_DETECTORS)
def threshold_attack(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    generator: torch.Generator | None = None,
    steps: int = 200,
    learning_rate: float = 0.01,
    distance_exponent: float = 2.0,
    latent_exponent: float = 2.0,
    perturbation_weight: float = 1.0,
) -> Float[Tensor, "batch channels height width"]:
    """Looks for accepted images of the class `y` near `x` (Ghosh et al. 2019, eq. 10).

    Minimises, over the perturbation, from zero,

        (||x' - g(f(x'))||^2 / tau_dec^2)^a + (d(f(x'), mu_t)^2 / tau_enc)^b + ||x' - x||^2,

    with t the class `y` and d the Mahalanobis distance. The paper prints neither the exponents (only that
    they are above 1) nor the optimiser. Adam descends the logarithm here, which has the same minima: the
    objective itself falls by orders of magnitude, and steps would still be sized for its start. The attack
    keeps the nearest image that is accepted as `y`, or else the one of the least objective.

    Args:
        model: A selective classifier whose detectors are of `"distance"` and `"latent"`, or a view of one.
        x: Images in [0, 1].
        y: The class that each is to be accepted as.
        epsilon: Bound on the perturbation in the maximum norm (`"LinfThreshold"`); the paper has none.
        generator: Not used: nothing is drawn.
        steps: Number of steps of Adam.
        learning_rate: Learning rate of Adam.
        distance_exponent: a.
        latent_exponent: b.
        perturbation_weight: Perturbation weight of the last term.

    Returns:
        Images in [0, 1], constant.

    Raises:
        ValueError: If the detectors are others, or a setting is invalid.
    """
    del generator
    attacked = selective(classifier_behind(model))
    objective = _Objective(attacked, distance_exponent, latent_exponent, perturbation_weight)
    if steps < 0 or (epsilon is not None and not epsilon >= 0) or not learning_rate > 0:
        raise ValueError(
            "Expected `steps` and `epsilon` of at least 0 and `learning_rate` above 0, "
            f"but got {steps}, {epsilon} and {learning_rate}"
        )
    clean = attacked.check(x).detach()
    reach = 1.0 if epsilon is None else epsilon
    low, high = (clean - reach).clamp_min(0), (clean + reach).clamp_max(1)
    best = _Best(clean)
    with torch.enable_grad():
        current = clean.clone().requires_grad_()
        optimizer = torch.optim.Adam([current], lr=learning_rate)
        for step in range(steps + 1):
            loss, reached = objective(current, clean, y).unbind(1)
            best.keep(current.detach(), loss.detach(), reached.bool())
            if step < steps:
                (current.grad,) = torch.autograd.grad(loss.clamp_min(_TINY).log().sum(), current)
                optimizer.step()
                current.data = current.data.clamp(low, high)
    return best.images


@register_attack(
    "Fooling",
    norm="l2",
    needs_epsilon=False,
    targets="always",
    asks_for=_DETECTORS,
    note="Starts from uniform noise, not from the image: what it finds shows nothing.",
)
def fooling_attack(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    generator: torch.Generator,
    steps: int = 500,
    learning_rate: float = 0.01,
    distance_exponent: float = 2.0,
    latent_exponent: float = 2.0,
) -> Float[Tensor, "batch channels height width"]:
    """Searches images of anything that are accepted as the class `y` (Ghosh et al. 2019, eq. 11).

    It differs from `threshold_attack` in two points: a perturbation costs nothing, and the start is uniform
    noise, as in the paper.

    Args:
        model: The model, as for `threshold_attack`.
        x: Images that only determine the shape.
        y: The class as which each image should be accepted.
        epsilon: Not used, because there is no perturbation.
        generator: Generator of the noise.
        steps: Number of steps of Adam.
        learning_rate: Learning rate of Adam.
        distance_exponent: a.
        latent_exponent: b.

    Raises:
        ValueError: In the cases of `threshold_attack`.
    """
    del epsilon
    noise = uniform(x, generator)
    return threshold_attack(
        model,
        noise,
        y,
        steps=steps,
        learning_rate=learning_rate,
        distance_exponent=distance_exponent,
        latent_exponent=latent_exponent,
        perturbation_weight=0.0,
    )


@final
class _Objective(Query):
    """Eq. 10, and whether an image is accepted as the target."""

    def __init__(
        self,
        model: SelectiveClassifier,
        distance_exponent: float,
        latent_exponent: float,
        perturbation_weight: float,
    ) -> None:
        super().__init__()
        evidence = {detector.evidence for detector in model.detectors}
        if evidence != _EVIDENCE:
            raise ValueError(
                f"Expected detectors of {sorted(_EVIDENCE)}, but got {sorted(map(str, evidence))}"
            )
        if not (min(distance_exponent, latent_exponent) > 1 and perturbation_weight >= 0):
            raise ValueError(
                "Expected exponents above 1 and `perturbation_weight` of at least 0, but got "
                f"{distance_exponent}, {latent_exponent} and {perturbation_weight}"
            )
        self.model = model
        self.distance_exponent, self.latent_exponent = distance_exponent, latent_exponent
        self.perturbation_weight = perturbation_weight

    def forward(self, x: Tensor, clean: Tensor, target: Int[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
        """Returns the objective, and 1 where the image is accepted as the target, else 0."""
        class_scores = self.model.model.class_scores(x)
        loss = self.perturbation_weight * (x - clean).square().flatten(1).sum(1)
        reached = class_scores.argmax(1) == target
        for detector in self.model.detectors:
            scores = detector.scores(self.model.model, x, target, class_scores=class_scores)
            ratio = scores / detector.thresholds_of(target, like=scores)
            reached = reached & (ratio <= 1)
            if detector.evidence == "distance":
                loss = loss + ratio.square() ** self.distance_exponent
            else:
                loss = loss + ratio**self.latent_exponent
        return torch.stack([loss, reached.to(loss)], 1)


class _Best:
    """The best image of every row so far."""

    def __init__(self, images: Tensor) -> None:
        self.clean, self.images = images, images
        self.loss = images.new_full((len(images),), torch.inf)
        self.distance = self.loss.clone()
        self.reached = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def keep(self, images: Tensor, loss: Tensor, reached: Tensor) -> None:
        """Takes images that reach the target nearer by, or that come closer to where none did yet."""
        distance = (images - self.clean).flatten(1).norm(dim=1)
        nearer = reached & (~self.reached | (distance < self.distance))
        closer = ~reached & ~self.reached & (loss < self.loss)
        better = nearer | closer
        self.images = torch.where(better[:, None, None, None], images, self.images)
        self.loss = torch.where(better, loss, self.loss)
        self.distance = torch.where(better, distance, self.distance)
        self.reached = self.reached | reached
