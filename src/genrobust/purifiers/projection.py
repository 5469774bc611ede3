"""Purification by optimisation: the nearest image in a decoder's range, near the decoder's prior."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._budgeted import Budgeted
from .._settings import rounded
from ..capabilities import Searches
from ..inference import InferenceBudget, KLPrior, LatentObjective, Posterior, refine, refine_with_adam
from ..inference.cache import Derived
from ..randomness import FixedNoise, standard_normal
from .base import PurificationGradient, Purifier

__all__ = ["LatentProjection"]

DEFAULT_BUDGET = InferenceBudget(candidates=1000)
ACTIVATIONS_PER_PIXEL = 256  # assumed for an unknown decoder


@final
class LatentProjection(Searches, Budgeted, Purifier):
    """Returns G(z*) for z* = argmin_z ||x - G(z)||^2 + beta / 2 ||z||^2, for a user's decoder G.

    This is the idea of Defense-GAN (Samangouei et al. 2018), with the search and the refinement of this
    package's generative classifiers. Candidates are drawn from N(0, I) and compared by their images. The
    best one, or the encoder's proposal, is refined by BFGS until it converges, or by Adam.

    The mode of `Purified` determines the gradient of the result:

    - `"implicit"`: dz*/dx = -H^-1 d^2 l / dz dx, where H is the Hessian of the objective l at z*. It is exact
      if z* is a strict minimum and the refinement reached it. Directions in which l is flat get no gradient.
    - `"through"`: the gradient through all of Adam's steps, if the budget's method is Adam; the start stays
      constant. BFGS ends at an optimum, whose gradient is the implicit one.
    - `"bpda"`: the identity.

    Args:
        decoder: Latents (N, D) -> images (N, C, H, W) in [0, 1]; differentiable, twice so for the
            implicit gradient. The weights of an `nn.Module` become parameters of the projection.
        latent_dim: D.
        input_shape: (C, H, W).
        encoder: Images -> latents (N, D) that are candidates too, unless the budget's `encoder_proposal` is
            off.
        beta: Weight of the prior, above 0, so that flat directions of the decoder have an optimum too.
        inference: Settings that say how hard it looks for latents.

    Raises:
        ValueError: If `beta` is not above 0, or there are neither candidates nor an encoder.

    Example:
        BPDA through a latent optimisation is one line for any decoder:

        >>> import torch
        >>> from genrobust.models import CNN
        >>> from genrobust.purifiers import LatentProjection
        >>> from genrobust import Purified
        >>> decoder = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 784), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (1, 28, 28))
        ... )
        >>> projection = LatentProjection(decoder, latent_dim=8, input_shape=(1, 28, 28))
        >>> model = Purified(projection, CNN(), gradient="bpda")
        >>> model(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    caches: ClassVar[frozenset[str]] = frozenset({"_derived"})
    generates: ClassVar[bool] = True
    gradients: ClassVar[tuple[PurificationGradient, ...]] = (
        "through",
        "bpda",
        "implicit",
        "estimated",
        "grey-box",
    )

    def __init__(
        self,
        decoder: Callable[[Tensor], Tensor],
        *,
        latent_dim: int,
        input_shape: tuple[int, int, int],
        encoder: Callable[[Tensor], Tensor] | None = None,
        beta: float = 1.0,
        inference: InferenceBudget = DEFAULT_BUDGET,
    ) -> None:
        super().__init__(input_shape=input_shape)
        if not beta > 0:
            raise ValueError(f"Expected `beta` above 0, but got {beta}")
        _check_start(inference, encoder)
        self.decoder, self.encoder = decoder, encoder
        self.latent_dim = latent_dim
        self.beta = beta
        self.budget = inference
        self._derived = Derived()
        self.set_parts_training(False)

    def purify(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the nearest images in the decoder's range, differentiable in `x`."""
        if self.budget.refines_with(variational=False) == "bfgs":
            return self.purify_implicitly(x)
        return self._in_chunks(x, self._unrolled)

    def purify_implicitly(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the same images with the gradient of the optimum."""
        return self._in_chunks(x, lambda rows: self._as_function_of(rows, self.infer(rows)))

    def latents(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent"]:
        """Returns z*."""
        return self.infer(x)

    def decode(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
        """Returns the decoder's images."""
        return self._decoder(z)

    @torch.no_grad()
    def infer(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent"]:
        """Finds z*, as a constant in `x`."""
        noise = FixedNoise(0).stream()
        found = refine(self.objective, x, self._start(x), noise, budget=self.budget)
        return found.mean[:, 0].detach()

    @property
    def objective(self) -> LatentObjective:
        """The objective of the current weights; its only class is the image."""
        weights = [*self.parameters(), *self.buffers()]
        return self._derived.objective(weights, self._make_objective)

    def _with_budget(self, budget: InferenceBudget) -> Self:
        _check_start(budget, self.encoder)
        return self._variant(budget=budget, _derived=self._derived)

    @torch.no_grad()
    def _behaviour(self) -> dict[str, Any]:
        """Returns images of fixed latents, and their latents: functions may share a name."""
        generator = torch.Generator().manual_seed(0)
        latents = standard_normal((2, self.latent_dim), generator)
        images = self.decoder(latents.to(next(self.parameters(), latents)))
        found = {"decoder": rounded(images)}
        return found if self.encoder is None else {**found, "encoder": rounded(self.encoder(images))}

    def _in_chunks(
        self, x: Tensor, purify: Callable[[Tensor], Float[Tensor, "rows latent"]]
    ) -> Float[Tensor, "batch channels height width"]:
        if not len(x):
            return x * 1
        gradients = torch.is_grad_enabled()
        # Leaving inference mode would switch gradients on.
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            images = x.clone() if x.is_inference() else x
            size = self.objective.rows_per_chunk(self.budget.max_bytes, like=images)
            return torch.cat([self._decoder(purify(rows)) for rows in images.split(size)])

    @property
    def _decoder(self) -> "_OneDecoder":
        return _OneDecoder(self.decoder, self.input_shape)

    def _make_objective(self) -> LatentObjective:
        return LatentObjective(
            decoders=self._decoder,
            prior=KLPrior(),
            beta=self.beta,
            num_classes=1,
            latent_dim=self.latent_dim,
            variational=False,
        )

    @torch.no_grad()
    def _start(self, x: Float[Tensor, "batch channels height width"]) -> Posterior:
        objective, proposal = self.objective, None
        if self.encoder is not None and self.budget.encoder_proposal:
            proposal = Posterior(self.encoder(x)[:, None])
        if proposal is not None and not self.budget.candidates:
            return proposal
        [(start, loss)] = self._derived.codebook(objective, self.budget, like=x).search(x)
        if proposal is None:
            return start
        return proposal.where(objective.at(x, proposal, FixedNoise(0).stream()) < loss, start)

    def _unrolled(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent"]:
        steps = self.budget.steps if x.requires_grad and torch.is_grad_enabled() else 0
        start, noise = self._start(x.detach()), FixedNoise(0).stream()
        found = refine_with_adam(self.objective, x, start, noise, budget=self.budget, unrolled=steps)
        return found.mean[:, 0]

    def _as_function_of(
        self, x: Float[Tensor, "batch channels height width"], z: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch latent"]:
        """Returns z with dz/dx = -H^-1 d^2 l / dz dx, as a Newton step of length zero with a slope."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return z
        leaf = z.detach().requires_grad_()
        loss = self.objective.at(x, Posterior(leaf[:, None]), FixedNoise(0).stream())
        (slope,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
        columns = [
            torch.autograd.grad(slope[:, latent].sum(), leaf, retain_graph=True)[0]
            for latent in range(self.latent_dim)
        ]
        inverse = torch.linalg.pinv(torch.stack(columns, 2), hermitian=True)
        step: Tensor = inverse @ (slope - slope.detach())[:, :, None]
        return z - step[:, :, 0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": Derived()}


def _check_start(budget: InferenceBudget, encoder: Callable[[Tensor], Tensor] | None) -> None:
    if encoder is None and not budget.candidates:
        raise ValueError("Expected `candidates` above 0 without an `encoder`: nothing to start from")


@final
@dataclass(frozen=True)
class _OneDecoder:
    """A user's decoder as the decoder bank that inference needs."""

    decoder: Callable[[Tensor], Tensor]
    image_shape: tuple[int, int, int]
    decoders: int = 1

    @property
    def activations(self) -> int:
        """Number of values that a pass computes for one latent, roughly."""
        _, height, width = self.image_shape
        return ACTIVATIONS_PER_PIXEL * height * width

    def __call__(self, z: Float[Tensor, "*rows latent"]) -> Float[Tensor, "*rows channels height width"]:
        images: Tensor = self.decoder(z.flatten(0, -2)).unflatten(0, z.shape[:-1])
        return images

    def for_inference(self) -> Self:
        return self

    def select(self, classes: Int[Tensor, " groups"]) -> Self:
        del classes
        return self
