"""Random candidates and their decoded images."""

import math
from collections.abc import Mapping
from random import SystemRandom
from typing import Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...randomness import standard_normal
from ..budget import RESCORED, InferenceBudget
from ..objective import LatentObjective, Posterior
from ..refinement.radius import within_radius

__all__ = ["Codebook"]

COMPONENTS = 64
GROUP = 32  # only the best candidate of each group can be scored again
SCORES = 1 << 21  # scores per matrix product: 8 MiB stay in the cache
CHECKED = 16  # entries of a file that are computed again
SAMPLE = 2048  # number of decoded images that the components are fitted to
TENSORS = ("means", "centre", "basis", "codes", "offsets")


@final
class Codebook:
    """Random candidates and their decoded images, which turn the search into a matrix product.

    With c the mean decoded image, ||x - g||^2 = ||x - c||^2 - 2 (x - c).(g - c) + ||g - c||^2. The product is
    computed in the 64 principal components of the decoded images. The best candidates are then scored again
    exactly: with the decoded images, if these fit half of `max_bytes`, otherwise with the candidates decoded
    anew. If even the components do not fit, every search decodes all candidates again. For other likelihoods
    than the squared error, read x as the sufficient statistics of the image and g as the features (half of
    the natural parameters) of the decoder's output.

    A candidate is scored at its mean, except in the search `"distributions"`, which scores a draw.

    Attributes:
        means: Standard normal draws, which the objective moves to the prior of each class.
    """

    def __init__(self, objective: LatentObjective, budget: InferenceBudget, *, like: Tensor) -> None:
        self._prepare(objective, budget, like=like)
        self.means = _draw_candidates(objective, budget).to(device=like.device, dtype=like.dtype)
        self._noise = _draws_of(self.means, budget)
        self.decoded: Tensor | None = None
        if self._fits():
            self._build()

    def _prepare(self, objective: LatentObjective, budget: InferenceBudget, *, like: Tensor) -> None:
        self.objective = objective
        self._search = budget.search
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
        self, x: Float[Tensor, "batch channels height width"], *, count: int = 1
    ) -> list[tuple[Posterior, Tensor]]:
        """Finds the best candidates of every class.

        Args:
            x: Images.
            count: How many candidates, at most 8.

        Returns:
            The candidates and their objective where they were scored, shape (B, K), the best ones first.
        """
        observation = self.objective.observation
        constant = observation.constant(x.flatten(1))[:, None]
        pixels = observation.statistics(x.flatten(1))
        if self.codes is None:
            index, loss = self._search_anew(pixels, count)
        else:
            rows = max(1, SCORES // self.codes[..., 0].numel())
            found = [self._search_codes(part, self.codes, count) for part in pixels.split(rows)]
            index, loss = (torch.cat(parts) for parts in zip(*found, strict=True))
        return [
            (self.objective.posterior(self.means[at], search=self._search), value + constant)
            for at, value in zip(index.unbind(2), loss.unbind(2), strict=True)
        ]

    def _search_codes(
        self,
        pixels: Float[Tensor, "batch pixels"],
        codes: Float[Tensor, "classes candidates components"],
        count: int,
    ) -> tuple[Int[Tensor, "batch classes found"], Float[Tensor, "batch classes found"]]:
        centred = pixels - self.centre
        groups = self._scores(centred @ self.basis, codes).unflatten(2, (-1, GROUP))
        chosen = groups.amin(3).topk(min(RESCORED, groups.shape[2]), dim=2, largest=False).indices
        members = groups.gather(2, chosen[..., None].expand(-1, -1, -1, GROUP))
        index = (GROUP * chosen + members.argmin(3)).transpose(0, 1)  # (B, K, 8)
        loss = self._rescored(pixels, centred, index)
        best, position = loss.topk(min(count, loss.shape[2]), dim=2, largest=False)
        return index.gather(2, position), best

    def _scores(
        self,
        projected: Float[Tensor, "batch components"],
        codes: Float[Tensor, "classes candidates components"],
    ) -> Float[Tensor, "classes batch candidates"]:
        queries, offsets = projected.to(codes.dtype).expand(len(codes), -1, -1), self.offsets[:, None]
        if codes.dtype == offsets.dtype:
            return torch.baddbmm(offsets, queries, codes.mT, alpha=-2)
        return torch.add(offsets, queries @ codes.mT, alpha=-2)

    def _rescored(
        self,
        pixels: Float[Tensor, "batch pixels"],
        centred: Float[Tensor, "batch pixels"],
        index: Int[Tensor, "batch classes rescored"],
    ) -> Float[Tensor, "batch classes rescored"]:
        """Returns the exact objective of some candidates, without the observation's constant."""
        # A class of fewer candidates than groups has padding among its best.
        padding, index = index >= len(self.means), index.clamp_max(len(self.means) - 1)
        if self.decoded is None:
            exact = self._rescored_anew(pixels, index)
        else:
            classes = torch.arange(len(self.decoded), device=index.device)[:, None]
            flat = (classes * self.decoded.shape[1] + index).flatten()
            images = self.decoded.flatten(0, 1)[flat].unflatten(0, (len(centred), -1))
            offsets = self.offsets.flatten()[(classes * self.offsets.shape[1] + index).flatten()]
            products = (images @ centred[:, :, None]).reshape(index.shape)
            shift = ((self.centre - 2 * pixels) @ self.centre)[:, None, None]
            exact = offsets.reshape(index.shape) - 2 * products + shift
        return exact.masked_fill(padding, torch.inf)

    def _rescored_anew(
        self, pixels: Float[Tensor, "batch pixels"], index: Int[Tensor, "batch classes rescored"]
    ) -> Float[Tensor, "batch classes rescored"]:
        per_class = index.transpose(1, 2).flatten(0, 1)  # (B x 8, K): a candidate of every class
        repeated = pixels.repeat_interleave(index.shape[2], 0)
        losses = []
        for chosen, rows in zip(per_class.split(self._tile), repeated.split(self._tile), strict=True):
            images, offset = self._decode(chosen)
            losses.append(offset.mT - 2 * torch.einsum("ktn,tn->tk", images, rows))
        exact: Tensor = torch.cat(losses).unflatten(0, (len(pixels), -1)).transpose(1, 2)
        return exact

    def _search_anew(
        self, pixels: Float[Tensor, "batch pixels"], count: int
    ) -> tuple[Int[Tensor, "batch classes found"], Float[Tensor, "batch classes found"]]:
        best = pixels.new_empty(len(pixels), self.objective.num_classes, 0)
        index = torch.empty_like(best, dtype=torch.long)
        numbers = torch.arange(len(self.means), device=pixels.device)
        for part in numbers.split(self._tile):
            decoded, offset = self._decode(part[:, None].expand(-1, self.objective.num_classes))
            # (B, N) @ (K, N, T) -> (K, B, T)
            loss = torch.baddbmm(offset[:, None], pixels.expand(len(decoded), -1, -1), decoded.mT, alpha=-2)
            pool = torch.cat([best, loss.transpose(0, 1)], 2)
            best, position = pool.topk(min(count, pool.shape[2]), dim=2, largest=False)
            index = torch.cat([index, part.expand(*loss.transpose(0, 1).shape)], 2).gather(2, position)
        return index, best

    @torch.no_grad()
    def _build(self) -> None:
        numbers = torch.arange(len(self.means), device=self.means.device)[:, None]
        numbers = numbers.expand(-1, self.objective.num_classes)
        sample = self._decode(numbers[: max(1, SAMPLE // self.objective.num_classes)])[0].flatten(0, 1)
        self.centre = sample.mean(0)
        self.basis = _principal_components(sample - self.centre)
        classes, count = self.objective.num_classes, len(self.means)
        padded = GROUP * math.ceil(count / GROUP)
        codes = self.means.new_zeros(classes, padded, self.basis.shape[1], dtype=self._codes_dtype)
        self.offsets = self.means.new_full((classes, padded), torch.inf)
        decoded = self.means.new_empty(classes, count, self._pixels) if self._fits(decoded=True) else None
        for first in range(0, count, self._tile):
            rows = slice(first, min(first + self._tile, count))
            images, codes[:, rows], self.offsets[:, rows] = self._entries(numbers[rows])
            if decoded is not None:
                decoded[:, rows] = images
        self.codes, self.decoded = codes, decoded

    @torch.no_grad()
    def _decode(self, index: Int[Tensor, "tile classes"]) -> tuple[Tensor, Tensor]:
        """Decodes candidates of every class to features (K, T, N) and offset + beta * prior (K, T)."""
        posterior = self.objective.posterior(self.means[index], search=self._search)
        z = posterior.mean if self._noise is None else posterior.at(self._noise[index])
        features = self.objective.observation.features
        decoded = [features(self.objective.decoders(chunk)) for chunk in z.split(self._chunk)]
        images, offset = (torch.cat(parts) for parts in zip(*decoded, strict=True))
        images, offset = images.transpose(0, 1).contiguous(), offset.mT
        return images, offset + self.objective.beta * self.objective.prior(posterior, z).mT

    def _entries(self, index: Int[Tensor, "tile classes"]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the centred decoded images of candidates, their codes and their offsets."""
        images, offset = self._decode(index)
        shift = self.centre.square().sum() - 2 * images @ self.centre
        images -= self.centre
        return images, images @ self.basis, offset + shift

    @torch.no_grad()
    def _check_some(self, source: str) -> None:
        """Checks entries that nobody can foresee against the decoders."""
        rows = torch.tensor(SystemRandom().sample(range(len(self.means)), min(CHECKED, len(self.means))))
        index = rows.to(self.means.device)[:, None].expand(-1, self.objective.num_classes)
        images, codes, offsets = self._entries(index)
        unit = torch.eye(self.basis.shape[1]).to(self.basis)
        pairs = [(self.basis.mT @ self.basis, unit), (self.offsets[:, rows], offsets)]
        pairs += [] if self.codes is None else [(self.codes[:, rows].to(codes), codes)]
        pairs += [] if self.decoded is None else [(self.decoded[:, rows], images)]
        if not all(torch.allclose(stored, made, rtol=2e-2, atol=1e-2) for stored, made in pairs):
            raise ValueError(f"Expected {source} to hold what the decoders make, but some entries are others")

    def state(self) -> dict[str, Tensor]:
        """Returns the tensors that `from_state` restores; empty if every search decodes the candidates."""
        if self.codes is None:
            return {}
        state = {name: getattr(self, name) for name in TENSORS}
        return state if self.decoded is None else {**state, "decoded": self.decoded}

    @classmethod
    def blank(cls, objective: LatentObjective, budget: InferenceBudget, *, like: Tensor) -> dict[str, Tensor]:
        """Returns what `state` returns, on the device `meta`: shapes and types without numbers."""
        book = object.__new__(cls)
        book._prepare(objective, budget, like=like)
        book.means = _draw_candidates(objective, budget).to(like.dtype)
        classes, count, pixels = objective.num_classes, len(book.means), book._pixels
        rows = classes * min(count, max(1, SAMPLE // classes))  # which the components are fitted to
        components = pixels if pixels <= COMPONENTS else min(COMPONENTS, rows)
        padded = GROUP * math.ceil(count / GROUP)
        shapes = {
            "means": book.means.shape,
            "centre": (pixels,),
            "basis": (pixels, components),
            "codes": (classes, padded, components),
            "offsets": (classes, padded),
        }
        if book._fits(decoded=True):
            shapes["decoded"] = (classes, count, pixels)
        return {name: torch.empty(shape, dtype=like.dtype, device="meta") for name, shape in shapes.items()}

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        objective: LatentObjective,
        budget: InferenceBudget,
        *,
        like: Tensor,
        source: str = "the state",
    ) -> Self:
        """Restores a codebook that was made with the same weights and budget.

        Raises:
            ValueError: If its candidates are not those of the budget, their offsets are not finite, or one of
                16 random entries is not what the decoders make; the message names the source.
        """
        drawn, offsets = _draw_candidates(objective, budget), state["offsets"]
        if not torch.allclose(state["means"].to(drawn), drawn, rtol=1e-2, atol=1e-4):
            raise ValueError(f"Expected the candidates of this budget in {source}, but it has others")
        if not offsets[:, : len(drawn)].isfinite().all():
            raise ValueError(f"Expected finite `offsets` in {source}, but some are not")
        codebook = object.__new__(cls)
        codebook._prepare(objective, budget, like=like)
        codebook.decoded = None
        for name, values in state.items():
            dtype = codebook._codes_dtype if name == "codes" else like.dtype
            setattr(codebook, name, values.to(device=like.device, dtype=dtype))
        codebook._noise = _draws_of(codebook.means, budget)
        codebook._check_some(source)
        return codebook


def _draw_candidates(objective: LatentObjective, budget: InferenceBudget) -> Tensor:
    generator = torch.Generator().manual_seed(budget.seed)
    means = standard_normal((budget.candidates, objective.latent_dim), generator)
    kept = max(1, round(budget.candidates * (1 - budget.drop_least_likely)))
    if kept < budget.candidates:
        means = means[means.norm(dim=1).argsort()[:kept]]
    if budget.radius is not None:
        means = within_radius(means, budget.radius)
    return means


def _draws_of(means: Tensor, budget: InferenceBudget) -> Tensor | None:
    """Returns the draw at which each candidate is scored; None if it is scored at its mean."""
    if budget.search == "points":
        return None
    generator = torch.Generator().manual_seed(budget.seed + 1)
    return standard_normal(means.shape, generator).to(means)


def _principal_components(
    images: Float[Tensor, "images pixels"],
) -> Float[Tensor, "pixels components"]:
    """Returns the leading right singular vectors by subspace iteration (Halko et al. 2011, algorithm 4.4)."""
    pixels = images.shape[1]
    if pixels <= COMPONENTS:
        return torch.eye(pixels, dtype=images.dtype, device=images.device)
    generator = torch.Generator().manual_seed(0)
    basis = standard_normal((pixels, COMPONENTS + 16), generator).to(images)
    for _ in range(4):
        basis = torch.linalg.qr(images.mT @ (images @ torch.linalg.qr(basis).Q)).Q
    rotation = torch.linalg.svd(images @ basis, full_matrices=False).Vh[:COMPONENTS]
    components: Tensor = basis @ rotation.mT
    return components
