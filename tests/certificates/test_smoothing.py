"""Radii by smoothing against those of a plane, and the bound on a probability against enumeration."""

import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planes import Plane, interior
from scipy.stats import beta, binom
from torch import Tensor, nn

from genrobust import Classifier, Purified, certify, load_dataset, load_model, verify
from genrobust.attacks.pgd import pgd
from genrobust.capabilities import ClassifiesNoised, Randomized
from genrobust.certificates import (
    Smoothed,
    SmoothingBudget,
    SmoothingCertificate,
    certified_accuracy,
    check_certificate,
    clopper_pearson,
)
from genrobust.contract import NO_PREDICTION
from genrobust.randomness import FixedNoise, NoiseSource

Make = Callable[..., Any]
SIGMA = 0.05  # the images of `interior` are eight of these away from the bounds


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(model: Any, x: Tensor, y: Tensor, **settings: Any) -> SmoothingCertificate:
    return certify(model, x, y, method="smoothing", **{"sigma": SIGMA, **settings})


def plane_images(count: int = 6) -> tuple[Plane, Tensor, Tensor, Tensor]:
    """A plane, images, the sides on which they lie, and their distances to it."""
    model, (x, _) = Plane(), interior(count)
    score = model(x)[:, 1].detach()
    return model, x, (score > 0).long(), score.abs() / model.normal.detach().norm()


class Columns(Classifier):
    """Gives every image the same logits."""

    def __init__(self, logits: list[float], *, rejects: bool = False) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=len(logits) - rejects)
        self.answer, self.rejects = nn.Parameter(torch.tensor(logits)), rejects

    def logits(self, x: Tensor) -> Tensor:
        return self.answer.expand(len(x), -1) + 0 * x.flatten(1).sum(1, keepdim=True)


class CoinOfACall(Randomized, Classifier):
    """Decides by a coin that it throws once for the whole batch."""

    randomized = True

    def __init__(self, *, heads: float = 0.5) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=2)
        self.heads, self.noise, self.calls = heads, FixedNoise(0), 0
        self.place = nn.Parameter(torch.zeros(()))

    def logits(self, x: Tensor) -> Tensor:
        draw = self.noise.stream().normal((1,), like=x)
        heads = (draw < torch.special.ndtri(torch.tensor(self.heads))).expand(len(x))
        return torch.stack([heads.to(x.dtype), 0.5 + 0 * x.flatten(1).sum(1)], 1)

    def with_noise(self, noise: NoiseSource) -> Self:
        return self._variant(noise=noise)


class PlaneUnderNoise(ClassifiesNoised, Classifier):
    """A plane that knows the noise; without it, every image is of class 0."""

    def __init__(self, model: Plane) -> None:
        super().__init__(input_shape=model.input_shape, num_classes=2)
        self.plane, self.told, self.outside = model, set[float](), False

    def logits(self, x: Tensor) -> Tensor:
        return torch.stack([1 + 0 * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)

    def noised_scores(self, noisy: Tensor, *, sigma: float) -> Tensor:
        self.told.add(sigma)
        self.outside |= bool((noisy < 0).any() or (noisy > 1).any())
        return self.plane.logits(noisy)


# The bound on a probability.


def test_the_bound_is_that_of_scipy_and_of_the_definition() -> None:
    total, alpha = 40, 0.01
    counts = torch.arange(total + 1)
    bounds = clopper_pearson(counts, total, alpha=alpha)
    expected = beta.ppf(alpha, counts[1:].numpy(), total - counts[1:].numpy() + 1)
    np.testing.assert_allclose(bounds[1:].numpy(), expected, rtol=1e-10)
    tails = binom.sf(counts[1:].numpy() - 1, total, bounds[1:].numpy())
    np.testing.assert_allclose(tails, alpha, rtol=1e-8)
    assert bounds[0] == 0
    assert math.isclose(float(bounds[-1]), alpha ** (1 / total))


@given(st.integers(1, 60), st.floats(1e-4, 0.4), st.floats(0.0, 1.0))
def test_the_bound_covers_every_probability(total: int, alpha: float, p: float) -> None:
    bounds = clopper_pearson(torch.arange(total + 1), total, alpha=alpha)
    covered = sum(
        math.comb(total, count) * p**count * (1 - p) ** (total - count)
        for count, bound in enumerate(bounds.tolist())
        if bound <= p + 1e-12
    )
    assert covered >= 1 - alpha - 1e-9


def test_the_bound_is_not_wider_than_it_has_to_be() -> None:
    """With 1,000 trials the coverage is near what is asked for, so that half of alpha would not do."""
    total, alpha = 1000, 0.05
    bounds = clopper_pearson(torch.arange(total + 1), total, alpha=alpha).numpy()
    for p in (0.55, 0.8, 0.95):
        missed = binom.pmf(np.arange(total + 1), total, p)[bounds > p].sum()
        assert 0.6 * alpha < missed <= alpha


def test_what_is_no_count(unchecked_types: None) -> None:
    with pytest.raises(ValueError, match=r"`counts` in 0\.\.3, but got 0 to 4"):
        clopper_pearson(torch.tensor([0, 4]), 3, alpha=0.1)
    with pytest.raises(ValueError, match="`alpha`"):
        clopper_pearson(torch.tensor([1]), 3, alpha=1.0)
    with pytest.raises(ValueError, match="`total`"):
        clopper_pearson(torch.tensor([1]), 0, alpha=0.1)


# The radius of a plane is the distance to it.


def test_the_radius_is_a_little_below_the_distance_to_the_plane() -> None:
    model, x, y, distances = plane_images()
    near = (distances > 0.3 * SIGMA) & (distances < 2.5 * SIGMA)
    assert near.sum() >= 3
    found = smooth(model, x[near], y[near], n=20_000, generator=seeded(1))
    ratio = found.radii / distances[near]
    assert (ratio < 1).all()
    assert (ratio > 0.94).all()
    assert torch.equal(found.decisions, y[near])
    assert torch.equal(found.decision_radii, found.radii)


def test_the_radius_is_too_large_as_seldom_as_promised() -> None:
    model, x, y, distances = plane_images()
    nearest = int((distances - SIGMA).abs().argmin())
    count, alpha = 2000, 0.1
    many = x[nearest].expand(count, -1, -1, -1)
    found = smooth(model, many, y[nearest].expand(count), n0=20, n=200, alpha=alpha, batch_size=10_000)
    wrong = float((found.radii > distances[nearest]).double().mean())
    assert 0.03 < wrong <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / count)


