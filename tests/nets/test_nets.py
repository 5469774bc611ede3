from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust.nets.architectures import Architecture, Conv, architecture
from genrobust.nets.banks import DecoderBank, DiscriminatorBank, EncoderBank, convolutional_features
from genrobust.randomness import isolated_rng

# Rows are (channels, kernel, stride, padding). E-ABS Table 9; the last MNIST row has no padding in print.
TABLE_9: dict[str, dict[str, Any]] = {
    "eabs-mnist": {
        "input": (1, 28),
        "latents": 10,
        "encoder": [(16, 5, 2, 2), (32, 5, 2, 2), (64, 5, 2, 2), (64, 4, 1, 1)],
        "encoder_sizes": [14, 7, 4, 3],
        "stem": 32,
        "decoder": [(32, 4, 1, 0), (32, 5, 2, 0), (16, 5, 2, 0), (8, 4, 1, 0), (1, 1, 1, 0)],
        "decoder_sizes": [4, 11, 25, 28, 28],
        "discriminator": [256, 128],
    },
    "eabs-supertraffic": {
        "input": (3, 32),
        "latents": 16,
        "encoder": [(16, 5, 2, 2), (32, 5, 2, 2), (64, 5, 2, 2), (128, 4, 1, 0)],
        "encoder_sizes": [16, 8, 4, 1],
        "stem": 64,
        "decoder": [(64, 4, 1, 0), (64, 4, 2, 1), (32, 4, 2, 1), (16, 4, 2, 1), (3, 1, 1, 0)],
        "decoder_sizes": [4, 8, 16, 32, 32],
        "discriminator": [256, 128],
    },
    "eabs-svhn": {
        "input": (3, 32),
        "latents": 40,
        "encoder": [(32, 5, 2, 2), (64, 5, 2, 2), (128, 5, 2, 2), (128, 4, 1, 0)],
        "encoder_sizes": [16, 8, 4, 1],
        "stem": 64,
        "decoder": [(64, 4, 1, 0), (64, 4, 2, 1), (32, 4, 2, 1), (16, 4, 2, 1), (3, 1, 1, 0)],
        "decoder_sizes": [4, 8, 16, 32, 32],
        "discriminator": [512, 256],
    },
}
# Schott et al. 2018; the fourth encoder row (16, 5, 1, 0) is the head: 2 x 8 latents.
ABS_TABLE: dict[str, Any] = {
    "input": (1, 28),
    "latents": 8,
    "encoder": [(32, 5, 1, 0), (32, 4, 2, 0), (64, 3, 2, 0)],
    "encoder_sizes": [24, 11, 5],
    "stem": None,
    "decoder": [(32, 4, 1, 0), (16, 5, 2, 0), (16, 5, 2, 0), (1, 4, 1, 0)],
    "decoder_sizes": [4, 11, 25, 28],
    "discriminator": [256, 128],
}
TABLES = TABLE_9 | {"abs-mnist": ABS_TABLE}
PRESETS = [*TABLES, "lenet-mnist", "lenet-wide"]
ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU}


def row_of(layer: nn.Conv2d | nn.ConvTranspose2d, networks: int) -> tuple[int, int, int, int]:
    assert layer.kernel_size[0] == layer.kernel_size[1]
    assert isinstance(layer.padding[0], int)
    return layer.out_channels // networks, layer.kernel_size[0], layer.stride[0], layer.padding[0]


def random_networks(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """Draws statistics and affine maps of normalisation anew, so that no layer is an identity."""
    with isolated_rng(seed), torch.no_grad():
        for norm in norms_of(module):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.normal_(1, 0.3)
            norm.bias.normal_()
    return module.eval()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def without_dropout(arch: Architecture) -> Architecture:
    return replace(arch, dropout=0.0)


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if not isinstance(m, nn.Sequential) and not list(m.children()))


