from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust.nets import Architecture
from genrobust.nets.architectures import ARCHITECTURES, Conv
from genrobust.nets.banks import DecoderBank
from genrobust.nets.fused import FusedDecoderBank
from genrobust.randomness import isolated_rng

Make = Callable[..., Any]

ODD = {
    "padded entry": (Conv(4, 5, 1, 1), Conv(1, 2, 2)),
    "stride 3": (Conv(4, 3), Conv(2, 4, 3, 1)),
    "few channels, prime size": (Conv(5, 4), Conv(3, 4), Conv(1, 5)),
    "few channels, even size": (Conv(5, 4), Conv(3, 4, 1, 1), Conv(2, 3, 2, 1), Conv(1, 2)),
    "padding past the kernel's half": (Conv(4, 6), Conv(4, 3, 1, 2), Conv(1, 5, 2, 2)),
}


def odd_architecture(layers: tuple[Conv, ...], *, stem: int | None) -> Architecture:
    size = 1
    for layer in layers:
        size = layer.transposed_size(size)
    return Architecture(
        input_shape=(layers[-1].channels, size, size),
        latent_dim=3,
        encoder=(Conv(2, 1),),
        decoder=layers,
        decoder_stem=stem,
        decoder_activation="leaky_relu",
    )


def bank_of(arch: Architecture, decoders: int, dtype: torch.dtype) -> DecoderBank:
    with isolated_rng(0), torch.no_grad():
        bank = DecoderBank(arch, decoders=decoders).eval()
        for layer in bank.modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 1.5)
                layer.weight.uniform_(0.7, 1.3)
                layer.bias.normal_(0, 0.3)
            elif isinstance(layer, nn.ConvTranspose2d):
                layer.weight.mul_(2)
    return bank.to(dtype)


def latents(bank: DecoderBank, arch: Architecture, classes: int) -> Tensor:
    z = torch.randn(3, classes, arch.latent_dim, generator=torch.Generator().manual_seed(1))
    return z.to(next(bank.parameters()).dtype).requires_grad_()


def derivatives(bank: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images, a gradient in the latents, and a gradient of that gradient."""
    images = bank(z)
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(2)).to(images.dtype)
    [gradient] = torch.autograd.grad((images * weights).sum(), z, create_graph=True)
    [second] = torch.autograd.grad(gradient.square().sum(), z)
    return images.detach(), gradient.detach(), second


CASES = {
    **ARCHITECTURES,
    **{name: odd_architecture(layers, stem=None) for name, layers in ODD.items()},
    "stem before a padded entry": odd_architecture(ODD["padded entry"], stem=4),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("vgg16" in name)) for name in CASES]
)
@pytest.mark.parametrize(("decoders", "classes"), [(3, 3), (1, 2)], ids=["bank", "shared"])
def test_fused_decoders_equal_the_training_form(name: str, decoders: int, classes: int) -> None:
    bank = bank_of(CASES[name], decoders, torch.float64)
    z = latents(bank, CASES[name], classes)
    fused = bank.for_inference()
    assert (fused.image_shape, fused.decoders) == (bank.image_shape, decoders)
    for ours, expected in zip(derivatives(fused, z), derivatives(bank, z), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["abs-mnist", "eabs-mnist"])
def test_fused_decoders_in_single_precision(name: str) -> None:
    bank = bank_of(CASES[name], 3, torch.float32)
    z = latents(bank, CASES[name], 3)
    torch.testing.assert_close(bank.for_inference()(z), bank(z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["abs-mnist", "eabs-mnist", "padded entry"])
def test_selected_decoders_are_those_of_their_classes(name: str) -> None:
    bank = bank_of(CASES[name], 4, torch.float64)
    chosen = torch.tensor([2, 0, 2, 3, 3])
    z = latents(bank, CASES[name], 5)
    selected = bank.for_inference().select(chosen)
    assert selected.decoders == 5
    images = torch.stack([bank(z[:, [g]].expand(-1, 4, -1))[:, k] for g, k in enumerate(chosen)], 1)
    torch.testing.assert_close(selected(z), images)
    torch.testing.assert_close(bank.select(chosen)(z), images)


def test_a_shared_decoder_is_its_own_selection() -> None:
    fused = bank_of(CASES["abs-mnist"], 1, torch.float32).for_inference()
    assert fused.select(torch.tensor([0, 0])) is fused
    assert fused.for_inference() is fused


def test_fused_decoders_hold_no_weight_and_follow_no_change() -> None:
    arch = CASES["eabs-mnist"]
    bank = bank_of(arch, 2, torch.float32)
    z = latents(bank, arch, 2)
    fused = bank.for_inference()
    before = fused(z)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.mul_(2)
    assert torch.equal(fused(z), before)
    assert not list(fused.parameters())
    assert not torch.equal(bank.for_inference()(z), before)


def test_the_number_of_classes_is_checked() -> None:
    fused = bank_of(CASES["abs-mnist"], 3, torch.float32).for_inference()
    with pytest.raises(ValueError, match="latents of 3 classes, but got 2"):
        fused(torch.zeros(1, 2, 8))


def test_unknown_layers_are_refused() -> None:
    layers = nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.Tanh())
    with pytest.raises(ValueError, match="layers of a decoder bank, but got Tanh"):
        FusedDecoderBank(layers, decoders=1, activations=1)


def test_norms_without_statistics_are_refused() -> None:
    layers = nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(ValueError, match="norms with running statistics"):
        FusedDecoderBank(layers, decoders=1, activations=1)