def test_pgd_on_the_smoothed_plane_finds_nothing_within_the_radius_and_something_behind_it() -> None:
    """The plane is its own judge: infinitely many votes decide as it does."""
    model, x, y, distances = plane_images()
    near = (distances > 0.3 * SIGMA) & (distances < 2.5 * SIGMA)
    radii = smooth(model, x, y, n=2000).radii
    attacked = Smoothed(model, sigma=SIGMA, draws=24)
    for image in near.nonzero()[:3, 0].tolist():
        one = slice(image, image + 1)
        for size, fooled in ((float(radii[image]), False), (1.05 * float(distances[image]), True)):
            found = pgd(attacked, x[one], y[one], epsilon=size, norm="l2", steps=6, step_size=size / 3)
            assert bool(verify(model, x[one], y[one], found, norm="l2", epsilon=size).success) == fooled


def test_a_planted_radius_that_is_too_large_is_contradicted() -> None:
    model, x, y, distances = plane_images()
    radii = smooth(model, x, y, n=2000).radii
    assert check_certificate(radii, distances).holds
    assert not check_certificate(radii + 0.5 * SIGMA, distances).holds


# What the base classifier is.


def test_a_coin_is_no_certificate() -> None:
    model = Plane()
    x = torch.full((200, 1, 4, 4), 0.5, dtype=torch.float64)  # on the plane
    found = smooth(model, x, torch.zeros(200, dtype=torch.long), n=500)
    assert int(found.abstained.sum()) >= 199
    assert (found.radii[found.abstained] == 0).all()
    assert (found.decision_radii[found.abstained] == 0).all()


def test_a_model_that_draws_once_in_a_call_is_asked_once_for_every_vote() -> None:
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.tensor([0, 0, 1])
    assert smooth(CoinOfACall(), x, y, n0=50, n=200).abstained.all()
    found = smooth(CoinOfACall(heads=0.9), x, y, n0=50, n=400)
    assert (found.decisions == 0).all()
    assert ((found.probabilities > 0.75) & (found.probabilities < 0.9)).all()
    fixed = smooth(CoinOfACall().with_randomness("fixed", seed=4), x, y, n0=50, n=100)
    assert fixed.abstained.all()  # put in the fresh mode again


def test_a_rejecting_model_keeps_rejecting_within_the_radius() -> None:
    x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
    found = smooth(Columns([0.0, 1.0, 2.0], rejects=True), x, y)
    assert found.decisions.tolist() == [2, 2]
    assert (found.radii == 0).all()
    assert (found.decision_radii == found.decision_radii[0]).all()
    assert math.isclose(float(found.decision_radii[0]), 2.4631 * SIGMA, rel_tol=1e-3)
    assert Smoothed(Columns([0.0, 1.0, 2.0], rejects=True), sigma=0.1, draws=3).predict(x).rejected.all()