def norms_of(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def copy_group(source: nn.Module, target: nn.Module, *, index: int, networks: int) -> None:
    """Copies network `index` out of a bank, whose tensors hold the networks one after another."""

    def parametrised(module: nn.Module) -> list[nn.Module]:
        return [layer for layer in layers_of(module) if list(layer.parameters())]

    for bank, single in zip(parametrised(source), parametrised(target), strict=True):
        for name, tensor in single.state_dict().items():
            whole = bank.state_dict()[name]
            part = whole if whole.ndim == 0 else whole.chunk(networks)[index]
            tensor.copy_(part.reshape(tensor.shape))


def plain_encoder(arch: Architecture) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels, size = arch.input_shape[:2]
    for row in arch.encoder:
        layers += [
            nn.Conv2d(channels, row.channels, row.kernel, row.stride, row.padding, bias=False),
            nn.BatchNorm2d(row.channels),
            ACTIVATIONS[arch.encoder_activation](),
        ]
        channels, size = row.channels, (size + 2 * row.padding - row.kernel) // row.stride + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, 2 * arch.latent_dim))


def plain_decoder(arch: Architecture) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = arch.latent_dim
    if arch.decoder_stem is not None:
        layers.append(nn.Linear(channels, arch.decoder_stem))
        channels = arch.decoder_stem
    layers.append(nn.Unflatten(1, (channels, 1, 1)))
    for row in arch.decoder[:-1]:
        layers += [
            nn.ConvTranspose2d(channels, row.channels, row.kernel, row.stride, row.padding, bias=False),
            nn.BatchNorm2d(row.channels),
            ACTIVATIONS[arch.decoder_activation](),
        ]
        channels = row.channels
    last = arch.decoder[-1]
    layers += [
        nn.ConvTranspose2d(channels, last.channels, last.kernel, last.stride, last.padding),
        nn.Sigmoid(),
    ]
    return nn.Sequential(*layers)


def plain_discriminator(arch: Architecture) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = arch.latent_dim
    for hidden in arch.discriminator:
        layers += [nn.Linear(width, hidden), nn.LeakyReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, 1), nn.Flatten(0))


@pytest.mark.parametrize("name", TABLES)
def test_encoder_layers_are_those_of_the_table(name: str) -> None:
    table, arch = TABLES[name], architecture(name)
    channels, size = table["input"]
    bank = EncoderBank(arch, encoders=1)
    convs = [layer for layer in bank.features if isinstance(layer, nn.Conv2d)]
    assert [row_of(conv, 1) for conv in convs] == table["encoder"]
    inputs = [channels, *(row[0] for row in table["encoder"])]
    expected = [
        (row[0], before, row[1], row[1]) for before, row in zip(inputs, table["encoder"], strict=False)
    ]
    assert [tuple(conv.weight.shape) for conv in convs] == expected

    shapes = []
    for conv in convs:
        conv.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    mean, log_variance = bank.eval()(torch.zeros(2, 1, channels, size, size))
    rows = zip(table["encoder"], table["encoder_sizes"], strict=True)
    assert shapes == [(row[0], side, side) for row, side in rows]
    assert mean.shape == log_variance.shape == (2, 1, table["latents"])
    side = table["encoder_sizes"][-1]
    assert tuple(bank.head.weight.shape) == (2 * table["latents"], inputs[-1], side, side)


@pytest.mark.parametrize("name", TABLES)
def test_decoder_layers_are_those_of_the_table(name: str) -> None:
    table, arch, networks = TABLES[name], architecture(name), 2
    channels, size = table["input"]
    bank = DecoderBank(arch, decoders=networks).eval()
    convs = [layer for layer in bank.layers if isinstance(layer, nn.ConvTranspose2d)]
    assert [row_of(conv, networks) for conv in convs] == table["decoder"]
    first = table["stem"] or table["latents"]
    inputs = [first, *(row[0] for row in table["decoder"])]
    expected = [
        (networks * before, row[0], row[1], row[1])
        for before, row in zip(inputs, table["decoder"], strict=False)
    ]
    assert [tuple(conv.weight.shape) for conv in convs] == expected
    stems = [tuple(layer.weight.shape) for layer in bank.layers if isinstance(layer, nn.Conv2d)]
    assert stems == ([(networks * table["stem"], table["latents"], 1, 1)] if table["stem"] else [])

    shapes = []
    for conv in convs:
        conv.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    assert bank(torch.zeros(3, networks, table["latents"])).shape == (3, networks, channels, size, size)
    rows = zip(table["decoder"], table["decoder_sizes"], strict=True)
    assert shapes == [(networks * row[0], side, side) for row, side in rows]


@pytest.mark.parametrize("name", TABLES)
def test_discriminator_layers_are_those_of_the_table(name: str) -> None:
    table = TABLES[name]
    bank = DiscriminatorBank(architecture(name), discriminators=1)
    widths = [table["latents"], *table["discriminator"], 1]
    weights = [tuple(layer.weight.shape) for layer in bank.layers if isinstance(layer, nn.Conv1d)]
    assert weights == [(after, before, 1) for before, after in pairwise(widths)]
    assert bank(torch.zeros(5, 1, table["latents"])).shape == (5, 1)


