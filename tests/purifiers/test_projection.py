"""Projection onto a decoder's range, against closed forms, differences and unrolled optimisation."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust import Purified
from genrobust.inference import InferenceBudget
from genrobust.purifiers import LatentProjection
from genrobust.randomness import isolated_rng

SHAPE = (1, 4, 4)
CONVERGED = InferenceBudget(candidates=200, encoder_proposal=False, steps=200, tolerance=1e-14)


class Linear(nn.Module):
    """G(z) = A z + b."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(0.3 * torch.randn(16, 3, generator=generator, dtype=torch.float64))
        self.offset = nn.Parameter(torch.rand(16, generator=generator, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.matrix.T + self.offset).unflatten(1, SHAPE)


def smooth_decoder(seed: int = 0) -> nn.Module:
    with isolated_rng(seed):
        layers = nn.Sequential(
            nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 16), nn.Sigmoid(), nn.Unflatten(1, SHAPE)
        )
    with torch.no_grad():
        layers[2].weight.mul_(3)
    return layers.double()


def projection(decoder: Any, **settings: Any) -> LatentProjection:
    return LatentProjection(decoder, latent_dim=3, input_shape=SHAPE, **{"inference": CONVERGED, **settings})


def images(count: int = 4) -> Tensor:
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def jacobian(purify: Any, x: Tensor) -> Tensor:
    """d purified / d x of one image, by backward passes."""
    return torch.autograd.functional.jacobian(lambda rows: purify(rows).flatten(), x).reshape(16, 16)


def differences(purify: Any, x: Tensor, step: float = 1e-4) -> Tensor:
    columns = [
        (purify(x + step * pixel) - purify(x - step * pixel)).flatten() / (2 * step)
        for pixel in torch.eye(16, dtype=x.dtype).reshape(16, *SHAPE)
    ]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_a_linear_decoder_in_closed_form(beta: float) -> None:
    decoder, x = Linear(), images()
    purifier = projection(decoder, beta=beta)
    matrix = decoder.matrix.detach()
    inverse = torch.linalg.inv(matrix.T @ matrix + 0.5 * beta * torch.eye(3, dtype=torch.float64))
    hat = matrix @ inverse @ matrix.T
    offset = decoder.offset.detach()
    expected = (x.flatten(1) - offset) @ hat.T + offset
    with torch.no_grad():
        torch.testing.assert_close(purifier.purify(x).flatten(1), expected, rtol=1e-5, atol=1e-6)
    for purify in (purifier.purify, purifier.purify_implicitly):
        torch.testing.assert_close(jacobian(purify, x[:1]), hat, rtol=1e-6, atol=1e-8)
    with torch.no_grad():
        found = differences(purifier.purify, x[:1], step=1e-2)
    torch.testing.assert_close(found, hat, rtol=1e-3, atol=1e-4)


def unrolled(decoder: nn.Module, x: Tensor, start: Tensor, *, beta: float, steps: int = 3000) -> Tensor:
    """Gradient descent from a constant start, every step a function of `x`."""
    z = start
    for _ in range(steps):
        prior = 0.5 * beta * z.square().sum()
        loss = (x - decoder(z)).square().sum() + prior
        (slope,) = torch.autograd.grad(loss, z, create_graph=True)
        z = z - 0.03 * slope
    return decoder(z)


def test_the_implicit_gradient_is_that_of_a_converged_unrolled_optimisation() -> None:
    decoder, x = smooth_decoder(), images(3)
    purifier = projection(decoder, beta=0.5)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    start = (purifier.infer(x) + 0.05).requires_grad_()
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    implicit = purifier.purify_implicitly(leaves[0])
    descended = unrolled(decoder, leaves[1], start, beta=0.5)
    torch.testing.assert_close(implicit, descended, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad((result * weights).sum(), leaf)[0].flatten(1)
        for result, leaf in zip((implicit, descended), leaves, strict=True)
    ]
    assert nn.functional.cosine_similarity(*gradients).min() >= 0.999
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-2, atol=1e-3)


def test_the_implicit_gradient_is_that_of_differences() -> None:
    purifier, x = projection(smooth_decoder(), beta=0.5), images(1)
    with torch.no_grad():
        expected = differences(purifier.purify, x)
    found = jacobian(purifier.purify_implicitly, x)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_through_adam_is_the_derivative_of_its_steps() -> None:
    budget = InferenceBudget(candidates=50, encoder_proposal=False, method="adam", steps=6)
    purifier, x = projection(smooth_decoder(), inference=budget), images(1)
    with torch.no_grad():
        expected = differences(purifier.purify, x, step=1e-6)
        value = purifier.purify(x)
    torch.testing.assert_close(purifier.purify(x.requires_grad_()), value)
    torch.testing.assert_close(jacobian(purifier.purify, x.detach()), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["bfgs", "adam"])
