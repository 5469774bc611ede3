"""Radii beside what attacks found, and the accuracy that they certify."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._brief import one_line
from .._fields import NotNegative, checked
from .._precision import without_autocast
from .bounds import Certificate
from .smoothing import SmoothingCertificate

__all__ = ["CertificateCheck", "certified_accuracy", "check_certificate"]


def certified_accuracy(
    certificate: Certificate | SmoothingCertificate, radii: Sequence[float]
) -> Float[Tensor, " radii"]:
    """Computes the share of images that are certified to keep the right decision, at each radius.

    An image counts where its own radius is above the asked one, so that at 0 every image with a certificate
    counts. What is certified is the model with exact inference, or the smoothed classifier.

    Args:
        certificate: What `certify` returned.
        radii: L2 radii, at least 0.

    Returns:
        The shares, in float64.

    Raises:
        ValueError: If a radius is no number of at least 0, or the certificate has no image.
    """
    asked = checked(radii, tuple[NotNegative, ...], "`radii`")
    own = certificate.radii
    if not len(own):
        raise ValueError("Expected a certificate of at least one image, but got none")
    bounds = torch.tensor(asked, dtype=torch.float64, device=own.device)
    return (own[None] > bounds[:, None]).double().mean(1)


@final
@dataclass(frozen=True)
class CertificateCheck:
    """Radii and the distances at which attacks found adversarial examples.

    Attributes:
        radii: Lower bounds, shape (B,).
        distances: Distances of the nearest adversarial examples, shape (B,); infinite if none was found.
        violated: Whether an adversarial example is nearer than the radius, shape (B,).
    """

    radii: Float[Tensor, " batch"]
    distances: Float[Tensor, " batch"]
    violated: Bool[Tensor, " batch"]

    __repr__ = one_line

    @property
    def holds(self) -> bool:
        """Whether no attack contradicts a radius."""
        return not bool(self.violated.any())

    def __str__(self) -> str:
        """Returns a summary in one line."""
        count, total = int(self.violated.sum()), len(self.violated)
        if self.holds:
            return f"no radius of {total} is contradicted by an adversarial example"
        shortest = float((self.distances / self.radii)[self.violated].min())
        return (
            f"{count} of {total} radii are contradicted by an adversarial example, the nearest at "
            f"{shortest:.3g} of its radius"
        )


@without_autocast
def check_certificate(
    radii: Float[Tensor, " batch"], distances: Float[Tensor, " batch"], *, tolerance: float = 1e-5
) -> CertificateCheck:
    """Compares radii with the distances of adversarial examples.

    A radius by bounds is a theorem about exact inference. If an example lies within it, inference was not
    exact at the image or at the example. A radius by smoothing is about the smoothed classifier, which
    `Smoothed` estimates, and may be wrong for a share `alpha` of the images. An example of the model itself
    contradicts nothing.

    Args:
        radii: Radii of `certify`.
        distances: L2 distances of the nearest adversarial examples found; infinite if none was found.
        tolerance: Fraction of the radius that rounding errors may take.

    Raises:
        ValueError: If the shapes differ, or a value is NaN or negative.
    """
    if radii.shape != distances.shape:
        raise ValueError(
            f"Expected as many `distances` as `radii`, but got {tuple(distances.shape)} "
            f"and {tuple(radii.shape)}"
        )
    for name, values in (("radii", radii), ("distances", distances)):
        if not (values >= 0).all():
            raise ValueError(f"Expected `{name}` of at least 0, but got {float(values.min())}")
    return CertificateCheck(radii, distances, distances < radii * (1 - tolerance))