@pytest.mark.parametrize(
    ("name", "activation"),
    [(name, nn.LeakyReLU if name in TABLE_9 else nn.ELU) for name in TABLES],
)
def test_every_encoder_convolution_has_norm_and_activation(name: str, activation: type[nn.Module]) -> None:
    features = convolutional_features(architecture(name))
    convolutions = len(TABLES[name]["encoder"])
    assert [type(layer) for layer in features] == [
        *[nn.Conv2d, nn.BatchNorm2d, activation] * convolutions,
        nn.Dropout,
    ]


@pytest.mark.parametrize(
    ("name", "activation"), [(name, nn.ReLU if name in TABLE_9 else nn.ELU) for name in TABLES]
)
def test_every_decoder_convolution_but_the_last_has_norm_and_activation(
    name: str, activation: type[nn.Module]
) -> None:
    stem = [nn.Conv2d, nn.Dropout] if TABLES[name]["stem"] else []
    hidden = len(TABLES[name]["decoder"]) - 1
    assert [type(layer) for layer in DecoderBank(architecture(name), decoders=1).layers] == [
        *stem,
        *[nn.ConvTranspose2d, nn.BatchNorm2d, activation] * hidden,
        nn.ConvTranspose2d,
        nn.Sigmoid,
    ]


@pytest.mark.parametrize(("name", "widths"), [("lenet-mnist", [6, 16, 120]), ("lenet-wide", [32, 64, 256])])
def test_lenets_have_two_convolutions_and_mirror_them(name: str, widths: list[int]) -> None:
    arch = architecture(name)
    assert [layer.channels for layer in arch.encoder] == widths
    assert [arch.decoder_stem, *(layer.channels for layer in arch.decoder)] == [*widths[::-1], 1]
    mean, _ = EncoderBank(arch, encoders=1).eval()(torch.zeros(2, 1, 1, 28, 28))
    assert mean.shape == (2, 1, arch.latent_dim)
    assert DecoderBank(arch, decoders=1).eval()(mean).shape == (2, 1, 1, 28, 28)


@pytest.mark.parametrize("name", PRESETS)
def test_chunks_are_bounded_by_what_a_decoder_computes(name: str) -> None:
    arch = replace(architecture(name), decoder_stem=None)
    bank = DecoderBank(arch, decoders=1).eval()
    values = []
    for layer in layers_of(bank):
        layer.register_forward_hook(lambda _, __, output: values.append(output.numel()))
    bank(torch.zeros(1, 1, arch.latent_dim))
    assert sum(values) <= bank.activations <= 2 * sum(values)


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match=r"architecture out of \['abs-mnist', .*\], but got 'eabs'"):
        architecture("eabs")


