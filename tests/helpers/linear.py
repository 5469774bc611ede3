"""An autoencoder with a linear decoder, whose best latent is known."""

import math

import torch
from deterministic import Deterministic
from torch import Tensor, nn

from genrobust.capabilities import DecodesMixture, Reconstructs
from genrobust.inference import LatentObjective, UniformPrior


class LinearDecoder(nn.Module):
    """g(z) = A z + b, for all classes."""

    decoders, image_shape, activations = 1, (1, 4, 4), 16

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.matrix = nn.Parameter(0.15 * torch.randn((16, 3), generator=generator).double())
        self.offset = nn.Parameter(torch.full((16,), 0.4).double())

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.matrix.T + self.offset).unflatten(2, self.image_shape)

    def for_inference(self) -> "LinearDecoder":
        return self

    def select(self, _: Tensor) -> "LinearDecoder":
        return self


class LinearAutoencoder(DecodesMixture, Reconstructs, Deterministic):
    """Two classes in three latents; the encoder is the decoder's inverse."""

    means: Tensor

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 4, 4), num_classes=2)
        self.decoder = LinearDecoder()
        self.register_buffer("means", torch.eye(2, 3).double())

    @property
    def objective(self) -> LatentObjective:
        return LatentObjective(
            decoders=self.decoder,
            prior=UniformPrior(self.means, scale=0.2),
            beta=1.0,
            num_classes=2,
            latent_dim=3,
            variational=False,
        )

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z[:, None])[:, 0]

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        del y
        return (x.flatten(1) - self.decoder.offset) @ torch.linalg.pinv(self.decoder.matrix).T

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))[:, None].expand(-1, 2, -1, -1, -1)

    def class_scores(self, x: Tensor) -> Tensor:
        z = self.encode(self.check(x))
        return -(z[:, None] - self.means).square().sum(2) - math.log(2)


def drawn(model: LinearAutoencoder, count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and classes, with some noise on latents and pixels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (count,), generator=generator)
    z = model.means[y] + 0.15 * torch.randn((count, 3), generator=generator).double()
    noise = 0.02 * torch.randn((count, 1, 4, 4), generator=generator).double()
    return (model.decode(z).detach() + noise).clamp(0, 1), y
