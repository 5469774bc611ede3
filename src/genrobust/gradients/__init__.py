"""Surrogate gradients: the d score / d x that an attacker of a latent-optimising classifier gets.

All strategies but `Unrolled` return the same scores. They differ in the gradient that autograd computes.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .bpda import NothingStops, straight_through
from .contract import LatentModel, SurrogateGradient
from .estimated import Estimated
from .surrogates import Automatic, Envelope, Joint, Proposal, Unrolled

__all__ = [
    "STRATEGIES",
    "Automatic",
    "Envelope",
    "Estimated",
    "Joint",
    "LatentModel",
    "NothingStops",
    "Proposal",
    "SurrogateGradient",
    "Unrolled",
    "straight_through",
    "surrogate_gradient",
]

STRATEGIES: Mapping[str, Callable[[], SurrogateGradient]] = MappingProxyType(
    {
        "auto": Automatic,
        "envelope": Envelope,
        "estimated": Estimated,
        "joint": Joint,
        "proposal": Proposal,
        "unrolled": Unrolled,
    }
)


def surrogate_gradient(gradient: str | SurrogateGradient) -> SurrogateGradient:
    """Returns a strategy by name, `"envelope"`, `"proposal"` and so on, or the strategy itself.

    Raises:
        ValueError: If there is none of that name.
        TypeError: If it is neither a name nor a strategy.
    """
    if isinstance(gradient, type) or not isinstance(gradient, str | SurrogateGradient):
        raise TypeError(
            f"Expected `gradient` to be one of {list(STRATEGIES)} or a strategy, but got {gradient!r:.60}"
        )
    if not isinstance(gradient, str):
        return gradient
    if gradient not in STRATEGIES:
        raise ValueError(f"Expected `gradient` out of {list(STRATEGIES)}, but got {gradient!r}")
    return STRATEGIES[gradient]()
