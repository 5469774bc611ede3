"""Planted frauds: models whose robustness is not real, each for a reason of its own, around one network."""

from typing import Self, final

import torch
from torch import Tensor, nn

from genrobust.capabilities import Defended, Randomized
from genrobust.contract import Classifier, ModelView
from genrobust.randomness import NoiseSource


class Quantised(nn.Module):
    """Rounds the input to 8 levels, which has no gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 7).round() / 7)


class Loud(nn.Module):
    """Multiplies the logits by 1000, so that the softmax saturates."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.net(x)


class ResizedAndPadded(nn.Module):
    """Resizes the image to a random size, and pads it at a random place."""

    def __init__(self, net: nn.Module, *, smallest: int = 18) -> None:
        super().__init__()
        self.net, self.smallest = net, smallest

    def forward(self, x: Tensor) -> Tensor:
        whole = x.shape[-1]
        size = int(torch.randint(self.smallest, whole + 1, ()))
        top, left = (int(torch.randint(0, whole - size + 1, ())) for _ in range(2))
        small = nn.functional.interpolate(x, size=(size, size), mode="bilinear")
        return self.net(nn.functional.pad(small, (left, whole - size - left, top, whole - size - top)))


class Detached(nn.Module):
    """Denoises the image in an inner loop whose gradient is stopped; what is left leads elsewhere."""

    def __init__(self, net: nn.Module, *, decoy: float = 0.0) -> None:
        super().__init__()
        self.net, self.decoy = net, decoy

    def forward(self, x: Tensor) -> Tensor:
        cleaned = x.detach()
        for _ in range(3):
            smooth = nn.functional.avg_pool2d(cleaned, 3, 1, 1)
            cleaned = cleaned - 0.1 * (cleaned - smooth)
        logits = self.net(cleaned)
        bias = self.decoy * x.flatten(1)[:, : logits.shape[1]]
        return logits + bias


class ConstantFarFromData(nn.Module):
    """Answers with the class of the nearest known image wherever no known image is near."""

    def __init__(self, net: nn.Module, known: Tensor, *, reach: float) -> None:
        super().__init__()
        self.net, self.reach = net, reach
        self.register_buffer("known", known.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        distances = torch.cdist(x.detach().flatten(1), self.known)
        far = distances.amin(1) > self.reach
        nearest = self.net(self.known[distances.argmin(1)].view_as(x)).detach()
        return torch.where(far[:, None], nearest, self.net(x))


@final
class HardReject(ModelView):
    """Rejects below a confidence, by a column that is one of two constants."""

    def __init__(self, model: Classifier, *, confidence: float) -> None:
        super().__init__(model)
        self.confidence, self.rejects = confidence, True

    def logits(self, x: Tensor) -> Tensor:
        logits = self.model.logits(x)
        unsure = logits.softmax(1).amax(1) < self.confidence
        column = torch.where(unsure, logits.new_tensor(1e3), logits.new_tensor(-1e3))
        return torch.cat([logits, column[:, None]], 1)


@final
class ReusedNoise(Randomized, ModelView):
    """Says that it draws noise, and draws the same for every attack and every verdict."""

    def __init__(self, model: Classifier, *, size: float) -> None:
        super().__init__(model)
        self.size, self.randomized = size, True

    def with_noise(self, noise: NoiseSource) -> Self:
        del noise
        return self

    def logits(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((1, *x.shape[1:]), generator=generator)
        return self.model.logits(x + self.size * noise)


class Blur(nn.Module):
    """A purifier that smooths the image, but only where nobody asks for a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return x
        return nn.functional.avg_pool2d(x, 3, 1, 1)


@final
class HiddenPurifier(Defended, ModelView):
    """Purifies, but is the identity on what an attack sees."""

    def __init__(self, model: Classifier) -> None:
        super().__init__(model)
        self.purifier = Blur()

    def bare(self) -> Classifier:
        return self.model

    def passed_on(self, x: Tensor) -> Tensor:
        return self.purifier(x)

    def logits(self, x: Tensor) -> Tensor:
        return self.model.logits(self.purifier(x))
