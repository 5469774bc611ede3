"""Radii against the exact distance to the boundary, where the decoder is linear."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust.certificates import certify, check_certificate, exact_radius, published_radius
from genrobust.certificates.bounds import _costs
from genrobust.models import ABS, EABS, VaDEClassifier

Make = Callable[..., Any]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Quadratic:
    """l_k(x) = min_z ||x - A_k z - b_k||^2 + (z - m_k)^T W_k (z - m_k), in closed form."""

    def __init__(self, matrices: Tensor, offsets: Tensor, means: Tensor, weights: Tensor) -> None:
        self.matrices, self.offsets, self.means, self.weights = matrices, offsets, means, weights
        gram = matrices.mT @ matrices + torch.diag_embed(weights)
        identity = torch.eye(matrices.shape[1], dtype=matrices.dtype)
        self.inverse = torch.linalg.inv(gram)
        self.hessians = identity - matrices @ self.inverse @ matrices.mT
        self.centres = offsets + (matrices @ means[..., None])[..., 0]

    def costs(self, x: Tensor) -> Tensor:
        shift = x[:, None] - self.centres
        return torch.einsum("bkn,knm,bkm->bk", shift, self.hessians, shift)

    def residual(self, x: Tensor, k: Tensor) -> Tensor:
        """||x - A z - b|| at the minimum: (I - A gram^-1 A^T) (x - centre)."""
        return torch.einsum("bnm,bm->bn", self.hessians[k], x - self.centres[k]).norm(dim=1)

    def distances(self, x: Tensor) -> Tensor:
        """min_z ||x - A_k z - b_k||, without the prior."""
        projected = self.matrices @ torch.linalg.pinv(self.matrices)
        shift = x[:, None] - self.offsets
        return (shift - torch.einsum("knm,bkm->bkn", projected, shift)).norm(dim=2)

    def nearest(self, x: Tensor, y: int) -> float:
        """The exact distance at which another class costs as little: a quadratic constraint, by its dual."""
        others = [k for k in range(len(self.centres)) if k != y]
        return min(self._boundary(x, y, k) for k in others)

    def _boundary(self, x: Tensor, y: int, k: int) -> float:
        curvature = self.hessians[k] - self.hessians[y]
        own, other = self.hessians[y] @ (x - self.centres[y]), self.hessians[k] @ (x - self.centres[k])
        slope, costs = 2 * (other - own), self.costs(x[None])[0]
        identity = torch.eye(len(x), dtype=x.dtype)
        low, high = 0.0, min(1e6, float(-1 / torch.linalg.eigvalsh(curvature)[0].clamp_max(-1e-9)))

        def step(multiplier: float) -> Tensor:
            return -0.5 * multiplier * torch.linalg.solve(identity + multiplier * curvature, slope)

        for _ in range(200):
            middle = 0.5 * (low + high)
            moved = step(middle)
            value = costs[k] - costs[y] + slope @ moved + moved @ curvature @ moved
            low, high = (middle, high) if value > 0 else (low, middle)
        return float(step(high * (1 - 1e-12)).norm())


@pytest.fixture(scope="module")
def quadratic() -> Quadratic:
    generator = seeded(0)
    matrices = 0.6 * torch.randn((3, 6, 2), generator=generator, dtype=torch.float64)
    offsets, means = torch.rand((3, 6), generator=generator, dtype=torch.float64), torch.zeros(3, 2).double()
    return Quadratic(matrices, offsets, means, torch.full((3, 2), 0.5, dtype=torch.float64))


def test_a_radius_is_below_the_exact_distance_and_above_the_published_one(quadratic: Quadratic) -> None:
    x = torch.rand((60, 6), generator=seeded(1), dtype=torch.float64)
    costs = quadratic.costs(x)
    y = costs.argmin(1)
    radius = exact_radius(costs, quadratic.residual(x, y), y)
    exact = torch.tensor([quadratic.nearest(image, int(k)) for image, k in zip(x, y, strict=True)])
    own = costs.gather(1, y[:, None]).squeeze(1)
    published = published_radius(own, quadratic.residual(x, y), quadratic.distances(x), y)
    assert (radius > 0).all()
    assert (radius <= exact * (1 + 1e-9)).all()
    assert (published <= radius + 1e-12).all()
    assert (radius / exact).median() > 0.4
    assert check_certificate(radius, exact).holds


def test_the_exact_distance_is_exact(quadratic: Quadratic) -> None:
    x = torch.rand((4, 6), generator=seeded(1), dtype=torch.float64)
    for image in x:
        y = int(quadratic.costs(image[None]).argmin())
        distance = quadratic.nearest(image, y)
        directions = torch.randn((20_000, 6), generator=seeded(2), dtype=torch.float64)
        directions /= directions.norm(dim=1, keepdim=True)
        inside = quadratic.costs(image + 0.999 * distance * directions).argmin(1)
        assert (inside == y).all()


def test_another_decision_has_radius_zero() -> None:
    costs = torch.tensor([[1.0, 4.0, 9.0], [1.0, 4.0, 9.0]])
    radius = exact_radius(costs, torch.tensor([0.5, 0.5]), torch.tensor([0, 1]))
    torch.testing.assert_close(radius, torch.tensor([3 / (2 * 2.5), 0.0]))


class SharedLinear(torch.nn.Module):
    """A decoder that all classes share: z -> A z + b."""

    def __init__(self, matrix: Tensor, offset: Tensor, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("offset", offset)
        self.image_shape, self.decoders, self.activations = image_shape, 1, len(offset)

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.get_buffer("matrix").mT + self.get_buffer("offset")).unflatten(2, self.image_shape)

    def for_inference(self) -> "SharedLinear":
        return self

    def select(self, _: Tensor) -> "SharedLinear":
        return self


def linear_vade(make_model: Make) -> tuple[VaDEClassifier, Quadratic]:
    model = make_model("vade", dtype=torch.float64, variance=0.05)
    matrix = 0.1 * torch.randn((64, 3), generator=seeded(4), dtype=torch.float64)
    offset = torch.full((64,), 0.5, dtype=torch.float64)
    model.decoders = SharedLinear(matrix, offset, (1, 8, 8))
    with torch.no_grad():
        model.prior.mean.copy_(torch.randn((4, 3), generator=seeded(5)))
    weights = 0.05 * torch.ones(4, 3, dtype=torch.float64)  # 2 variance * 1/2 / sigma_y^2
    means = model.prior.mean.detach()
    quadratic = Quadratic(matrix.expand(4, -1, -1), offset.expand(4, -1), means, weights)
    budget = {"candidates": 0, "encoder_proposal": True, "steps": 200, "tolerance": 1e-12}
    return model.with_inference(**budget), quadratic


def test_vade_with_a_linear_decoder(make_model: Make) -> None:
    model, quadratic = linear_vade(make_model)
    z = model.prior.mean.detach().repeat(5, 1) + 0.5 * torch.randn((20, 3), generator=seeded(6)).double()
    x = model.decoders(z[:, None])[:, 0].clamp(0, 1)
    y = quadratic.costs(x.flatten(1)).argmin(1)
    assert torch.equal(model(x).argmax(1), y)
    radius = certify(model, x, y).radii
    expected = exact_radius(quadratic.costs(x.flatten(1)), quadratic.residual(x.flatten(1), y), y)
    torch.testing.assert_close(radius, expected, rtol=1e-5, atol=1e-7)
    exact = [quadratic.nearest(image, int(k)) for image, k in zip(x.flatten(1), y, strict=True)]
    assert check_certificate(radius, torch.tensor(exact, dtype=torch.float64)).holds
    assert (radius > 0).all()


def test_equation_40_is_of_no_use_where_the_decoder_is_shared(make_model: Make) -> None:
    _, quadratic = linear_vade(make_model)
    x = torch.rand((20, 1, 8, 8), generator=seeded(3), dtype=torch.float64).flatten(1)
    costs = quadratic.costs(x)
    y = costs.argmin(1)
    own = costs.gather(1, y[:, None]).squeeze(1)
    published = published_radius(own, quadratic.residual(x, y), quadratic.distances(x), y)
    assert (published == 0).all()


@pytest.mark.parametrize("name", ["abs", "vade"])
def test_no_perturbation_within_the_radius_changes_the_decision(
    name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name, dtype=torch.float64).with_inference(
        candidates=400, encoder_proposal=True, steps=100, tolerance=1e-9
    )
    x = 0.25 + 0.5 * images(model, 6)
    y = model(x).argmax(1)
    radius = certify(model, x, y).radii
    assert (radius > 0).all()
    noise = torch.randn((10, *x.shape), generator=seeded(7), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    scores = model.class_scores(leaf)
    second = scores.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
    margin = scores.gather(1, second[:, None]) - scores.gather(1, y[:, None])
    [towards] = torch.autograd.grad(margin.sum(), leaf)
    for direction in (*noise, towards):
        step = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
        moved = x + 0.999 * radius[:, None, None, None] * step
        assert (model(moved.clamp(0, 1)).argmax(1) == y).all()


@pytest.mark.slow
def test_eabs_radii_are_those_of_the_lowest_costs_found(make_model: Make, images: Make) -> None:
    model = make_model("eabs", dtype=torch.float64)
    assert isinstance(model, EABS)
    x = images(model, 5)
    tight = model.tightened()
    y = tight(x).argmax(1)
    variants = [tight.with_candidates(seed).with_gradient("envelope") for seed in (0, 1)]
    leaf = x.clone().requires_grad_()
    scores = torch.stack([variant.class_scores(leaf) for variant in variants])
    costs = torch.stack([-model.scores_to_logits(part) for part in scores]) * model.temperature
    best = costs.gather(2, y.expand(2, -1)[..., None])[..., 0].argmin(0)
    chosen = [cost.gather(1, y[:, None]).sum() for cost in costs]
    slopes = [torch.autograd.grad(cost, leaf, retain_graph=True)[0] for cost in chosen]
    residuals = 0.5 * torch.stack(slopes).flatten(2).norm(dim=2)
    expected = exact_radius(costs.amin(0).detach(), residuals.gather(0, best[None])[0], y)
    found = certify(model, x, y)
    torch.testing.assert_close(found.radii, expected)
    assert (found.spread >= 0).all()
    assert (certify(model, x, (y + 1) % 4).radii == 0).all()
    assert len(certify(model, x[:0], y[:0]).radii) == 0


@pytest.mark.slow
def test_a_certificate_does_not_depend_on_the_budget_of_verdicts(make_model: Make, images: Make) -> None:
    model = make_model("eabs", dtype=torch.float64)
    x = images(model, 5)
    y = model.tightened()(x).argmax(1)
    loose = model.with_inference(steps=1, refined_classes=1, expectation_draws=1)
    torch.testing.assert_close(certify(loose, x, y, seeds=1).radii, certify(model, x, y, seeds=1).radii)
    assert (certify(model, x, y, seeds=1).spread == 0).all()
    assert (certify(model, x, y, seeds=3).spread > 0).any()


def test_looser_bounds_and_no_seeds_are_refused(make_model: Make, images: Make) -> None:
    model = make_model("abs").with_inference(refined_classes=1, candidates=20)
    x = images(model, 2)
    with pytest.raises(ValueError, match="some scores are looser bounds"):
        _costs(model, x, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="`seeds` to be at least 1, but got 0"):
        certify(model, x, torch.zeros(2, dtype=torch.long), seeds=0)


def test_a_radius_of_inexact_inference_is_found_out() -> None:
    radii, distances = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([torch.inf, 0.5, 0.0])
    check = check_certificate(radii, distances)
    assert check.violated.tolist() == [False, True, False]
    assert not check.holds
    assert str(check).startswith("1 of 3 radii are contradicted")
    assert "0.25 of its radius" in str(check)
    assert str(check_certificate(radii, radii)) == (
        "no radius of 3 is contradicted by an adversarial example"
    )


def test_what_cannot_be_compared(unchecked_types: None) -> None:
    with pytest.raises(ValueError, match=r"as many `distances` as `radii`, but got \(2,\) and \(3,\)"):
        check_certificate(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match="`distances` of at least 0, but got -1"):
        check_certificate(torch.ones(1), -torch.ones(1))
    with pytest.raises(ValueError, match="`radii` of at least 0, but got nan"):
        check_certificate(torch.tensor([torch.nan]), torch.ones(1))


def test_what_cannot_be_certified(make_model: Make, images: Make) -> None:
    for settings in ({"variance": None}, {"variance": None, "likelihood": "bernoulli"}):
        model = make_model("vade", **settings)
        with pytest.raises(ValueError, match="a Gaussian likelihood of constant `variance`"):
            certify(model, images(model, 2), torch.zeros(2, dtype=torch.long))
    model = make_model("abs")
    assert isinstance(model, ABS)
    with pytest.raises(ValueError, match=r"`labels` in 0\.\.3, but got 0 to 4"):
        certify(model, images(model, 2), torch.tensor([0, 4]))