@pytest.mark.parametrize("kind", ["eabs", "abs"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_decoder_bank_is_as_many_separate_decoders(
    kind: str, training: bool, architectures: dict[str, Architecture]
) -> None:
    arch = without_dropout(architectures[kind])
    bank = random_networks(DecoderBank(arch, decoders=3)).train(training)
    separate = [plain_decoder(arch).train(training) for _ in range(3)]
    for index, decoder in enumerate(separate):
        copy_group(bank, decoder, index=index, networks=3)
    z = drawn(5, 3, arch.latent_dim).requires_grad_()
    expected = torch.stack([decoder(z[:, k]) for k, decoder in enumerate(separate)], 1)
    actual = bank(z)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert (actual[:, 0] - actual[:, 1]).abs().max() > 0.05

    weights = drawn(*actual.shape)
    [gradient] = torch.autograd.grad((weights * actual).sum(), z)
    [expected_gradient] = torch.autograd.grad((weights * expected).sum(), z)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    for index, norm in enumerate(norms_of(bank)):
        means = torch.cat([norms_of(decoder)[index].running_mean for decoder in separate])
        torch.testing.assert_close(norm.running_mean, means)


def test_a_decoder_bank_of_a_preset_is_as_many_separate_decoders() -> None:
    arch = architecture("eabs-mnist")
    bank = random_networks(DecoderBank(arch, decoders=10))
    z = drawn(2, 10, arch.latent_dim)
    with torch.no_grad():
        images = bank(z)
        for index in range(10):
            decoder = plain_decoder(arch).eval()
            copy_group(bank, decoder, index=index, networks=10)
            torch.testing.assert_close(images[:, index], decoder(z[:, index]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_a_shared_decoder_takes_any_number_of_classes(
    classes: int, training: bool, architectures: dict[str, Architecture]
) -> None:
    arch = without_dropout(architectures["eabs"])
    bank = random_networks(DecoderBank(arch, decoders=1)).train(training)
    decoder = plain_decoder(arch).train(training)
    copy_group(bank, decoder, index=0, networks=1)
    z = drawn(4, classes, arch.latent_dim)
    images = bank(z)
    assert images.shape == (4, classes, *arch.input_shape)
    torch.testing.assert_close(images.flatten(0, 1), decoder(z.flatten(0, 1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["eabs", "abs"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_an_encoder_bank_is_as_many_separate_encoders(
    kind: str, training: bool, architectures: dict[str, Architecture]
) -> None:
    arch = without_dropout(architectures[kind])
    bank = random_networks(EncoderBank(arch, encoders=3)).train(training)
    separate = [plain_encoder(arch).train(training) for _ in range(3)]
    for index, encoder in enumerate(separate):
        copy_group(bank, encoder, index=index, networks=3)
    x = drawn(5, 3, *arch.input_shape)
    mean, log_variance = bank(x)
    for index, encoder in enumerate(separate):
        expected_mean, expected_log_variance = encoder(x[:, index]).chunk(2, dim=1)
        torch.testing.assert_close(mean[:, index], expected_mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(log_variance[:, index], expected_log_variance, rtol=0, atol=1e-5)
    assert (mean[:, 0] - mean[:, 1]).abs().max() > 0.05


def test_a_discriminator_bank_is_as_many_separate_discriminators(
    architectures: dict[str, Architecture],
) -> None:
    arch = architectures["eabs"]
    bank = DiscriminatorBank(arch, discriminators=3)
    z = drawn(5, 3, arch.latent_dim)
    logits = bank(z)
    for index in range(3):
        discriminator = plain_discriminator(arch)
        copy_group(bank, discriminator, index=index, networks=3)
        torch.testing.assert_close(logits[:, index], discriminator(z[:, index]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_a_shared_discriminator_takes_any_number_of_classes(
    classes: int, architectures: dict[str, Architecture]
) -> None:
    arch = architectures["eabs"]
    bank, discriminator = DiscriminatorBank(arch, discriminators=1), plain_discriminator(arch)
    copy_group(bank, discriminator, index=0, networks=1)
    z = drawn(4, classes, arch.latent_dim)
    torch.testing.assert_close(bank(z).flatten(), discriminator(z.flatten(0, 1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 4, 6])
def test_wrong_number_of_classes(classes: int, architectures: dict[str, Architecture]) -> None:
    arch = architectures["eabs"]
    z = torch.zeros(2, classes, arch.latent_dim)
    with pytest.raises(ValueError, match=f"latents of 3 classes, but got {classes}"):
        DecoderBank(arch, decoders=3)(z)
    with pytest.raises(ValueError, match=f"latents of 3 classes, but got {classes}"):
        DiscriminatorBank(arch, discriminators=3)(z)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_wrong_number_of_images_for_an_encoder_bank(
    count: int, architectures: dict[str, Architecture]
) -> None:
    arch = architectures["eabs"]
    with pytest.raises(ValueError, match=f"3 .*but got {count}"):
        EncoderBank(arch, encoders=3)(torch.zeros(2, count, *arch.input_shape))


def test_dropout_is_where_the_paper_puts_it(architectures: dict[str, Architecture]) -> None:
    arch = replace(architectures["eabs"], dropout=1.0)
    features = convolutional_features(arch).train()
    assert features(torch.rand(2, *arch.input_shape)).abs().max() == 0  # after the last convolution
    bank = DecoderBank(arch, decoders=2)
    assert isinstance(bank.layers[0], nn.Conv2d)
    assert isinstance(bank.layers[1], nn.Dropout)  # after the linear layer
    assert sum(isinstance(layer, nn.Dropout) for layer in bank.layers) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_shape": (1, 8, 6)}, r"square images, but got \(1, 8, 6\)"),
        ({"input_shape": (1, 10, 10)}, r"ends at \(1, 10, 10\), but it ends at \(1, 8, 8\)"),
        ({"input_shape": (3, 8, 8)}, r"ends at \(3, 8, 8\), but it ends at \(1, 8, 8\)"),
        ({"decoder": (Conv(6, 2), Conv(4, 2, 2), Conv(2, 2, 2))}, r"ends at \(2, 8, 8\)"),
        ({"decoder": (Conv(6, 2), Conv(1, 2, 2))}, r"ends at \(1, 4, 4\)"),
        ({"decoder": ()}, "decoder"),
        ({"encoder": (Conv(4, 3, 2, 1), Conv(6, 5))}, r"encoder that fits \(1, 8, 8\)"),
        ({"encoder": ()}, "encoder"),
    ],
    ids=[
        "rectangle",
        "size",
        "channels",
        "decoder channels",
        "decoder size",
        "no decoder",
        "encoder kernel",
        "no encoder",
    ],
)
def test_impossible_architecture(
    change: dict[str, Any], message: str, architectures: dict[str, Architecture]
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(architectures["eabs"], **change)
