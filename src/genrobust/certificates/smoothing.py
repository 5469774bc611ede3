"""Randomised smoothing: an L2 radius for any classifier, about its vote under Gaussian noise.

The smoothed classifier decides for the class that the base classifier f gives most often to x + sigma * eps,
with eps ~ N(0, I). If class c has at least the probability p > 1/2, it keeps the decision c within

    sigma * Phi^-1(p)

of x in L2 (Cohen et al. 2019, theorem 1 with p_B = 1 - p). The proof needs nothing of f. What f does with a
noisy image is a part of f, and so are these:

- Noisy images leave [0, 1]. They are clipped after the noise, and f is the model behind the clipping.
- A model that rejects has a further class, "reject", which is never right.
- An undefined answer is a vote for no class.
- A model that draws noise itself is a random f. The probability is then over its noise too, and every vote
  needs its own draw.

The probability is estimated by n votes, so that a radius is wrong with a probability of at most alpha.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import betaincinv
from torch import Tensor, nn

from .._brief import one_line
from .._fields import AtLeastOne, Positive, Share, check_fields, check_integer, checked
from .._precision import without_autocast
from ..capabilities import ClassifiesNoised, Randomized
from ..checks import check_labels
from ..contract import NO_PREDICTION, Classifier, GenerativeClassifier, ModelView, Prediction, decision
from ..external import as_classifier, check_classifier
from ..gradients import straight_through
from ..likelihoods import log_mean_exp
from ..randomness import FixedNoise, FreshNoise, NoiseSource, NoiseStream

__all__ = ["Smoothed", "SmoothingBudget", "SmoothingCertificate", "certify_by_smoothing", "clopper_pearson"]

_PART = 999  # a stream of fixed noise that no model draws from
_ROWS = 250  # noisy copies in a call of `Smoothed`


@final
@dataclass(frozen=True, kw_only=True)
class SmoothingBudget:
    """How a smoothed classifier is certified (Cohen et al. 2019, section 3.2.2).

    Attributes:
        sigma: Standard deviation of the noise, for images in [0, 1].
        n0: Noisy copies of an image that guess its class.
        n: Further copies that bound the probability of this class. The paper takes 100,000. No radius is
            above sigma * Phi^-1(alpha^(1/n)): 2.46 sigma for 1,000 copies at alpha 0.001, and 3.81 sigma for
            100,000.
        alpha: Probability with which the certificate of an image may be wrong.
        batch_size: Noisy copies in one call of the model.
    """

    sigma: Positive
    n0: AtLeastOne = 100
    n: AtLeastOne = 1000
    alpha: Share = 0.001
    batch_size: AtLeastOne = 250

    def __post_init__(self) -> None:
        check_fields(self)
        if self.alpha ** (1 / self.n) <= 0.5:
            least = math.floor(-math.log2(self.alpha)) + 1
            raise ValueError(
                f"Expected `n` of at least {least} for `alpha` {self.alpha:g}, but got {self.n}: "
                "fewer copies certify nothing"
            )


@final
@dataclass(frozen=True, kw_only=True)
class SmoothingCertificate:
    """Radii of the *smoothed* classifier. They say nothing about the model without the noise.

    Each image's certificate is wrong with a probability of at most `alpha`.

    Attributes:
        radii: L2 radii within which the smoothed classifier decides for y, in units of pixel values, shape
            (B,); 0 where it abstains or decides otherwise.
        decisions: The class that the smoothed classifier decides for, shape (B,); K if it rejects, and -1 if
            it abstains.
        decision_radii: Radii within which it keeps its decision, right or wrong, shape (B,); 0 where it
            abstains.
        probabilities: Lower bounds on the probability of the guessed class under the noise, shape (B,).
        budget: How they were found.
    """

    radii: Float[Tensor, " batch"]
    decisions: Int[Tensor, " batch"]
    decision_radii: Float[Tensor, " batch"]
    probabilities: Float[Tensor, " batch"]
    budget: SmoothingBudget

    __repr__ = one_line

    @property
    def abstained(self) -> Bool[Tensor, " batch"]:
        """Where no class has more than half of the votes for certain."""
        return self.decisions == NO_PREDICTION

    def __str__(self) -> str:
        """Returns a summary in one line."""
        certified, total = int((self.radii > 0).sum()), len(self.radii)
        return (
            f"the smoothed classifier (sigma {self.budget.sigma:g}, not the model itself) is certified to be "
            f"right about {certified} of {total} images, and abstains on {int(self.abstained.sum())}"
        )


def clopper_pearson(counts: Int[Tensor, " batch"], total: int, *, alpha: float) -> Float[Tensor, " batch"]:
    """Computes a lower bound on a probability, with confidence 1 - alpha (Clopper and Pearson 1934).

    The bound is the p with which that many successes, or more, have the probability alpha.

    Args:
        counts: Numbers of successes, in 0..total.
        total: Number of independent trials.
        alpha: Probability of a bound that is too high.

    Returns:
        The bounds, in float64; 0 without success.

    Raises:
        ValueError: If a count is not in 0..total, `total` is no integer of at least 1, or `alpha` is not
            between 0 and 1.
    """
    total, alpha = check_integer(total, "total"), checked(alpha, Share, "`alpha`")
    if len(counts) and not (counts.min() >= 0 and counts.max() <= total):
        raise ValueError(
            f"Expected `counts` in 0..{total}, but got {int(counts.min())} to {int(counts.max())}"
        )
    successes = counts.cpu().numpy().astype(np.float64)
    bounds = betaincinv(np.maximum(successes, 1), total - np.maximum(successes, 1) + 1, alpha)
    return torch.from_numpy(np.where(successes > 0, bounds, 0.0)).to(counts.device)


@torch.inference_mode(False)
@torch.no_grad()
@without_autocast
def certify_by_smoothing(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    budget: SmoothingBudget,
    generator: torch.Generator | None = None,
) -> SmoothingCertificate:
    """Computes the L2 radius within which the smoothed classifier keeps its decision (Cohen's CERTIFY).

    The class with the most of the first n0 votes is the guess. The n further votes bound its probability from
    below. If the bound is not above 1/2, the certificate abstains.

    A model that declares `ClassifiesNoised` gets the noisy images without clipping, and sigma. A model that
    draws noise is put in the fresh mode. It is asked once for every vote of an image, unless it is a
    `GenerativeClassifier`, whose rows have independent draws. A model that searches among random candidates
    keeps its candidates, and is a fixed function.

    Args:
        model: Any module or function from images to logits, which `as_classifier` wraps.
        x: Images in [0, 1].
        y: Their labels.
        budget: The noise, and the numbers of votes.
        generator: The generator of the noise, also of the model's own; by default a new one with seed 0.

    Raises:
        ValueError: If a label is not a class of the model, or `x` is no batch of its images.
        TypeError: If `model` is no module or function, images or labels are no tensors, or `generator` is no
            generator.
    """
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"Expected `generator` to be a torch.Generator, but got {type(generator).__name__}")
    base = as_classifier(model, x)
    base.check(x)
    y = check_labels(y, count=len(x), num_classes=base.num_classes, device=x.device)
    noise = FreshNoise(torch.Generator().manual_seed(0) if generator is None else generator)
    if base.randomized:
        base = base.with_randomness("fresh", generator=noise.generator)
    parts = [_certified(base, images, budget, noise) for images in x.detach().split(budget.batch_size)]
    guesses, probabilities = (torch.cat(found) for found in zip(*parts, strict=True))
    sure = probabilities > 0.5
    radii = torch.where(sure, budget.sigma * torch.special.ndtri(probabilities), 0.0)
    return SmoothingCertificate(
        radii=torch.where(guesses == y, radii, 0.0),
        decisions=torch.where(sure, guesses, NO_PREDICTION),
        decision_radii=radii,
        probabilities=probabilities,
        budget=budget,
    )


def _certified(
    base: Classifier,
    x: Float[Tensor, "batch channels height width"],
    budget: SmoothingBudget,
    noise: FreshNoise,
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Returns the guessed classes, and the lower bounds on their probabilities."""
    columns, stream = _columns(base), noise.stream()

    def votes(draws: int) -> Int[Tensor, "batch columns"]:
        counts = torch.zeros((len(x), columns), dtype=torch.long, device=x.device)
        for noisy in _noisy(base, x, stream, sigma=budget.sigma, draws=draws, rows=budget.batch_size):
            counts += _counted(_decided(base, noisy, sigma=budget.sigma), columns)
        return counts

    guesses = votes(budget.n0).argmax(1)
    counts = votes(budget.n).gather(1, guesses[:, None])[:, 0]
    return guesses, clopper_pearson(counts, budget.n, alpha=budget.alpha)


@final
class Smoothed(Randomized, ModelView):
    """The smoothed classifier itself, by the vote of some noisy copies: what attacks and verdicts can ask.

    The logits are the logarithms of the shares of votes, each with half a vote divided among the columns. A
    vote has no gradient. The backward pass takes that of the log of the mean softmax over the same copies
    (Salman et al. 2019, section 3.1), along which their attack on smoothed classifiers climbs.

    A radius of `certify` is about infinitely many copies. Near the boundary a vote of few may differ.

    Args:
        model: Any classifier of this package.
        sigma: Standard deviation of the noise, for images in [0, 1].
        draws: Noisy copies of an image.

    Raises:
        ValueError: If `sigma` is not above 0, or `draws` is no integer of at least 1.
        TypeError: If `model` is no classifier.

    Example:
        >>> from genrobust import load_dataset, load_model
        >>> from genrobust.certificates import Smoothed
        >>> images, labels = load_dataset("digits", "test").batch(slice(4))
        >>> model = Smoothed(load_model("mlp", dataset="digits"), sigma=0.1)
        >>> bool((model(images).argmax(1) == labels).all())
        True
    """

    def __init__(self, model: Classifier, *, sigma: float, draws: int = 100) -> None:
        super().__init__(check_classifier(model))
        self.sigma: float = checked(sigma, Positive, "`sigma`")
        self.draws = check_integer(draws, "draws")
        self.noise: NoiseSource = FixedNoise(0)
        self.randomized = True
        self.rejects = _columns(self.model) > self.num_classes

    def with_noise(self, noise: NoiseSource) -> Self:
        """Returns a variant whose copies have noise of another source."""
        return self._variant(noise=noise)

    def _of(self, model: Classifier) -> Self:
        return self._variant(model=model)

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Returns the log of each column's share of the votes, with the gradient of the mean softmax."""
        answers = torch.cat([_answers(self.model, noisy, sigma=self.sigma) for noisy in self._copies(x)])
        labels = decision(answers.flatten(0, 1)).unflatten(0, answers.shape[:2])
        defined = (labels != NO_PREDICTION)[..., None]
        soft = log_mean_exp(torch.where(defined, answers, 0.0).log_softmax(2))
        return straight_through(soft, self._log_shares(labels).to(soft.dtype))

    @torch.no_grad()
    @without_autocast
    def predict(self, x: Tensor) -> Prediction:
        """Returns the vote of the model's decisions, also where its logits decide otherwise (grey box)."""
        labels = [_decided(self.model, noisy, sigma=self.sigma) for noisy in self._copies(self.check(x))]
        logits = self._log_shares(torch.cat(labels)).to(x.dtype)
        chosen = decision(logits)
        return Prediction(
            labels=chosen,
            probabilities=logits[:, : self.num_classes].softmax(1),
            rejected=chosen >= self.num_classes,
            scores=logits[:, : self.num_classes],
        )

    def _copies(self, x: Tensor) -> Iterator[Float[Tensor, "draws batch channels height width"]]:
        stream = self.noise.stream(_PART)
        return _noisy(self.model, x, stream, sigma=self.sigma, draws=self.draws, rows=_ROWS)

    def _log_shares(self, labels: Int[Tensor, "draws batch"]) -> Float[Tensor, "batch columns"]:
        """Returns the log of the shares of votes, or NaN where every vote is undefined."""
        votes = _counted(labels, self.num_columns)
        shares = (votes.double() + 0.5 / self.num_columns) / (len(labels) + 0.5)
        return shares.log().masked_fill(~votes.any(1, keepdim=True), torch.nan)


def _columns(model: Classifier) -> int:
    """Returns the number of classes of the smoothed classifier, with "reject" where the model may reject."""
    return model.num_classes if isinstance(model, ClassifiesNoised) else model.num_columns


def _noisy(
    model: Classifier,
    x: Float[Tensor, "batch channels height width"],
    stream: NoiseStream,
    *,
    sigma: float,
    draws: int,
    rows: int,
) -> Iterator[Float[Tensor, "draws batch channels height width"]]:
    """Yields noisy copies of all images, about `rows` at once.

    The sum is in float32 at least, so that the model's own precision is a part of the base classifier.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    once = model.randomized and not isinstance(model, GenerativeClassifier)  # it may draw once in a call
    together = 1 if once else max(1, rows // max(1, len(x)))
    for start in range(0, draws, together):
        count = min(together, draws - start)
        yield x + sigma * torch.stack([stream.normal(x.shape, like=x) for _ in range(count)])


def _answers(
    model: Classifier, noisy: Float[Tensor, "draws batch channels height width"], *, sigma: float
) -> Float[Tensor, "draws batch columns"]:
    """Returns the model's logits of noisy images, differentiably."""
    images = noisy.flatten(0, 1)
    if isinstance(model, ClassifiesNoised):
        answers = model.noised_scores(images.to(_dtype(model, images)), sigma=sigma)
    else:
        answers = model(images.clamp(0, 1))
    logits: Tensor = answers.unflatten(0, noisy.shape[:2])
    return logits


def _decided(
    model: Classifier, noisy: Float[Tensor, "draws batch channels height width"], *, sigma: float
) -> Int[Tensor, "draws batch"]:
    """Returns the model's decisions about noisy images."""
    if isinstance(model, ClassifiesNoised):
        labels = decision(_answers(model, noisy, sigma=sigma).flatten(0, 1))
    else:
        labels = model.predict(noisy.flatten(0, 1).clamp(0, 1)).labels
    decided: Tensor = labels.unflatten(0, noisy.shape[:2])
    return decided


def _dtype(model: Classifier, images: Tensor) -> torch.dtype:
    return next(model.parameters(), images).dtype


def _counted(labels: Int[Tensor, "draws batch"], columns: int) -> Int[Tensor, "batch columns"]:
    """Returns the votes for each column; an undefined decision counts for none."""
    return nn.functional.one_hot(labels - NO_PREDICTION, columns + 1).sum(0)[:, 1:]