def test_the_result_does_not_depend_on_the_gradient_mode(method: Any, make_model: Any) -> None:
    budget = InferenceBudget(candidates=30, encoder_proposal=False, method=method, steps=5)
    purifier = projection(smooth_decoder().float(), inference=budget)
    classifier = make_model("mlp", input_shape=SHAPE)
    x = images().float()
    expected = classifier(purifier(x))
    for gradient in ("through", "bpda", "implicit"):
        model = Purified(purifier, classifier, gradient=gradient)
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        torch.testing.assert_close(logits, expected)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected)
        with torch.inference_mode():
            torch.testing.assert_close(model(x).clone(), expected)
        logits[:, 0].sum().backward(retain_graph=True)
        first = leaf.grad
        assert first is not None
        assert (first.flatten(1) != 0).any(1).all()
        once = first.clone()
        logits[:, 0].sum().backward()
        torch.testing.assert_close(leaf.grad, 2 * once)


def test_the_projection_is_at_least_as_near_as_any_candidate() -> None:
    purifier, x = projection(smooth_decoder()), images()
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    with torch.no_grad():
        decoded = purifier.decoder(z)
        losses = (x[:, None] - decoded).square().flatten(2).sum(2) + 0.5 * z.square().sum(1)
        best = purifier.infer(x)
        reached = (x - purifier.decoder(best)).square().flatten(1).sum(1) + 0.5 * best.square().sum(1)
    assert (reached <= losses.min(1).values + 1e-9).all()


def test_rows_do_not_depend_on_one_another() -> None:
    purifier, x = projection(smooth_decoder()), images(40)
    with torch.no_grad():
        whole = purifier(x)
        torch.testing.assert_close(purifier(x[5:6]), whole[5:6], rtol=1e-6, atol=1e-6)
    assert purifier(x[:0]).shape == (0, *SHAPE)


def test_a_function_is_a_decoder_too() -> None:
    def decoder(z: Tensor) -> Tensor:
        return z.sigmoid().mean(1)[:, None, None, None].expand(-1, *SHAPE)

    purifier, x = projection(decoder), images(2)
    assert not list(purifier.parameters())
    assert purifier(x).std() < x.std()


def test_an_encoder_proposes_where_to_start() -> None:
    decoder, x = smooth_decoder(), images(2)
    with torch.no_grad():
        target = torch.tensor([[2.0, -2.0, 1.5]], dtype=x.dtype)
        images_of_it = decoder(target)
    budget = InferenceBudget(candidates=0, steps=0)
    purifier = projection(decoder, encoder=lambda x: target.expand(len(x), -1), beta=1e-3, inference=budget)
    torch.testing.assert_close(purifier.infer(x), target.expand(2, -1))
    chosen = purifier.with_inference(candidates=20, steps=0).infer(images_of_it)
    torch.testing.assert_close(chosen, target)


def test_new_weights_are_noticed() -> None:
    purifier, x = projection(smooth_decoder()), images(2)
    with torch.no_grad():
        before = purifier(x)
        purifier.decoder[2].weight.mul_(0.1)  # type: ignore[index, union-attr]
        after = purifier(x)
        anew = projection(copy.deepcopy(purifier.decoder))(x)
    assert not torch.allclose(before, after)
    assert torch.equal(after, anew)


def test_copies_and_variants() -> None:
    purifier, x = projection(smooth_decoder()), images(2)
    with torch.no_grad():
        expected = purifier(x)
        for twin in (copy.deepcopy(purifier), pickle.loads(pickle.dumps(purifier))):
            assert torch.equal(twin(x), expected)
        fewer = purifier.with_inference(candidates=1, steps=0)
        assert not torch.allclose(fewer(x), expected)
        assert torch.equal(purifier(x), expected)
    assert fewer.decoder is purifier.decoder


def test_impossible_projections() -> None:
    with pytest.raises(ValueError, match="`beta` above 0, but got 0"):
        projection(smooth_decoder(), beta=0)
    with pytest.raises(ValueError, match="`candidates` above 0 without an `encoder`"):
        projection(smooth_decoder(), inference=InferenceBudget(candidates=0))
    with pytest.raises(ValueError, match="`candidates` above 0 without an `encoder`"):
        projection(smooth_decoder()).with_inference(candidates=0, encoder_proposal=True)
    with pytest.raises(ValueError, match=r"fields of InferenceBudget.*but got \['step'\]"):
        projection(smooth_decoder()).with_inference(step=1)
