"""ComDefend: the straight-through gradient of its bits, and its loss by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from genrobust.purifiers import ComDefend, ComDefendConfig
from genrobust.purifiers.comdefend import binarize
from genrobust.randomness import isolated_rng

SMALL = ComDefendConfig(input_shape=(1, 6, 6), bits=3, compression=(4, 5), reconstruction=(5, 4))


@pytest.fixture
def model() -> ComDefend:
    with isolated_rng(0):
        return ComDefend(SMALL).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand((4, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_bits_and_their_gradient() -> None:
    values = torch.tensor([0.0, 0.2, 0.5, 0.500001, 0.9, 1.0], requires_grad=True)
    bits = binarize(values)
    assert bits.tolist() == [0, 0, 0, 1, 1, 1]
    weights = torch.tensor([1.0, -2.0, 3.0, 4.0, 5e7, -6.0])
    (gradient,) = torch.autograd.grad(bits, values, weights)
    assert torch.equal(gradient, weights)


def test_the_published_layers() -> None:
    model = ComDefend()

    def maps(part: nn.Module) -> list[tuple[int, int]]:
        return [(m.in_channels, m.out_channels) for m in part.modules() if isinstance(m, nn.Conv2d)]

    widths = [16, 32, 64, 128, 256, 128, 64, 32]
    assert [after for _, after in maps(model.compression)] == [*widths, 4]
    assert [after for _, after in maps(model.reconstruction)] == [*widths[::-1], 1]
    assert maps(model.compression)[0][0] == 1
    assert maps(model.reconstruction)[0][0] == 4
    coloured = ComDefend(ComDefendConfig(input_shape=(3, 32, 32), compression=(2,), reconstruction=(2,)))
    assert coloured.compress(torch.rand(1, 3, 32, 32)).shape == (1, 12, 32, 32)


def test_an_image_passes_as_bits(model: ComDefend, x: torch.Tensor) -> None:
    code = model.compress(x)
    bits = (code > 0).double()
    torch.testing.assert_close(model(x), model.reconstruct(bits))
    assert model.compress(x).std() > 0
    images = model(x)
    assert images.shape == x.shape
    assert 0 <= images.min() <= images.max() <= 1


def test_the_gradient_passes_the_bits_as_if_they_were_the_sigmoid(model: ComDefend, x: torch.Tensor) -> None:
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad((model(leaf) * weights).sum(), leaf)
    soft = model.compress(leaf).sigmoid()
    bits = (soft.detach() > 0.5).double().requires_grad_()
    (of_bits,) = torch.autograd.grad((model.reconstruct(bits) * weights).sum(), bits)
    (expected,) = torch.autograd.grad(soft, leaf, of_bits)
    torch.testing.assert_close(found, expected)
    assert (found.flatten(1) != 0).any(1).all()


def test_the_loss_by_hand(model: ComDefend, x: torch.Tensor, make_model: Any) -> None:
    clean = 1 - x
    with isolated_rng(3):
        noisy = model.compress(x) - 20 * torch.randn((4, 3, 6, 6), dtype=torch.float64)
    code = 1 / (1 + (-noisy).exp())
    error = (model.reconstruct(code) - clean) ** 2
    expected = (0.5 * error.sum() + 1e-4 * (code**2).sum()) / 4
    labels = torch.zeros(4, dtype=torch.long)
    with isolated_rng(3):
        loss = model.training_loss(
            "autoencoder", x, labels, clean=clean, classifier=make_model("mlp", dtype=torch.float64)
        )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.phases["autoencoder"])


def test_noise_is_for_training_alone(model: ComDefend, x: torch.Tensor) -> None:
    assert not model.randomized
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("settings", [{"bits": 0}, {"noise_std": -1.0}, {"code_weight": float("nan")}])
def test_impossible_configs(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`(bits|noise_std|code_weight)` to be (at least|finite)"):
        ComDefendConfig(**settings)


def test_unknown_phases(model: ComDefend, x: torch.Tensor, make_model: Any) -> None:
    labels = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"`phase` out of \['autoencoder'\], but got 'code'"):
        model.training_loss("code", x, labels, clean=x, classifier=make_model("mlp"))
