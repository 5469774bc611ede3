"""Random candidates and their decoded images."""

import math
from collections.abc import Iterator, Mapping
from typing import Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .budget import InferenceBudget
from .objective import LatentObjective, Posterior
from .radius import within_radius

__all__ = ["Codebook"]

COMPONENTS = 64
RESCORED = 8
GROUP = 32  # candidates whose best one alone can be re-scored
SCORES = 1 << 21  # scores of one product: 8 MiB stay in the cache
SAMPLE = 2048  # decoded images that the components are fitted to
TENSORS = ("means", "noise", "centre", "basis", "codes", "offsets")


@final
class Codebook:
    """Random candidates and their decoded images: the search becomes a matrix product.

    With c the mean decoded image, ||x - g||^2 = ||x - c||^2 - 2 (x - c).(g - c) + ||g - c||^2. The product is
    taken in the 64 principal components of the decoded images, and the best candidates are scored again with
    the images themselves, as long as these fit half of `max_bytes`. Where not even the components do, all
    candidates are decoded anew at every search, in the model's own precision. Of another likelihood than the
    squared error, x are the statistics, and g the features that a decoder's output has in it.

    Attributes:
        means: Standard normal draws, which the objective moves to where the prior of each class is.
    """

    def __init__(self, objective: LatentObjective, budget: InferenceBudget, *, like: Tensor) -> None:
        self._prepare(objective, budget, like=like)
        self.means = _draw_candidates(objective, budget).to(device=like.device, dtype=like.dtype)
        generator = torch.Generator().manual_seed(budget.seed + 1)
        noise = torch.randn(self.means.shape, generator=generator)
        self.noise = noise.to(device=like.device, dtype=like.dtype)
        self.decoded: Tensor | None = None
        if self._fits():
            self._build()

    def _prepare(self, objective: LatentObjective, budget: InferenceBudget, *, like: Tensor) -> None:
        self.objective = objective
        self._half = budget.max_bytes // 2
        self._pixels = math.prod(objective.decoders.image_shape)
        self._row_bytes = objective.num_classes * like.element_size()
        self._tile = min(256, max(1, budget.max_bytes // (16 * self._pixels * self._row_bytes)))
        self._chunk = objective.rows_per_chunk(budget.max_bytes // 4, like=like)
        self._codes_dtype = torch.bfloat16 if budget.bfloat16_search else like.dtype
        self.codes: Tensor | None = None

    def _fits(self, *, decoded: bool = False) -> bool:
        values = min(COMPONENTS, self._pixels) + 1 + decoded * self._pixels
        return len(self.means) * values * self._row_bytes <= self._half

    @torch.no_grad()
    def search(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Posterior, Float[Tensor, "batch classes"]]:
        """Find the best candidate of every class, and its objective."""
        observation = self.objective.observation
        constant = observation.constant(x.flatten(1))[:, None]
        pixels = observation.statistics(x.flatten(1))
        if self.codes is None:
            index, loss = self._search_anew(pixels)
        else:
            rows = max(1, SCORES // self.codes[..., 0].numel())
            found = [self._search_codes(part, self.codes) for part in pixels.split(rows)]
            index, loss = (torch.cat(parts) for parts in zip(*found, strict=True))
        return self.objective.posterior(self.means[index]), loss + constant

    def _search_codes(
        self, pixels: Float[Tensor, "batch pixels"], codes: Float[Tensor, "classes candidates components"]
    ) -> tuple[Int[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        centred = pixels - self.centre
        scores = self._scores(centred @ self.basis, codes)
        shift = ((self.centre - 2 * pixels) @ self.centre)[:, None]
        if self.decoded is None:
            best, index = scores.min(2)
            return index.mT, best.mT + shift
        groups = scores.unflatten(2, (-1, GROUP))
        chosen = groups.amin(3).topk(min(RESCORED, groups.shape[2]), dim=2, largest=False).indices
        members = groups.gather(2, chosen[..., None].expand(-1, -1, -1, GROUP))
        index = (GROUP * chosen + members.argmin(3)).transpose(0, 1)  # (B, K, 8)
        index, loss = self._rescore(centred, index, self.decoded)
        return index, loss + shift

    def _scores(
        self,
        projected: Float[Tensor, "batch components"],
        codes: Float[Tensor, "classes candidates components"],
    ) -> Float[Tensor, "classes batch candidates"]:
        queries, offsets = projected.to(codes.dtype).expand(len(codes), -1, -1), self.offsets[:, None]
        if codes.dtype == offsets.dtype:
            return torch.baddbmm(offsets, queries, codes.mT, alpha=-2)
        return torch.add(offsets, queries @ codes.mT, alpha=-2)

    def _rescore(
        self,
        centred: Float[Tensor, "batch pixels"],
        index: Int[Tensor, "batch classes rescored"],
        decoded: Float[Tensor, "classes candidates pixels"],
    ) -> tuple[Int[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        classes = torch.arange(len(decoded), device=index.device)[:, None]
        flat = (classes * decoded.shape[1] + index).flatten()
        images = decoded.flatten(0, 1)[flat].unflatten(0, (len(centred), -1))
        offsets = self.offsets.flatten()[(classes * self.offsets.shape[1] + index).flatten()]
        products = (images @ centred[:, :, None]).reshape(index.shape)
        best, position = (offsets.reshape(index.shape) - 2 * products).min(2)
        return index.gather(2, position[..., None])[..., 0], best

    def _search_anew(
        self, pixels: Float[Tensor, "batch pixels"]
    ) -> tuple[Int[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        best = pixels.new_full((len(pixels), self.objective.num_classes), torch.inf)
        index = torch.zeros_like(best, dtype=torch.long)
        for rows in self._rows():
            decoded, offset = self._decode(rows)
            # (B, N) @ (K, N, T) -> (K, B, T)
            loss = torch.baddbmm(offset[:, None], pixels.expand(len(decoded), -1, -1), decoded.mT, alpha=-2)
            value, position = loss.min(2)
            better = value.mT < best
            best = torch.where(better, value.mT, best)
            index = torch.where(better, position.mT + rows.start, index)
        return index, best

    @torch.no_grad()
    def _build(self) -> None:
        sample = self._decode(slice(0, max(1, SAMPLE // self.objective.num_classes)))[0].flatten(0, 1)
        self.centre = sample.mean(0)
        self.basis = _principal_components(sample - self.centre)
        classes, count = self.objective.num_classes, len(self.means)
        padded = GROUP * math.ceil(count / GROUP)
        codes = self.means.new_zeros(classes, padded, self.basis.shape[1], dtype=self._codes_dtype)
        self.offsets = self.means.new_full((classes, padded), torch.inf)
        decoded = self.means.new_empty(classes, count, self._pixels) if self._fits(decoded=True) else None
        for rows in self._rows():
            images, offset = self._decode(rows)
            shift = self.centre.square().sum() - 2 * images @ self.centre
            images -= self.centre
            codes[:, rows] = images @ self.basis
            self.offsets[:, rows] = offset + shift
            if decoded is not None:
                decoded[:, rows] = images
        self.codes, self.decoded = codes, decoded

    def _rows(self) -> Iterator[slice]:
        for start in range(0, len(self.means), self._tile):
            yield slice(start, min(start + self._tile, len(self.means)))

    @torch.no_grad()
    def _decode(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Decode some candidates for every class: features (K, T, N) and offset + beta * prior (K, T)."""
        draws = self.means[rows, None].expand(-1, self.objective.num_classes, -1)
        posterior = self.objective.posterior(draws)
        z = posterior.mean
        if posterior.log_variance is not None:
            z = z + (0.5 * posterior.log_variance).exp() * self.noise[rows, None]
        features = self.objective.observation.features
        decoded = [features(self.objective.decoders(chunk)) for chunk in z.split(self._chunk)]
        images, offset = (torch.cat(parts) for parts in zip(*decoded, strict=True))
        images, offset = images.transpose(0, 1).contiguous(), offset.mT
        return images, offset + self.objective.beta * self.objective.prior(posterior, z).mT

    def state(self) -> dict[str, Tensor]:
        """Give the tensors that `from_state` restores; none where candidates are decoded at every search."""
        if self.codes is None:
            return {}
        state = {name: getattr(self, name) for name in TENSORS}
        return state if self.decoded is None else {**state, "decoded": self.decoded}

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        objective: LatentObjective,
        budget: InferenceBudget,
        *,
        like: Tensor,
    ) -> Self:
        """Restore a codebook of the same weights and budget."""
        codebook = object.__new__(cls)
        codebook._prepare(objective, budget, like=like)
        codebook.decoded = None
        for name, values in state.items():
            dtype = codebook._codes_dtype if name == "codes" else like.dtype
            setattr(codebook, name, values.to(device=like.device, dtype=dtype))
        return codebook


def _draw_candidates(objective: LatentObjective, budget: InferenceBudget) -> Tensor:
    generator = torch.Generator().manual_seed(budget.seed)
    means = torch.randn(budget.candidates, objective.latent_dim, generator=generator)
    kept = max(1, round(budget.candidates * (1 - budget.drop_least_likely)))
    if kept < budget.candidates:
        means = means[means.norm(dim=1).argsort()[:kept]]
    if budget.radius is not None:
        means = within_radius(means, budget.radius)
    return means


def _principal_components(
    images: Float[Tensor, "images pixels"],
) -> Float[Tensor, "pixels components"]:
    """Give the leading right singular vectors by subspace iteration (Halko et al. 2011, algorithm 4.4)."""
    pixels = images.shape[1]
    if pixels <= COMPONENTS:
        return torch.eye(pixels, dtype=images.dtype, device=images.device)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(pixels, COMPONENTS + 16, generator=generator).to(images)
    for _ in range(4):
        basis = torch.linalg.qr(images.mT @ (images @ torch.linalg.qr(basis).Q)).Q
    rotation = torch.linalg.svd(images @ basis, full_matrices=False).Vh[:COMPONENTS]
    components: Tensor = basis @ rotation.mT
    return components
