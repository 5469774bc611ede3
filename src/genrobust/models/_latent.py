"""Classifiers that search, for every class, the latent that explains the image best."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .._budgeted import Budgeted
from .._precision import without_autocast
from ..capabilities import Encodes, Randomized, Reconstructs, Samples, Searches, Tempered, Tightens, Trainable
from ..contract import GenerativeClassifier
from ..gradients import STRATEGIES, Envelope, SurrogateGradient, surrogate_gradient
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
)
from ..inference.cache import Derived, codebook_key
from ..inference.search.files import fingerprint, read_codebook, write_codebook
from ..inference.search.starts import best_starts
from ..inference.warm_start import LastCall, Memory, one_inference
from ..nets.absent import Absent
from ..nets.banks import DecoderBank, EncoderBank
from ..randomness import FixedNoise, NoiseSource, standard_normal

__all__ = ["LatentClassifier"]

SEARCH_ROWS = 512
TIGHT: Mapping[str, Any] = MappingProxyType(
    {
        "search": "points",
        "starts": 4,
        "method": "bfgs",
        "steps": 200,
        "tolerance": 1e-4,
        "trailing_tolerance": 0.0,
        "expectation_draws": 16,
        "refined_classes": None,
        "warm_start": False,
    }
)
TIGHT_CANDIDATES = 2000  # at least, also of a model that starts at its encoder alone
GENERATED = 320  # images that the encoder's typical variance is measured on, at most 32 of a class


class LatentClassifier(
    Randomized,
    Encodes,
    Reconstructs,
    Samples,
    Searches,
    Tempered,
    Tightens,
    Trainable,
    Budgeted,
    GenerativeClassifier,
):
    """Abstract: encoders, decoders, a likelihood and a prior term, which a subclass chooses and trains.

    A model that optimises a variance (`variational`) starts refinement from what the search scored. A
    candidate is a point of the prior with the encoder's typical variance, and it competes with the encoder's
    proposal by the mean over common draws. E-ABS section 3.3 to the letter takes unit variances, scores each
    candidate at a draw of its own and starts from its mean (`with_inference(search="distributions")`). The
    best of 8,000 is then the luckiest draw, which displaces better proposals: more search makes the model
    worse.

    Shapes: x (B, C, H, W), latents (B, K, D), scores (B, K).

    Attributes:
        observation: The likelihood of an image, given a decoder's output.
        budget: Settings that say how hard inference looks for latents.
        gradient: The surrogate gradient that attackers get.
        noise: The source of every random draw at inference.
        temperature: Divisor that turns class scores into logits.
        calibrates_temperature: Whether training sets the temperature on validation data; otherwise it is the
            paper's.
        validation_budget: The inference budget with which the training loop compares epochs.
    """

    caches: ClassVar[frozenset[str]] = frozenset({"_derived", "_last"})
    validation_budget: ClassVar[Mapping[str, Any]] = {
        "candidates": 500,
        "encoder_proposal": True,
        "steps": 0,
    }
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
        self.num_encoders = encoders.encoders
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
        self._last = LastCall()
        self.set_parts_training(False)

    @without_autocast
    def class_scores(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Estimates the bound on log p(x, y = k) in nats, with the surrogate gradient in `x`.

        Shape: (B, C, H, W) -> (B, K). Classes are equally likely a priori.
        """
        x = self.check(x)
        if not len(x):
            return x.flatten(1).sum(1, keepdim=True).expand(-1, self.num_classes)
        gradients = torch.is_grad_enabled()
        # Leaving inference mode would switch gradients on.
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            images = x.clone() if x.is_inference() else x
            return self.gradient.scores(self, images) + self._log_constant

    def scores_to_logits(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch columns"]:
        """Returns -l_k(x) / temperature."""
        return (scores - self._log_constant) / self.temperature

    def probabilities(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns p(y | x), proportional to exp(-l_k(x) / temperature) + floor; only ABS has a floor."""
        logits = self.scores_to_logits(scores)
        if self.probability_floor:
            logits = torch.logaddexp(logits, logits.new_tensor(self.probability_floor).log())
        return logits.softmax(1)

    @without_autocast
    def reconstruct(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns E[x | z_y] at the mean latent that inference finds for every class.

        Its gradient in `x` follows the model's strategy, as that of the scores does: a rejection by the
        distance to it hides nothing of the encoder.
        """
        x = self.check(x)
        if not len(x):
            return x[:, None].expand(-1, self.num_classes, -1, -1, -1)
        gradients = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            images = x.clone() if x.is_inference() else x
            return self.gradient.reconstructions(self, images)

    @torch.no_grad()
    @without_autocast
    def sample(
        self, per_class: int, *, generator: torch.Generator
    ) -> Float[Tensor, "classes samples channels height width"]:
        """Draws images of every class: E[x | z] for z from the prior."""
        shape = (per_class, self.num_classes, self.latent_dim)
        draws = standard_normal(shape, generator).to(next(self.parameters()))
        latents = self.objective.posterior(draws).mean
        return self.observation.mean(self.objective.decoders(latents)).transpose(0, 1)

    @without_autocast
    def encode(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch latent"]:
        """Returns the encoder's mean, differentiable in x; each class uses its own encoder if it has one."""
        return self.propose(self.check(x)).mean[torch.arange(len(x), device=x.device), y]

    @torch.no_grad()
    def search(self, x: Float[Tensor, "batch channels height width"]) -> list[Posterior]:
        """Finds the starting points of every class, `InferenceBudget.starts` of them, the best ones first.

        They are chosen among random candidates, the encoder's proposal and, if the budget asks for a warm
        start, the latents of the last call.
        """
        memory = self._memory_of(x)
        firsts = range(0, len(x), SEARCH_ROWS)
        parts = [
            self._search_rows(x[rows], None if memory is None else memory.rows(rows))
            for rows in (slice(first, first + SEARCH_ROWS) for first in firsts)
        ]
        starts = [Posterior.concatenate(list(part)) for part in zip(*parts, strict=True)]
        every = starts[0].leading is None or bool(starts[0].leading.all())
        return [replace(start, leading=None) for start in starts] if every else starts

    def remember(
        self,
        x: Float[Tensor, "batch channels height width"],
        posterior: Posterior,
        losses: Float[Tensor, "batch classes"],
    ) -> None:
        """Stores which classes were refined and, if the budget asks for a warm start, the final latents."""
        memory = Memory.after(self._memory_of(x), x, posterior, losses) if self.budget.warm_start else None
        self._last.see(x, posterior, memory, self.objective)

    def recall(self, x: Float[Tensor, "batch channels height width"]) -> Posterior | None:
        """Returns the latents of the last call in `one_inference`, if inference would end there again.

        So the draws of a verdict or of an expectation cost one inference, where only the score draws noise.
        """
        asked = self._last.answers and self._repeats_itself
        return self._last.latents_of(x, self.objective) if asked else None

    @property
    def _repeats_itself(self) -> bool:
        """Whether another call about the same images would end at the same latents.

        It would if inference draws no noise and begins anew. A change of weights shows in the objective, but
        one of the encoder only where candidates have its variance.
        """
        told = self.variational or not self.budget.encoder_proposal
        return self._means_decide and told and not self.budget.warm_start

    def scores_of_draws(
        self, x: Float[Tensor, "draws batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns the class scores that the draws give together.

        Draws for the same images run one by one where they share one inference, else as one batch.
        """
        if x.stride(0) or not self._repeats_itself:
            return super().scores_of_draws(x)
        with one_inference():
            scores = self.combine(torch.stack([self.class_scores(draw) for draw in x]))
        if self._last.refined is not None:
            self._last.refined = self._last.refined.repeat(len(x), 1)  # as of one batch
        return scores

    def _memory_of(self, x: Float[Tensor, "batch channels height width"]) -> Memory | None:
        return self._last.memory_of(x, self.objective)

    def _search_rows(
        self, x: Float[Tensor, "batch channels height width"], memory: Memory | None
    ) -> list[Posterior]:
        budget = self.budget
        pool = [memory.posterior] if memory is not None else []
        if budget.encoder_proposal:
            pool.append(self.propose(x))
        found = self._codebook(x).search(x, count=budget.starts) if budget.candidates else []
        if len(pool) + len(found) == 1 and budget.refined_classes is None:
            return pool + [candidate for candidate, _ in found]
        candidates, scored = [candidate for candidate, _ in found], [loss[None] for _, loss in found]
        if budget.search == "points" and not self._means_decide:
            losses = self._losses(x, [*pool, *candidates])
        else:  # the search scored the means already; and to the letter, what it scored decides
            losses = torch.cat([self._losses(x, pool), *scored] if pool else scored)
        pool += candidates
        leading = self._leading(x, losses.amin(0), memory)
        return [replace(start, leading=leading) for start in best_starts(pool, losses, count=budget.starts)]

    @property
    def _means_decide(self) -> bool:
        """Whether starts are compared at their means, and not by draws."""
        return not self.variational or self.trainable_objective.method(self.budget) == "mean"

    def _losses(
        self, x: Float[Tensor, "batch channels height width"], pool: Sequence[Posterior]
    ) -> Float[Tensor, "pool batch classes"]:
        """Computes the objective of starting points by the mean over common draws, or at their means."""
        objective = self.objective
        size = objective.rows_per_chunk(self.budget.max_bytes, like=x)
        chunks = [slice(first, first + size) for first in range(0, len(x), size)]
        losses = []
        for rows in chunks:
            starts = [start.rows(rows) for start in pool]
            noise = self.noise.stream(part=0)  # started again, so that fixed noise is the same for every row
            draws = objective.common_draws(self.budget, noise, like=starts[0])
            losses.append(torch.stack([objective.expected(x[rows], start, draws) for start in starts]))
        return torch.cat(losses, 1)

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
        if memory is not None and isinstance(self.observation, SquaredError) and self._means_decide:
            leading &= memory.contenders(x, loss)
        return leading

    @property
    def refined_at_last_call(self) -> Bool[Tensor, "batch classes"] | None:
        """False for classes that this thread's last call did not refine; None if it refined all of them."""
        return self._last.refined

    def propose(self, x: Float[Tensor, "batch channels height width"]) -> Posterior:
        """Returns the encoder's output for every class, differentiable in `x`."""
        images = x[:, None].expand(-1, self.num_encoders, -1, -1, -1)
        mean, log_variance = (part.expand(-1, self.num_classes, -1) for part in self.encoders(images))
        return Posterior(mean, log_variance if self.variational else None)

    @property
    def objective(self) -> LatentObjective:
        """The objective of the current weights, with decoders in their fastest form."""
        return self._derived.objective(self._weights(), self._make_objective)

    @torch.no_grad()
    def _make_objective(self) -> LatentObjective:
        objective = self.trainable_objective.for_inference()
        return (
            replace(objective, spread=self._typical_log_variance(objective))
            if self.variational
            else objective
        )

    def _typical_log_variance(self, objective: LatentObjective) -> Float[Tensor, "#classes latent"]:
        """Returns the encoder's mean log-variance on images that the model itself generates."""
        generator = torch.Generator().manual_seed(0)
        per_class = max(1, min(32, GENERATED // self.num_classes))
        draws = standard_normal((per_class, self.num_classes, self.latent_dim), generator)
        latents = objective.posterior(draws.to(next(self.parameters()))).mean
        rows = objective.rows_per_chunk(self.budget.max_bytes, like=latents)
        images = torch.cat([self.observation.mean(objective.decoders(part)) for part in latents.split(rows)])
        if self.num_encoders == 1:
            images = images.flatten(0, 1)[:, None]
        log_variance: Tensor = self.encoders(images)[1].mean(0)
        return log_variance

    @property
    def trainable_objective(self) -> LatentObjective:
        """The same objective with decoders in their training form, differentiable in the weights."""
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
        """Returns the codebook of this budget and of the current weights."""
        return self._derived.codebook(self.objective, self.budget, like=x)

    @without_autocast
    def save_codebook(self, path: str | os.PathLike[str]) -> None:
        """Writes the codebook of this budget and these weights to a file for `load_codebook`."""
        codebook = self._codebook(next(self.parameters()))
        write_codebook(codebook, path, fingerprint=self._fingerprint())

    def load_codebook(self, path: str | os.PathLike[str]) -> None:
        """Reads a codebook that `save_codebook` wrote, for this model and its variants.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file was made with other weights or another budget.
        """
        like = next(self.parameters())
        codebook = read_codebook(
            path, self.objective, self.budget, fingerprint=self._fingerprint(), like=like
        )
        self._derived.keep(codebook, self.budget)

    def _fingerprint(self) -> str:
        return fingerprint(self._weights(), (*codebook_key(self.budget), self.beta, self.variational))

    def _weights(self) -> list[Tensor]:
        """Returns the weights that codebooks and fused decoders depend on."""
        parts = [*self.decoders.parameters(), *self.decoders.buffers()]
        if self.variational:  # the encoder gives candidates their variance
            parts += [*self.encoders.parameters(), *self.encoders.buffers()]
        if isinstance(self.prior, nn.Module):
            parts += [*self.prior.parameters(), *self.prior.buffers()]
        return parts

    def with_noise(self, noise: NoiseSource) -> Self:
        """Returns a variant with another source of noise, and without a warm start."""
        return self._variant(noise=noise, budget=replace(self.budget, warm_start=False))

    def with_inference(self, **budget: Any) -> Self:
        """Returns a variant with another budget; `warm_start` is off unless it is one of the fields given."""
        return super().with_inference(**{"warm_start": False, **budget})

    def tightened(self) -> Self:
        """Returns the variant whose inference ends nearest to the minima, for certificates and transfer.

        BFGS refines every class from several starts until next to nothing is left to gain. If the prior term
        does not reward a wide posterior, as -log D(z) of E-ABS, the infimum over posteriors is at a point:
        inference then optimises the mean alone.
        """
        variational = self.variational and self.prior.rewards_variance
        budget = replace(self.budget, **TIGHT, candidates=max(self.budget.candidates, TIGHT_CANDIDATES))
        variant = self._variant(variational=variational, randomized=variational, budget=budget)
        variant._derived = Derived()  # the objective of points is another one
        return variant

    @property
    def gradients(self) -> tuple[str, ...]:
        """The names of all strategies, but for the encoder's alone where a file left the encoder out."""
        return tuple(
            name for name in STRATEGIES if name != "proposal" or not isinstance(self.encoders, Absent)
        )

    def _with_gradient(self, gradient: str | SurrogateGradient) -> Self:
        return self._variant(gradient=surrogate_gradient(gradient))

    def _variant(self, **attributes: object) -> Self:
        return super()._variant(_derived=self._derived, **attributes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": Derived(), "_last": LastCall()}
