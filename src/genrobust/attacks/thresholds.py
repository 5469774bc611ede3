"""White-box attacks through both thresholds of a selective classifier (Ghosh et al. 2019, eq. 10 and 11)."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..selective import SelectiveClassifier

__all__ = ["fooling_attack", "threshold_attack"]

_EVIDENCE = {"distance", "latent"}
_TINY = 1e-12


def threshold_attack(
    model: SelectiveClassifier,
    x: Float[Tensor, "batch channels height width"],
    target: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    steps: int = 200,
    learning_rate: float = 0.01,
    distance_exponent: float = 2.0,
    latent_exponent: float = 2.0,
    perturbation_weight: float = 1.0,
) -> Float[Tensor, "batch channels height width"]:
    """Look for accepted images of the target class near `x` (eq. 10).

    Minimises, over the perturbation, from zero,

        (||x' - g(f(x'))||^2 / tau_dec^2)^a + (d(f(x'), mu_t)^2 / tau_enc)^b + ||x' - x||^2,

    with d the Mahalanobis distance. The paper gives neither exponents (only that they are above 1) nor
    optimiser: Adam descends the logarithm, which has the same minima, because the objective itself falls by
    orders of magnitude, and steps would still be sized for its start. Kept is the nearest image that is
    accepted as the target, or else the one of the least objective. For every other class as target, see
    `genrobust.attack_every_class`.

    Args:
        model: A selective classifier whose detectors are of `"distance"` and `"latent"`.
        x: Images in [0, 1].
        target: The class that each is to be accepted as.
        epsilon: Bound on the perturbation in the maximum norm; the paper has none.
        steps: Of Adam.
        learning_rate: Of Adam.
        distance_exponent: a.
        latent_exponent: b.
        perturbation_weight: Of the last term.

    Returns:
        Images in [0, 1], constant.

    Raises:
        ValueError: If the detectors are others, or a setting makes no sense.
    """
    objective = _Objective(model, distance_exponent, latent_exponent, perturbation_weight)
    if steps < 0 or (epsilon is not None and not epsilon >= 0) or not learning_rate > 0:
        raise ValueError(
            "Expected `steps` and `epsilon` of at least 0 and `learning_rate` above 0, "
            f"but got {steps}, {epsilon} and {learning_rate}"
        )
    clean = model.check(x).detach()
    reach = 1.0 if epsilon is None else epsilon
    low, high = (clean - reach).clamp_min(0), (clean + reach).clamp_max(1)
    best = _Best(clean)
    with torch.enable_grad():
        current = clean.clone().requires_grad_()
        optimizer = torch.optim.Adam([current], lr=learning_rate)
        for step in range(steps + 1):
            loss, reached = objective(current, clean, target)
            best.keep(current.detach(), loss.detach(), reached)
            if step < steps:
                (current.grad,) = torch.autograd.grad(loss.clamp_min(_TINY).log().sum(), current)
                optimizer.step()
                current.data = current.data.clamp(low, high)
    return best.images


def fooling_attack(
    model: SelectiveClassifier,
    start: Float[Tensor, "batch channels height width"],
    target: Int[Tensor, " batch"],
    *,
    steps: int = 500,
    learning_rate: float = 0.01,
    distance_exponent: float = 2.0,
    latent_exponent: float = 2.0,
) -> Float[Tensor, "batch channels height width"]:
    """Look for images of anything that are accepted as the target class (eq. 11).

    As `threshold_attack`, but a perturbation costs nothing.

    Args:
        model: A selective classifier whose detectors are of `"distance"` and `"latent"`.
        start: Where to start; in the paper, images of uniform noise.
        target: The class that each is to be accepted as.
        steps: Of Adam.
        learning_rate: Of Adam.
        distance_exponent: a.
        latent_exponent: b.

    Raises:
        ValueError: As `threshold_attack`.
    """
    return threshold_attack(
        model,
        start,
        target,
        steps=steps,
        learning_rate=learning_rate,
        distance_exponent=distance_exponent,
        latent_exponent=latent_exponent,
        perturbation_weight=0.0,
    )


@final
@dataclass(frozen=True)
class _Objective:
    """Eq. 10, and whether an image is accepted as the target."""

    model: SelectiveClassifier
    distance_exponent: float
    latent_exponent: float
    perturbation_weight: float

    def __post_init__(self) -> None:
        evidence = {detector.evidence for detector in self.model.detectors}
        if evidence != _EVIDENCE:
            raise ValueError(f"Expected detectors of {sorted(_EVIDENCE)}, but got {sorted(evidence)}")
        if not (min(self.distance_exponent, self.latent_exponent) > 1 and self.perturbation_weight >= 0):
            raise ValueError(
                "Expected exponents above 1 and `perturbation_weight` of at least 0, but got "
                f"{self.distance_exponent}, {self.latent_exponent} and {self.perturbation_weight}"
            )

    def __call__(
        self, x: Tensor, clean: Tensor, target: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
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
        return loss, reached


class _Best:
    """The best image of every row so far."""

    def __init__(self, images: Tensor) -> None:
        self.clean, self.images = images, images
        self.loss = images.new_full((len(images),), torch.inf)
        self.distance = self.loss.clone()
        self.reached = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def keep(self, images: Tensor, loss: Tensor, reached: Tensor) -> None:
        """Take images that reach the target nearer by, or that come closer to where none did yet."""
        distance = (images - self.clean).flatten(1).norm(dim=1)
        nearer = reached & (~self.reached | (distance < self.distance))
        closer = ~reached & ~self.reached & (loss < self.loss)
        better = nearer | closer
        self.images = torch.where(better[:, None, None, None], images, self.images)
        self.loss = torch.where(better, loss, self.loss)
        self.distance = torch.where(better, distance, self.distance)
        self.reached = self.reached | reached