def test_undefined_answers_are_votes_for_no_class() -> None:
    x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 0])
    model = Columns([math.nan, 0.0])
    found = smooth(model, x, y)
    assert found.abstained.all()
    assert (found.probabilities == 0).all()
    assert (Smoothed(model, sigma=0.1, draws=3).predict(x).labels == NO_PREDICTION).all()


def test_noisy_images_are_clipped_for_a_model_that_does_not_know_the_noise() -> None:
    plane = Plane()
    model = PlaneUnderNoise(plane)
    direction = plane.uphill(torch.tensor([0]))[0].sign()
    x = (0.5 + 0.5 * direction).expand(2, -1, -1, -1).clone()  # a corner of the cube
    x[1] = 0.5 + 0.02 * direction
    y = torch.tensor([1, 1])
    known = smooth(model, x, y, sigma=0.3, n=20_000)
    assert model.told == {0.3}
    assert model.outside
    distances = plane(x)[:, 1].detach() / plane.normal.detach().norm()
    assert 0.9 < float(known.radii[1] / distances[1]) < 1
    assert (smooth(plane, x, y, sigma=0.3).radii > 0).all()  # `Classifier.check` has seen no noise
    assert torch.equal(Smoothed(model, sigma=0.3)(x).argmax(1), y)
    assert torch.equal(model(x).argmax(1), torch.tensor([0, 0]))


def test_any_module_can_be_certified(make_model: Make, images: Make) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand((3, 1, 4, 4), generator=seeded(0))
    found = smooth(net, x, torch.tensor([0, 1, 2]), n=50)
    assert found.radii.shape == (3,)
    for name in ("bnn", "deep-bayes", "abs", "purified"):
        model = make_model(name)
        x = images(model, 2)
        assert smooth(model, x, torch.tensor([0, 1]), n0=3, n=12).decisions.shape == (2,)


def test_a_grey_box_is_certified_by_its_decision(make_model: Make, images: Make) -> None:
    purified = make_model("purified")
    grey = Purified(purified.purifier, purified.classifier, gradient="grey-box")
    x = images(purified, 4)
    y = purified.predict(x).labels
    one, other = (smooth(model, x, y, n=50) for model in (purified, grey))
    assert torch.equal(one.probabilities, other.probabilities)
    vote = Smoothed(grey, sigma=SIGMA, draws=20).predict(x)
    assert torch.equal(vote.scores, Smoothed(purified, sigma=SIGMA, draws=20).predict(x).scores)


# Digits.


def test_certified_accuracy_of_a_network_falls_with_the_radius() -> None:
    x, y = load_dataset("digits", "test").batch(slice(24))
    model = load_model("mlp", dataset="digits")
    found = smooth(model, x, y, sigma=0.4, n0=20, n=200)
    radii = [0.0, 0.1, 0.2, 0.4, 0.7]
    shares = certified_accuracy(found, radii)
    assert (shares[1:] <= shares[:-1]).all()
    assert shares[0] > 0.5
    assert shares[-1] < shares[0]
    smoothed = Smoothed(model, sigma=0.4, draws=150)
    assert shares[0] <= float((smoothed.predict(x).labels == y).double().mean())
    assert certified_accuracy(found, [10.0]).tolist() == [0.0]
    text = str(found)
    assert f"right about {int((found.radii > 0).sum())} of 24 images" in text
    assert "not the model itself" in text


def test_the_shares_are_of_radii_above_the_asked_one() -> None:
    found = smooth(Columns([1.0, 0.0]), torch.full((4, 1, 2, 2), 0.5), torch.tensor([0, 0, 1, 1]))
    radius = float(found.radii[0])
    assert certified_accuracy(found, [0.0, 0.99 * radius, radius]).tolist() == [0.5, 0.5, 0.0]


