"""Attacks of the papers that no toolkit has: each against a closed form."""

import math
from typing import Any

import pytest
import torch
from deterministic import Deterministic
from planes import Plane, interior
from torch import Tensor, nn

from genrobust import Classifier
from genrobust.attack_view import attack_view
from genrobust.attacks import (
    fgsm_path,
    iterated_fgsm,
    l2_random_search,
    latent_descent,
    linf_random_search,
    random_fgsm,
    single_pixel,
    vr_igsm,
)
from genrobust.capabilities import Reconstructs


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Vr-IGSM.


class Ripple(Classifier):
    """Two classes by the mean of a x + A sin(w x): a slope with ripples that turn its gradient around."""

    SLOPE, HEIGHT, FREQUENCY = 1.0, 0.05, 60.0

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=2)
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def logits(self, x: Tensor) -> Tensor:
        value = self.SLOPE * x + self.HEIGHT * (self.FREQUENCY * x).sin()
        score = self.scale * (value.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], 1)


def test_vr_igsm_of_a_linear_model_ends_at_the_corner_of_the_ball() -> None:
    model, (x, y) = Plane(), interior()
    found = vr_igsm(model, x, y, epsilon=0.3, generator=seeded(), steps=4, copies=3)
    torch.testing.assert_close(found, x + 0.3 * model.uphill(y).sign())


@pytest.mark.parametrize(("relative_step", "length"), [(None, 1.0), (0.1, 0.4), (1.0, 1.0)])
def test_vr_igsm_takes_steps_of_a_share_of_the_radius(relative_step: float | None, length: float) -> None:
    model, (x, y) = Plane(), interior()
    found = vr_igsm(
        model, x, y, epsilon=0.3, generator=seeded(), steps=4, copies=3, relative_step=relative_step
    )
    torch.testing.assert_close(found, x + length * 0.3 * model.uphill(y).sign())


