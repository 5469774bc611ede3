"""The overpowered attack: pairs of images in the range of a generator, against a linear model's optimum."""

import pytest
import torch
from torch import Tensor, nn

from genrobust import Classifier, Purified, load_dataset, load_model, verify
from genrobust.attacks import OverpoweredBudget, overpowered, overpowered_pairs
from genrobust.attacks.pgd import BallNorm
from genrobust.purifiers import ComDefend, LatentProjection

LATENTS = 3


class Slope(Classifier):
    """Class 1 where the image is bright along a direction."""

    def __init__(self, direction: Tensor) -> None:
        super().__init__(input_shape=(1, 4, 4), num_classes=2)
        self.direction = nn.Parameter(direction)

    def logits(self, x: Tensor) -> Tensor:
        side = (x.flatten(1) - 0.5) @ self.direction
        return torch.stack([-side, side], 1)


class Plane(nn.Module):
    """Latents -> images on a plane with orthonormal axes."""

    def __init__(self, axes: Tensor) -> None:
        super().__init__()
        self.axes = nn.Parameter(axes)

    def forward(self, z: Tensor) -> Tensor:
        return (0.5 + z @ self.axes.T).unflatten(1, (1, 4, 4))


class Coordinates(nn.Module):
    """Images -> the latents of their projections."""

    def __init__(self, plane: Plane) -> None:
        super().__init__()
        self.plane = plane

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.plane.axes


@pytest.fixture
def defence() -> Purified:
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(16, LATENTS, generator=generator)).Q
    plane = Plane(axes)
    projection = LatentProjection(
        plane, latent_dim=LATENTS, input_shape=(1, 4, 4), encoder=Coordinates(plane), beta=1e-6
    ).with_inference(candidates=0, steps=5)
    return Purified(projection, Slope(20 * torch.randn(16, generator=generator)), gradient="implicit")


def images(count: int = 8) -> tuple[Tensor, Tensor]:
    """Gives images off the plane."""
    x = 0.5 + 0.15 * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    return x, torch.zeros(len(x), dtype=torch.long)


def shown(defence: Purified) -> Tensor:
    """Gives the direction of the classifier as latents see it."""
    bare, projection = defence.bare(), defence.purifier
    assert isinstance(bare, Slope)
    assert isinstance(projection, LatentProjection)
    plane = projection.decoder
    assert isinstance(plane, Plane)
    return (plane.axes.T @ bare.direction).detach()


def test_the_nearest_pair_of_a_linear_model_is_as_far_as_its_margin(defence: Purified) -> None:
    x, y = images()
    budget = OverpoweredBudget(steps=300, learning_rate=0.02)
    found = overpowered_pairs(defence, x, y, generator=torch.Generator().manual_seed(0), budget=budget)
    assert found.found.all()
    nearest = float(budget.confidence / shown(defence).norm())  # 2 v . (z - z') = 2 confidence
    assert (found.distances >= 0.999 * nearest).all()
    assert (found.distances <= 1.1 * nearest).all()
    bare = defence.bare()
    for side, sign in ((found.first, 1), (found.second, -1)):
        assert (sign * -bare(side).detach().diff(dim=1)[:, 0] >= budget.confidence).all()
    torch.testing.assert_close((found.first - found.second).flatten(1).norm(dim=1), found.distances)


def test_an_example_is_found_wherever_a_linear_model_has_one(defence: Purified) -> None:
    x, _ = images(4)
    direction = shown(defence)
    margin = -defence(x).detach().diff(dim=1)[:, 0]
    y = (margin < 0).long()
    least = margin.abs() / (2 * direction.norm())
    budget = OverpoweredBudget(steps=60)
    for row, length in enumerate(least.tolist()):
        chosen = slice(row, row + 1)
        for epsilon, success in ((1.05 * length, True), (0.95 * length, False)):
            example = overpowered(defence, x[chosen], y[chosen], epsilon=epsilon, norm="l2", budget=budget)
            verdict = verify(defence, x[chosen], y[chosen], example, norm="l2", epsilon=epsilon)
            assert bool(verdict.success) is success, (row, epsilon)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_examples_stay_in_the_ball_and_ask_the_defence_as_often_as_stated(
    defence: Purified, norm: BallNorm
) -> None:
    x, y = images()
    asked: list[int] = []
    defence.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    found = overpowered(defence, x, y, epsilon=0.1, norm=norm, budget=OverpoweredBudget(steps=20))
    perturbation = (found - x).flatten(1)
    length = perturbation.abs().amax(1) if norm == "linf" else perturbation.norm(dim=1)
    assert (length <= 0.1 + 1e-6).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert asked == [len(x)] * 8  # 4 * steps / ask_every


def test_what_has_no_generator_is_named(defence: Purified) -> None:
    x, y = torch.rand(2, 1, 28, 28), torch.tensor([0, 1])
    cnn = load_model("cnn", dataset="digits")
    for model in (cnn, Purified(ComDefend(), cnn)):
        with pytest.raises(ValueError, match="a purifier with a generator, but got"):
            overpowered(model, x, y, epsilon=0.1, norm="linf")
    purifier = ComDefend()
    with pytest.raises(ValueError, match="a purifier with a generator, but got ComDefend"):
        purifier.latents(x)
    with pytest.raises(ValueError, match="a purifier with a generator, but got ComDefend"):
        purifier.decode(torch.zeros(2, 4))


@pytest.mark.slow
def test_a_shipped_purifier_falls_to_it() -> None:
    images, labels = load_dataset("digits", "test").batch(slice(40))
    model = Purified(
        load_model("mad-vae-combined", dataset="digits").purifier, load_model("cnn", dataset="digits")
    )
    found = overpowered(model, images, labels, epsilon=0.3, norm="linf")
    verdict = verify(model, images, labels, found, norm="linf", epsilon=0.3)
    assert verdict.success.float().mean() >= 0.5
