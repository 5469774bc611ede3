"""A plain implementation of the latent inference in the papers' public code, as a reference.

It loops over K decoders of ordinary layers, compares decoded candidates pixel by pixel, and takes 50 Adam
steps for every image and class.
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...inference import DiscriminatorPrior, Posterior
from ...models._latent import LatentClassifier
from ...nets.banks import DecoderBank

__all__ = ["PlainInference"]

TILE = 1000


@final
class PlainInference:
    """Scores images with a model's weights by the published schedule.

    Args:
        model: The model, whose weights, prior and budget are used.
    """

    def __init__(self, model: LatentClassifier) -> None:
        self.budget, self.beta, self.prior = model.budget, model.beta, model.prior
        self.variational, self.latent_dim = model.variational, model.latent_dim
        self.encoders = model.encoders if self.budget.encoder_proposal else None
        self.decoders = [_decoder(model.decoders, k) for k in range(model.num_classes)]
        generator = torch.Generator().manual_seed(self.budget.seed)
        device = next(model.parameters()).device
        means = torch.randn(self.budget.candidates, self.latent_dim, generator=generator)
        kept = round(len(means) * (1 - self.budget.drop_least_likely))
        self.means = means[means.norm(dim=1).argsort()[:kept]].to(device)
        z = self.means + torch.randn(self.means.shape, generator=generator).to(device) * self.variational
        with torch.no_grad():
            self.images = [
                torch.cat([decoder(part[:, :, None, None]).flatten(1) for part in z.split(TILE)])
                for decoder in self.decoders
            ]
            self.priors = [self._prior(k, self.means, torch.zeros_like(self.means), z) for k in self._classes]

    @property
    def _classes(self) -> range:
        return range(len(self.decoders))

    def losses(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Returns l_k(x) of every class after all steps; its gradient in `x` takes latents as constant."""
        generator = torch.Generator().manual_seed(1)
        posterior = self._refine(x.detach(), generator)
        return self._evaluate(x.flatten(1), *posterior, generator, constant=True)

    def posterior(self, x: Float[Tensor, "batch channels height width"]) -> Posterior:
        """Returns the latents to which the scores belong."""
        mean, log_variance = self._refine(x, torch.Generator().manual_seed(1))
        return Posterior(mean, log_variance if self.variational else None)

    @torch.enable_grad()
    def _refine(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pixels = x.flatten(1)
        found = [self._search(k, pixels) for k in self._classes]
        mean = torch.stack([start for start, _ in found], 1)
        log_variance = torch.zeros_like(mean)
        if self.encoders is not None:
            mean, log_variance = self._propose(x, torch.stack([loss for _, loss in found], 1), mean)
        mean.requires_grad_()
        log_variance.requires_grad_()
        leaves = [mean, log_variance] if self.variational else [mean]
        optimizer = torch.optim.Adam(leaves, lr=self.budget.learning_rate)
        for _ in range(self.budget.steps):
            optimizer.zero_grad()
            self._evaluate(pixels, mean, log_variance, generator).sum().backward()
            optimizer.step()
            if self.budget.radius is not None:
                with torch.no_grad():
                    norm = mean.norm(dim=2, keepdim=True)
                    mean.mul_(self.budget.radius / norm.clamp_min(self.budget.radius))
        return mean.detach(), log_variance.detach()

    def _search(self, k: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            loss = torch.cdist(pixels, self.images[k]).square() + self.beta * self.priors[k]
            best, index = loss.min(1)
            return self.means[index], best

    def _propose(self, x: Tensor, best: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        assert self.encoders is not None  # noqa: S101
        with torch.no_grad():
            encoded = self.encoders(x[:, None].expand(-1, self.encoders.encoders, -1, -1, -1))
            proposal, log_variance = (part.expand_as(mean).clone() for part in encoded)
            generator = torch.Generator().manual_seed(2)
            better = self._evaluate(x.flatten(1), proposal, log_variance, generator) < best
            return (
                torch.where(better[..., None], proposal, mean),
                torch.where(better[..., None], log_variance, 0.0),
            )

    def _evaluate(
        self,
        pixels: Tensor,
        mean: Tensor,
        log_variance: Tensor,
        generator: torch.Generator,
        *,
        constant: bool = False,
    ) -> Float[Tensor, "batch classes"]:
        z = mean
        if self.variational:
            noise = torch.randn(mean[:1].shape, generator=generator).to(mean.device)
            z = mean + (0.5 * log_variance).exp() * noise
        losses = []
        for k in self._classes:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
                image = self.decoders[k](z[:, k, :, None, None]).flatten(1)
                prior = self._prior(k, mean[:, k], log_variance[:, k], z[:, k])
            losses.append((pixels - image).square().sum(1) + self.beta * prior)
        return torch.stack(losses, 1)

    def _prior(self, k: int, mean: Tensor, log_variance: Tensor, z: Tensor) -> Float[Tensor, " batch"]:
        if isinstance(self.prior, DiscriminatorPrior):
            logits: Tensor = self.prior.discriminators(z[:, None].expand(-1, len(self.decoders), -1))
            return -nn.functional.logsigmoid(logits[:, k])
        kl = 0.5 * mean.square().sum(1)
        if self.variational:
            kl = kl + 0.5 * (log_variance.exp() - 1 - log_variance).sum(1)
        return kl


def _decoder(bank: DecoderBank, k: int) -> nn.Sequential:
    """Returns decoder k of a bank as ordinary layers."""
    layers: list[nn.Module] = []
    for layer in bank.layers:
        if isinstance(layer, nn.ConvTranspose2d | nn.Conv2d):
            inside, outside = layer.in_channels // bank.decoders, layer.out_channels // bank.decoders
            kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
            single = type(layer)(inside, outside, kernel, stride, padding, bias=layer.bias is not None)  # type: ignore[arg-type]
            width = len(layer.weight) // bank.decoders
            single.weight.data = layer.weight.data[k * width : (k + 1) * width].clone()
            if layer.bias is not None and single.bias is not None:
                single.bias.data = layer.bias.data[k * outside : (k + 1) * outside].clone()
            layers.append(single)
        elif isinstance(layer, nn.BatchNorm2d):
            width = layer.num_features // bank.decoders
            norm = nn.BatchNorm2d(width)
            state = {n: v[k * width : (k + 1) * width] for n, v in layer.state_dict().items() if v.ndim}
            norm.load_state_dict(state, strict=False)
            layers.append(norm)
        else:
            layers.append(layer)
    return nn.Sequential(*layers).to(next(bank.parameters()).device).eval()