def test_radii_that_cannot_be_asked_for(unchecked_types: None) -> None:
    found = smooth(Columns([1.0, 0.0]), torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]))
    for radii in ([-0.1], [math.nan], ["a"], 0.5):
        with pytest.raises(ValueError, match="`radii"):
            certified_accuracy(found, radii)  # type: ignore[arg-type]
    empty = smooth(Columns([1.0, 0.0]), torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one image"):
        certified_accuracy(empty, [0.0])


# Draws.


def test_the_generator_decides_and_the_global_one_does_not() -> None:
    model, x, y, _ = plane_images()
    state = torch.get_rng_state()
    first, again, other = (smooth(model, x, y, n=300, generator=seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.probabilities, again.probabilities)
    assert not torch.equal(first.probabilities, other.probabilities)
    assert torch.equal(torch.get_rng_state(), state)
    small = smooth(model, x, y, n=300, batch_size=7, generator=seeded(3))
    assert torch.equal(first.probabilities, small.probabilities)
    default = smooth(model, x, y, n=300)
    assert torch.equal(default.probabilities, smooth(model, x, y, n=300, generator=seeded(0)).probabilities)
    with torch.inference_mode():
        inside = smooth(model, x.clone(), y.clone(), n=300, generator=seeded(3))
    assert torch.equal(first.probabilities, inside.probabilities)


def test_the_classifier_of_votes_repeats_and_does_not_mix_images() -> None:
    model, x, _, _ = plane_images()
    smoothed = Smoothed(model, sigma=SIGMA, draws=30)
    answers = smoothed(x)
    assert torch.equal(answers, smoothed(x))
    torch.testing.assert_close(answers[2:3], smoothed(x[2:3]))
    torch.testing.assert_close(answers.exp().sum(1), torch.ones(len(x), dtype=torch.float64))
    assert torch.equal(smoothed.predict(x).scores, answers.detach())
    fresh = smoothed.with_randomness("fresh", seed=1)
    assert not torch.equal(fresh(x), fresh(x))
    assert not torch.equal(smoothed.with_randomness("fixed", seed=1)(x), answers)


def test_the_gradient_is_that_of_the_mean_softmax() -> None:
    model, x, y, _ = plane_images()
    smoothed = Smoothed(model, sigma=SIGMA, draws=5)
    leaf = x.clone().requires_grad_()
    [gradient] = torch.autograd.grad(smoothed(leaf).gather(1, y[:, None]).sum(), leaf)
    stream = FixedNoise(0).stream(999)
    noise = torch.stack([stream.normal(x.shape, like=x) for _ in range(5)])
    mean = torch.stack([model(leaf + SIGMA * part).softmax(1) for part in noise]).mean(0)
    [expected] = torch.autograd.grad(mean.gather(1, y[:, None]).log().sum(), leaf)
    torch.testing.assert_close(gradient, expected)


# Arguments.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": None}, "`sigma`, the standard deviation"),
        ({"sigma": 0.0}, "`sigma`"),
        ({"sigma": math.inf}, "`sigma`"),
        ({"n0": 0}, "`n0`"),
        ({"n": 1.5}, "`n`"),
        ({"n": 9}, "`n` of at least 10 for `alpha` 0.001, but got 9"),
        ({"alpha": 1.0}, "`alpha`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"seeds": 2}, "no `seeds` for the method 'smoothing'"),
        ({"method": "bound"}, "`method`"),
        ({"method": "bounds"}, "no `sigma` for the method 'bounds'"),
        ({"method": "bounds", "sigma": None, "generator": seeded(0)}, "no `generator`"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str, unchecked_types: None) -> None:
    model, x, y, _ = plane_images()
    with pytest.raises(ValueError, match=message):
        certify(model, x, y, **{"method": "smoothing", "sigma": SIGMA, **settings})


def test_the_least_number_of_votes_certifies() -> None:
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    assert smooth(Columns([1.0, 0.0]), x, y, n=10).radii > 0
    assert SmoothingBudget(sigma=1, n=2, alpha=0.3).n == 2
    with pytest.raises(ValueError, match="`n` of at least 2"):
        SmoothingBudget(sigma=1, n=1, alpha=0.5)


def test_labels_and_images_are_checked_before_any_vote(unchecked_types: None) -> None:
    class Unasked(Columns):
        def logits(self, x: Tensor) -> Tensor:
            raise AssertionError(f"asked about {len(x)} images")

    model, x = Unasked([0.0, 1.0]), torch.full((2, 1, 2, 2), 0.5)
    with pytest.raises(ValueError, match=r"`labels` in 0\.\.1, but got 0 to 2"):
        smooth(model, x, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="divide by 255"):
        smooth(model, 255 * x, torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"`generator` to be a torch\.Generator, but got int"):
        smooth(model, x, torch.tensor([0, 1]), generator=3)
    with pytest.raises(ValueError, match="`draws`"):
        Smoothed(model, sigma=0.1, draws=0)
    with pytest.raises(TypeError, match="`model` to be a Classifier"):
        Smoothed(nn.Flatten(), sigma=0.1)
