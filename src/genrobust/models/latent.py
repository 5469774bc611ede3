"""Classifiers that search, for every class, the latent that explains the image best."""

import os
from abc import abstractmethod
from dataclasses import replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..classifier import GenerativeClassifier, changed_budget
from ..gradients import Envelope, SurrogateGradient, surrogate_gradient
from ..inference import (
    ClassPrior,
    Codebook,
    DiscriminatorPrior,
    InferenceBudget,
    KLPrior,
    LatentObjective,
    Observation,
    Posterior,
    SquaredError,
    refine,
)
from ..inference.codebook_files import fingerprint, read_codebook, write_codebook
from ..inference.derived import Derived, codebook_key
from ..inference.memory import Memory
from ..nets import DecoderBank, EncoderBank
from ..randomness import FixedNoise, Mode, NoiseSource, noise_source

__all__ = ["LatentClassifier"]

SEARCH_ROWS = 512


class LatentClassifier(GenerativeClassifier):
    """Abstract: encoders, decoders, a likelihood and a prior term; a subclass says which, and trains them.

    Shapes: x (B, C, H, W), latents (B, K, D), scores (B, K).

    Attributes:
        observation: The likelihood of an image, given what a decoder puts out.
        budget: How hard inference looks.
        gradient: The surrogate gradient that attackers are given.
        noise: The source of every random draw at inference.
        temperature: Divides class scores into logits.
        calibrates_temperature: Whether training sets it, on validation data; otherwise it is the paper's.
    """

    temperature: Tensor

    def __init__(
        self,
        *,
        encoders: EncoderBank,
        decoders: DecoderBank,
        prior: KLPrior | DiscriminatorPrior | ClassPrior,
        observation: Observation,
        input_shape: tuple[int, int, int],
        num_classes: int,
        latent_dim: int,
        variational: bool,
        beta: float,
        log_constant: float,
        temperature: float | None,
        probability_floor: float,
        budget: InferenceBudget,
    ) -> None:
        super().__init__(input_shape=input_shape, num_classes=num_classes)
        self.encoders, self.decoders, self.prior = encoders, decoders, prior
        self.observation = observation
        self.register_buffer("temperature", torch.tensor(1.0 if temperature is None else temperature))
        self.calibrates_temperature = temperature is None
        self.randomized = variational
        self.beta = beta
        self.probability_floor = probability_floor
        self.variational = variational
        self.latent_dim = latent_dim
        self.budget = budget
        self.gradient: SurrogateGradient = Envelope()
        self.noise: NoiseSource = FixedNoise(0)
        self._log_constant = log_constant
        self._derived = Derived()
        self._remembered: Memory | None = None
        self._refined: Tensor | None = None
        self.set_parts_training(False)

    @property
    @abstractmethod
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates."""

    def class_scores(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Estimate the bound on log p(x, y = k) in nats, with the surrogate gradient in `x`.

        Shape: (B, C, H, W) -> (B, K). Classes are equally likely a priori.
        """
        x = self.check(x)
        if not len(x):
            return x.flatten(1).sum(1, keepdim=True).expand(-1, self.num_classes)
        gradients = torch.is_grad_enabled()
        # Leaving inference mode would turn gradients on.
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            images = x.clone() if x.is_inference() else x
            return self.gradient.scores(self, images) + self._log_constant

    def scores_to_logits(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch columns"]:
        """Give -l_k(x) / temperature."""
        return (scores - self._log_constant) / self.temperature

    def probabilities(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Give p(y | x), proportional to exp(-l_k(x) / temperature) + floor (the floor is 0 but for ABS)."""
        logits = self.scores_to_logits(scores)
        if self.probability_floor:
            logits = torch.logaddexp(logits, logits.new_tensor(self.probability_floor).log())
        return logits.softmax(1)

    def reconstruct(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Give E[x | z_y] with the latent that inference finds for every class; constant in `x`."""
        x = self.check(x)
        if not len(x):
            return x[:, None].expand(-1, self.num_classes, -1, -1, -1)
        with torch.inference_mode(False), torch.no_grad():
            rows = self.objective.rows_per_chunk(self.budget.max_bytes, like=x)
            return torch.cat([self._reconstruct_rows(part.clone()) for part in x.split(rows)])

    def _reconstruct_rows(self, x: Float[Tensor, "batch channels height width"]) -> Tensor:
        noise = self.noise.stream(part=1)
        found = refine(self.objective, x, self.search(x), noise, budget=self.budget)
        return self.observation.mean(self.objective.decoders(found.sample(noise)))

    @torch.no_grad()
    def sample(
        self, per_class: int, *, generator: torch.Generator
    ) -> Float[Tensor, "classes samples channels height width"]:
        """Draw images of every class: E[x | z] for z from the prior."""
        shape = (per_class, self.num_classes, self.latent_dim)
        draws = torch.randn(shape, generator=generator).to(next(self.parameters()))
        latents = self.objective.posterior(draws).mean
        return self.observation.mean(self.objective.decoders(latents)).transpose(0, 1)

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch latent"]:
        """Give the encoder's mean; of the class's own encoder, where each has one."""
        return self.propose(self.check(x)).mean[torch.arange(len(x), device=x.device), y]

    @torch.no_grad()
    def search(self, x: Float[Tensor, "batch channels height width"]) -> Posterior:
        """Find the best starting point of every class.

        Random candidates, the encoder's proposal and, if the budget asks for a warm start, the latents of the
        last call.
        """
        memory = self._memory_of(x)
        firsts = range(0, len(x), SEARCH_ROWS)
        parts = [
            self._search_rows(x[rows], None if memory is None else memory.rows(rows))
            for rows in (slice(first, first + SEARCH_ROWS) for first in firsts)
        ]
        start = Posterior.concatenate(parts)
        every = start.leading is None or bool(start.leading.all())
        return replace(start, leading=None) if every else start

    def remember(
        self,
        x: Float[Tensor, "batch channels height width"],
        posterior: Posterior,
        losses: Float[Tensor, "batch classes"],
    ) -> None:
        """Keep which classes were refined and, if the budget asks for a warm start, where that ended."""
        self._refined = posterior.leading
        if self.budget.warm_start:
            self._remembered = Memory.after(self._memory_of(x), x, posterior, losses)

    def _memory_of(self, x: Float[Tensor, "batch channels height width"]) -> Memory | None:
        memory = self._remembered
        return memory if memory is not None and memory.images.shape == x.shape else None

    def _search_rows(
        self, x: Float[Tensor, "batch channels height width"], memory: Memory | None
    ) -> Posterior:
        proposals = [memory.posterior] if memory is not None else []
        if self.budget.encoder_proposal:
            proposals.append(self.propose(x))
        if self.budget.candidates:
            start, loss = self._codebook(x).search(x)
        else:
            start = proposals.pop()
            if not proposals and self.budget.refined_classes is None:
                return start
            loss = self._losses(x, start)
        for proposal in proposals:
            proposed = self._losses(x, proposal)
            start = proposal.where(proposed < loss, start)
            loss = torch.minimum(proposed, loss)
        return replace(start, leading=self._leading(x, loss, memory))

    def _losses(
        self, x: Float[Tensor, "batch channels height width"], posterior: Posterior
    ) -> Float[Tensor, "batch classes"]:
        objective = self.objective
        size = objective.rows_per_chunk(self.budget.max_bytes, like=x)
        chunks = [slice(first, first + size) for first in range(0, len(x), size)]
        losses = [objective.at(x[c], posterior.rows(c), self.noise.stream(part=0)) for c in chunks]
        return torch.cat(losses)

    def _leading(
        self,
        x: Float[Tensor, "batch channels height width"],
        loss: Float[Tensor, "batch classes"],
        memory: Memory | None,
    ) -> Bool[Tensor, "batch classes"]:
        leading = torch.ones_like(loss, dtype=torch.bool)
        if self.budget.refined_classes is not None:
            count = min(self.budget.refined_classes, self.num_classes)
            leaders = loss.topk(count, dim=1, largest=False).indices
            leading = torch.zeros_like(leading).scatter(1, leaders, True)
        if memory is not None and isinstance(self.observation, SquaredError) and not self.variational:
            leading &= memory.contenders(x, loss)
        return leading

    @property
    def refined_at_last_call(self) -> Bool[Tensor, "batch classes"] | None:
        """False where the last call left a class as the search found it; None where it refined all."""
        return self._refined

    def propose(self, x: Float[Tensor, "batch channels height width"]) -> Posterior:
        """Give the encoder's output for every class, differentiable in `x`."""
        images = x[:, None].expand(-1, self.encoders.encoders, -1, -1, -1)
        mean, log_variance = (part.expand(-1, self.num_classes, -1) for part in self.encoders(images))
        return Posterior(mean, log_variance if self.variational else None)

    @property
    def objective(self) -> LatentObjective:
        """The objective of the weights as they are now, with decoders in the form that runs fastest."""
        return self._derived.objective(self._weights(), lambda: self.trainable_objective.for_inference())

    @property
    def trainable_objective(self) -> LatentObjective:
        """The same objective with decoders in the form that is trained: differentiable in the weights."""
        return LatentObjective(
            decoders=self.decoders,
            prior=self.prior,
            beta=self.beta,
            num_classes=self.num_classes,
            latent_dim=self.latent_dim,
            variational=self.variational,
            observation=self.observation,
        )

    def _codebook(self, x: Tensor) -> Codebook:
        """Give the codebook of this budget and of the weights as they are now."""
        return self._derived.codebook(self.objective, self.budget, like=x)

    def save_codebook(self, path: str | os.PathLike[str]) -> None:
        """Write the codebook of this budget and these weights, so that `load_codebook` need not decode it."""
        codebook = self._codebook(next(self.parameters()))
        write_codebook(codebook, path, fingerprint=self._fingerprint())

    def load_codebook(self, path: str | os.PathLike[str]) -> None:
        """Read what `save_codebook` wrote; this model and its variants use it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is of other weights or another budget.
        """
        like = next(self.parameters())
        codebook = read_codebook(
            path, self.objective, self.budget, fingerprint=self._fingerprint(), like=like
        )
        self._derived.keep(codebook, self.budget)

    def _fingerprint(self) -> str:
        return fingerprint(self._weights(), (*codebook_key(self.budget), self.beta, self.variational))

    def _weights(self) -> list[Tensor]:
        """Give what codebooks and fused decoders are computed from."""
        parts = [*self.decoders.parameters(), *self.decoders.buffers()]
        if isinstance(self.prior, nn.Module):
            parts += [*self.prior.parameters(), *self.prior.buffers()]
        return parts

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Give a variant that shares the weights and draws its noise in another mode; see the contract."""
        budget = replace(self.budget, warm_start=False)
        return self._variant(noise=noise_source(mode, seed=seed, generator=generator), budget=budget)

    def with_inference(self, **budget: Any) -> Self:
        """Give a variant that shares the weights and searches with another budget.

        Args:
            **budget: Fields of `InferenceBudget`; `warm_start` is off unless it is among them.

        Raises:
            ValueError: If a field is unknown or its value makes no sense.
        """
        changed = changed_budget(self.budget, {"warm_start": False, **budget})
        return self._variant(budget=changed)

    def with_gradient(self, gradient: str | SurrogateGradient) -> Self:
        """Give a variant that shares the weights and hands attackers another surrogate gradient.

        Args:
            gradient: `"envelope"`, `"proposal"`, `"joint"`, `"auto"`, `"unrolled"`, `"estimated"`, or a
                strategy with its own settings.
        """
        return self._variant(gradient=surrogate_gradient(gradient))

    def _variant(self, **attributes: object) -> Self:
        return super()._variant(_derived=self._derived, **attributes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": Derived(), "_remembered": None, "_refined": None}
