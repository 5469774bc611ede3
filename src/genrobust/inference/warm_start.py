"""What calls leave to later ones: latents to start from, and latents that draws for the same images share."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._brief import one_line
from .objective import LatentObjective, Posterior

__all__ = ["LastCall", "Memory", "one_inference"]

CONTENDERS = 2  # the winner, and the runner-up that an attacker's margin is measured to


@final
class _Scope(threading.local):
    current: object | None = None


_scope = _Scope()


@contextmanager
def one_inference() -> Iterator[None]:
    """Has calls about the same images, one after the other, share one inference where only scores draw noise.

    Elsewhere every call infers: a toolkit that asks twice must see that a model optimises, and a measurement
    of time must not become one of memory.
    """
    outer = _scope.current
    _scope.current = outer or object()
    try:
        yield
    finally:
        _scope.current = outer


@final
@dataclass(frozen=True)
class Memory:
    """The latents at which the last call ended, and lower bounds on the objective of every class.

    l_k(x) = min_z ||x - G_k(z)||^2 + prior(z), with a prior term of at least 0, is the squared distance of
    (x, 0) from the set of all (G_k(z), prior(z)^(1/2)). Its root therefore changes by no more than x moves.
    This is the argument of E-ABS eq. 7. It is as exact as the inference was.

    Attributes:
        images: The images of the last call.
        posterior: The latents of the last call, after refinement.
        roots: Lower bounds on the roots of l_k at the images.
    """

    images: Float[Tensor, "batch channels height width"]
    posterior: Posterior
    roots: Float[Tensor, "batch classes"]

    __repr__ = one_line

    @classmethod
    def after(
        cls,
        previous: Self | None,
        x: Float[Tensor, "batch channels height width"],
        posterior: Posterior,
        losses: Float[Tensor, "batch classes"],
    ) -> Self:
        """Builds the memory of a call.

        Args:
            previous: The memory before this call, with the same rows.
            x: The images of the call.
            posterior: The latents at which refinement ended. Without a promise, `losses` give no lower bound.
            losses: The objective at these latents.
        """
        roots = torch.zeros_like(losses)
        if posterior.promise is not None:
            # The quadratic model is not exact, so twice its promise is subtracted.
            roots = (losses - 2 * posterior.promise).clamp_min(0).sqrt()
        if previous is not None:
            roots = torch.maximum(roots, previous.roots_at(x))
        return cls(x, Posterior(posterior.mean, posterior.log_variance), roots)

    def roots_at(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Returns lower bounds on the roots of l_k at other images."""
        moved = (x - self.images).flatten(1).norm(dim=1, keepdim=True)
        roots: Tensor = (self.roots - moved).clamp_min(0)
        return roots

    def contenders(
        self, x: Float[Tensor, "batch channels height width"], losses: Float[Tensor, "batch classes"]
    ) -> Bool[Tensor, "batch classes"]:
        """Returns which classes can be among the best two at other images, given upper bounds of l_k."""
        count = min(CONTENDERS, losses.shape[1])
        behind = losses.topk(count, dim=1, largest=False).values[:, -1:]
        return self.roots_at(x).square() <= behind

    def rows(self, rows: slice) -> Self:
        """Returns the memory of some images of the batch."""
        return type(self)(self.images[rows], self.posterior.rows(rows), self.roots[rows])


@final
class LastCall(threading.local):
    """What the last call leaves behind. Every thread has its own, so that none reads another one's images.

    Attributes:
        refined: False for classes that were not refined; None if all were.
        memory: Where a warm start begins; None without one.
        answered: The scope of `one_inference`, the images of the call and the latents at which it ended; None
            without a scope.
        objective: The objective of the call. Other weights have another one, which the rest does not serve.
    """

    refined: Bool[Tensor, "batch classes"] | None = None
    memory: Memory | None = None
    answered: tuple[object, Tensor, Posterior] | None = None
    objective: LatentObjective | None = None

    def see(
        self,
        x: Float[Tensor, "batch channels height width"],
        posterior: Posterior,
        memory: Memory | None,
        objective: LatentObjective,
    ) -> None:
        """Stores what a call leaves behind."""
        self.refined, self.memory, self.objective = posterior.leading, memory, objective
        self.answered = None if _scope.current is None else (_scope.current, x.clone(), posterior)

    def memory_of(
        self, x: Float[Tensor, "batch channels height width"], objective: LatentObjective
    ) -> Memory | None:
        """Returns the memory, if it is of this objective and of as many images."""
        if self.memory is None or self.objective is not objective or self.memory.images.shape != x.shape:
            return None
        return self.memory

    @property
    def answers(self) -> bool:
        """Whether the last call was in the scope of `one_inference` that is open now."""
        return self.answered is not None and self.answered[0] is _scope.current

    def latents_of(
        self, x: Float[Tensor, "batch channels height width"], objective: LatentObjective
    ) -> Posterior | None:
        """Returns where the scope's last call ended, if it was about these images and this objective."""
        if self.answered is None or not self.answers or self.objective is not objective:
            return None
        _, images, posterior = self.answered
        alike = (images.dtype, images.device) == (x.dtype, x.device) and torch.equal(images, x)
        return posterior if alike else None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # copies and other processes begin with nothing