def test_vr_igsm_follows_the_mean_gradient_and_not_the_local_one() -> None:
    model, y = Ripple(), torch.zeros(1, dtype=torch.long)
    # There the ripple falls: the gradient is 1 - 0.05 * 60 = -2; the mean is 1 - 3 exp(-(60 sigma)^2 / 2).
    x = torch.full((1, 1, 2, 2), 9 * math.pi / 60, dtype=torch.float64)
    mean = 1 - 3 * math.exp(-((60 * 0.05) ** 2) / 2)
    assert mean == pytest.approx(0.967, abs=1e-3)
    settings: dict[str, Any] = {"epsilon": 0.01, "steps": 1, "copies": 400}
    assert (vr_igsm(model, x, y, generator=seeded(), noise=0.0, **settings) < x).all()
    assert (vr_igsm(model, x, y, generator=seeded(), noise=0.05, **settings) > x).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "but got 0, 20 and"),
        ({"copies": 0}, "but got 10, 0 and"),
        ({"noise": -1.0}, r"`noise` of at least 0, but got 10, 20 and -1\.0"),
    ],
)
def test_vr_igsm_says_what_makes_no_sense(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vr_igsm(Plane(), *interior(), epsilon=0.1, **settings)


# Targeted iterated FGSM.


def test_targeted_fgsm_walks_down_the_loss_of_its_class() -> None:
    model, (x, y) = Plane(), interior()
    down = -model.uphill(y).sign()
    torch.testing.assert_close(
        iterated_fgsm(model, x, y, epsilon=1.0, steps=20), (x + 0.2 * down).clamp(0, 1)
    )
    torch.testing.assert_close(iterated_fgsm(model, x, y, epsilon=0.1, steps=20), x + 0.1 * down)


def test_the_path_holds_every_step_and_the_entropy_rises_and_falls() -> None:
    model, (x, _) = Plane(offset=3.0), interior()
    decided = model(x).argmax(1)
    path = fgsm_path(model, x, 1 - decided, steps=30)
    assert path.images.shape == (31, *x.shape)
    assert torch.equal(path.images[0], x)
    torch.testing.assert_close(path.images[-1], iterated_fgsm(model, x, 1 - decided, epsilon=1.0, steps=30))
    assert torch.equal(path.labels[0], decided)
    assert torch.equal(path.labels[-1], 1 - decided)
    score = model(path.images.flatten(0, 1))[:, 1].unflatten(0, (31, len(x)))
    p = (2 * score).sigmoid()
    torch.testing.assert_close(path.entropies, -(p * p.log() + (1 - p) * (1 - p).log()))
    peak = path.entropies.argmax(0)
    assert ((peak > 0) & (peak < 30)).all()


# Rand-FGSM.


def test_random_fgsm_steps_at_random_first() -> None:
    model, (x, y) = Plane(), interior()
    found = random_fgsm(model, x, y, epsilon=0.3, generator=seeded(), alpha=0.1)
    drawn = torch.randn(x.shape, generator=seeded(), dtype=x.dtype).sign()
    torch.testing.assert_close(found, x + 0.1 * drawn + 0.2 * model.uphill(y).sign())
    whole = random_fgsm(model, x, y, epsilon=0.04, generator=seeded(), alpha=0.1)
    torch.testing.assert_close(whole, x + 0.04 * drawn)
    with pytest.raises(ValueError, match=r"`alpha` of at least 0, but got -1\.0"):
        random_fgsm(model, x, y, epsilon=0.3, alpha=-1.0)


# Single pixel.


class Corner(Classifier):
    """Class 1 where the first pixel is above 1/2."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 3, 3), num_classes=2)
        self.slope = nn.Parameter(torch.tensor(9.0))

    def logits(self, x: Tensor) -> Tensor:
        margin = self.slope * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([-margin, margin], 1)


def test_one_pixel_changes_and_only_where_that_serves() -> None:
    x = torch.full((3, 1, 3, 3), 0.3)
    x[1, 0, 0, 0] = 0.9
    y = torch.tensor([0, 1, 1])  # the third is wrong already
    found = single_pixel(Corner(), x, y, generator=seeded())
    assert found[:2, 0, 0, 0].tolist() == [1.0, 0.0]
    assert (found != x).flatten(1).sum(1).tolist() == [1, 1, 0]
    assert torch.equal(single_pixel(Corner(), x, y, pixels=0, generator=seeded()), x)


# Random search.


@pytest.mark.parametrize(
    ("search", "order", "share"), [(linf_random_search, math.inf, 0.99), (l2_random_search, 2, 0.95)]
)
def test_a_random_search_comes_near_the_optimum_of_a_linear_model(
    search: Any, order: float, share: float
) -> None:
    model, (x, y) = Plane(), interior()
    found = search(model, x, y, epsilon=0.3, generator=seeded())
    moved = (found - x).flatten(1)
    assert (moved.norm(p=order, dim=1) <= 0.3 + 1e-9).all()
    slope = model.uphill(y).flatten(1)
    best = 0.3 * slope.norm(p=1 if order == math.inf else 2, dim=1)
    reached = (moved * slope).sum(1) / best
    assert (reached > share).all()


@pytest.mark.parametrize("search", [linf_random_search, l2_random_search])
def test_a_random_search_asks_at_least_once(search: Any) -> None:
    with pytest.raises(ValueError, match=r"`queries`.*but got 0"):
        search(Plane(), *interior(), epsilon=0.3, generator=seeded(), queries=0)


# Latent descent.


class Prototypes(Reconstructs, Deterministic):
    """A class is one image, and what is nearest wins."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=3)
        images = [[0.2, 0.2, 0.2, 0.2], [0.8, 0.2, 0.2, 0.2], [0.2, 0.9, 0.9, 0.9]]
        self.images = nn.Parameter(torch.tensor(images, dtype=torch.float64))

    def class_scores(self, x: Tensor) -> Tensor:
        return -(self.check(x).flatten(1)[:, None] - self.images).square().sum(2)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.images.detach().reshape(1, 3, 1, 2, 2).expand(len(x), -1, -1, -1, -1)


@pytest.mark.parametrize("shown", [attack_view, lambda model: model], ids=["view", "classifier"])
def test_latent_descent_stops_half_way_to_the_likeliest_other_prototype(shown: Any) -> None:
    model, y = Prototypes(), torch.tensor([0, 1, 2])
    x = model.images.detach().reshape(3, 1, 2, 2)
    found = latent_descent(shown(model), x, y, bisections=30)
    half = [(x[0] + x[1]) / 2, (x[0] + x[1]) / 2]
    torch.testing.assert_close(found[:2], torch.stack(half), atol=1e-6, rtol=0)
    assert (model(found).argmax(1) != y).all()
    coarse = latent_descent(shown(model), x, y, bisections=0)
    assert ((coarse - x).flatten(1).norm(dim=1) > (found - x).flatten(1).norm(dim=1)).all()


def test_latent_descent_leaves_what_it_cannot_change_or_is_wrong() -> None:
    model = Prototypes()
    x = model.images.detach().reshape(3, 1, 2, 2)
    assert torch.equal(latent_descent(model, x, torch.tensor([0, 1, 2]), steps=3), x)
    assert torch.equal(latent_descent(model, x, torch.tensor([1, 0, 0])), x)
    with pytest.raises(ValueError, match="but got Plane"):
        latent_descent(Plane(), *interior())
