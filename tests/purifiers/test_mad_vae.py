"""MAD-VAE has the layers of Table 5 and the losses of section 2.2."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from genrobust import Purified
from genrobust.data import ImageDataset
from genrobust.purifiers import MADVAE, MADVAEConfig
from genrobust.purifiers.mad_vae import DEFENSE_VAE, VARIANTS
from genrobust.randomness import isolated_rng
from genrobust.training.loop import TrainingConfig, fit

SMALL = MADVAEConfig(num_classes=4, input_shape=(1, 8, 8), latent_dim=5, channels=(4, 5, 6, 7))
WEIGHTS = {"classification_weight": 0.7, "proximity_weight": 0.3, "distance_weight": 0.2}


def small(seed: int = 0, **settings: Any) -> MADVAE:
    with isolated_rng(seed):
        return MADVAE(replace(SMALL, **settings)).double()


def batch(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, clean = torch.rand((2, count, 1, 8, 8), generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 4, clean


def row(layer: nn.Module) -> tuple[int, ...]:
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    return (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0])


def test_the_layers_of_table_5() -> None:
    model = MADVAE()
    convolutions = [row(layer) for layer in model.encoder if isinstance(layer, nn.Conv2d)]
    assert convolutions == [(1, 64, 5, 1, 2), (64, 64, 4, 2, 3), (64, 128, 4, 2, 1), (128, 256, 4, 2, 1)]
    transposed = [row(layer) for layer in model.decoder if isinstance(layer, nn.ConvTranspose2d)]
    assert transposed == [(256, 128, 4, 2, 1), (128, 64, 4, 2, 1), (64, 64, 4, 2, 3), (64, 1, 5, 1, 2)]
    linear = [(layer.in_features, layer.out_features) for layer in (model.mean, model.scale, model.stem)]
    assert linear == [(4096, 128), (4096, 128), (128, 4096)]
    kinds = [type(layer) for layer in model.encoder]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 4


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 10, 16)])
def test_images_of_other_sizes_come_back_in_their_size(shape: tuple[int, int, int]) -> None:
    model = MADVAE(MADVAEConfig(input_shape=shape, channels=(3, 3, 4, 4), latent_dim=4))
    images = model(torch.rand(2, *shape))
    assert images.shape == (2, *shape)
    assert 0 <= images.min() <= images.max() <= 1


def test_the_four_variants() -> None:
    weights = {
        name: (config.classification_weight, config.proximity_weight, config.distance_weight)
        for name, config in VARIANTS.items()
    }
    assert weights == {
        "vanilla": (0, 0, 0),
        "classification": (0.01, 0, 0),
        "proximity": (0, 0.01, 1e-5),
        "combined": (0.1, 0.01, 1e-5),
    }
    assert {config.kl_weight for config in VARIANTS.values()} == {0.1}
    assert [MADVAE(config).centres is None for config in VARIANTS.values()] == [True, True, False, False]


def test_defense_vae_is_the_vanilla_variant_without_the_divergence(make_model: Any) -> None:
    assert replace(DEFENSE_VAE, kl_weight=0.1) == VARIANTS["vanilla"]
    model, (x, y, clean) = small(kl_weight=DEFENSE_VAE.kl_weight), batch()
    classifier = make_model("conv-net", dtype=torch.float64)
    with isolated_rng(0):
        expected = by_hand(model, classifier, x, y, clean)["reconstruction"]
    with isolated_rng(0):
        loss = model.training_loss("autoencoder", x, y, clean=clean, classifier=classifier)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_purified_images_are_decoded_means() -> None:
    model, (x, _, _) = small(), batch()
    features = model.encoder(x).flatten(1)
    expected = torch.sigmoid(
        model.decoder((model.mean(features) @ model.stem.weight.T + model.stem.bias).relu()[:, :, None, None])
    )
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(model(x), model(x))


@torch.no_grad()
def by_hand(model: MADVAE, classifier: nn.Module, x: Tensor, y: Tensor, clean: Tensor) -> dict[str, float]:
    """Every loss, image by image."""
    features = model.encoder(x).flatten(1)
    mean = features @ model.mean.weight.T + model.mean.bias
    scale = (1 + (features @ model.scale.weight.T + model.scale.bias).exp()).log() + 1e-4
    z = mean + scale * torch.randn_like(scale)
    images = model.decode(z)
    pixels = -(clean * images.log() + (1 - clean) * (1 - images).log())
    divergence = 0.5 * (mean**2 + scale**2 - 1 - 2 * scale.log())
    losses = {"reconstruction": float(pixels.mean()), "kl": float(divergence.mean())}
    probabilities = classifier(images).softmax(1)
    losses["classification"] = float(
        -torch.stack([p[k].log() for p, k in zip(probabilities, y, strict=True)]).mean()
    )
    if model.centres is None:
        return losses
    proximity, distance = 0.0, 0.0
    for latent, label in zip(z, y.tolist(), strict=True):
        own = model.centres[label]
        proximity += float((latent - own).norm()) / len(z)
        for other in range(4):
            if other != label:
                both = (latent - model.centres[other]).norm() + (own - model.centres[other]).norm()
                distance += float(both) / 3 / len(z)
    return {**losses, "proximity": proximity, "distance": distance}


@pytest.mark.parametrize("weights", [{}, WEIGHTS], ids=["vanilla", "combined"])
def test_the_loss_by_hand(weights: dict[str, float], make_model: Any) -> None:
    model, (x, y, clean) = small(**weights), batch()
    classifier = make_model("conv-net", dtype=torch.float64)
    with isolated_rng(1):
        parts = by_hand(model, classifier, x, y, clean)
    expected = parts["reconstruction"] + 0.1 * parts["kl"]
    if weights:
        expected += 0.7 * parts["classification"] + 0.3 * parts["proximity"] - 0.2 * parts["distance"]
    with isolated_rng(1):
        loss = model.training_loss("autoencoder", x, y, clean=clean, classifier=classifier)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(
        parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None
    )


def test_the_gradient_of_the_centres() -> None:
    model = small(proximity_weight=0.3, distance_weight=0.2)
    z = torch.randn((6, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) % 3  # class 3 has no image
    assert model.centres is not None
    centres = model.centres.detach().clone()

    def loss(centres: Tensor) -> Tensor:
        model.centres = nn.Parameter(centres)
        return model.centre_loss(z, y)

    (found,) = torch.autograd.grad(model.centre_loss(z, y), model.centres)
    with torch.no_grad():
        for row, column in ((0, 0), (3, 2)):
            step = torch.zeros_like(centres)
            step[row, column] = 1e-6
            slope = (loss(centres + step) - loss(centres - step)) / 2e-6
            assert float(slope) == pytest.approx(float(found[row, column]), rel=1e-5)


def test_centres_by_sgd_are_a_phase_of_their_own(make_model: Any) -> None:
    model = small(**WEIGHTS, centre_rate=0.5)
    assert list(model.phases) == ["autoencoder", "centres"]
    assert model.phases["centres"] == [model.centres]
    assert not any(parameter is model.centres for parameter in model.phases["autoencoder"])
    optimizer = model.make_optimizer("centres", model.phases["centres"], 1e-3)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert isinstance(model.make_optimizer("autoencoder", [model.mean.weight], 1e-3), torch.optim.Adam)
    x, y, clean = batch()
    with isolated_rng(1):
        code = model.encode(x)
        expected = model.centre_loss(code.mean + code.scale * torch.randn_like(code.scale), y)
    classifier = make_model("conv-net", dtype=torch.float64)
    with isolated_rng(1):
        model.training_loss("autoencoder", x, y, clean=clean, classifier=classifier)
        loss = model.training_loss("centres", x, y, clean=clean, classifier=classifier)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert model.mean.weight.grad is None
    assert model.centres is not None
    assert model.centres.grad is not None
    with pytest.raises(ValueError, match="the phase 'autoencoder' of the same images before 'centres'"):
        model.training_loss("centres", x, y, clean=clean, classifier=classifier)


def test_a_step_moves_the_statistics_of_batch_normalisation_once(make_model: Any) -> None:
    x, y, clean = batch()
    classifier = make_model("conv-net", dtype=torch.float64)
    counted = []
    for settings in ({}, {"centre_rate": 0.5}):
        model = small(**WEIGHTS, **settings)
        model.set_parts_training(True)
        with isolated_rng(1):
            for phase in model.phases:
                model.training_loss(phase, x, y, clean=clean, classifier=classifier)
        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        counted.append([(int(norm.num_batches_tracked), norm.running_mean) for norm in norms])
    for (once, mean), (again, other) in zip(*counted, strict=True):
        assert (once, again) == (1, 1)
        torch.testing.assert_close(mean, other)


def test_training_on_pairs_teaches_to_clean(tmp_path: Any, make_model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    patterns = (torch.rand((4, 1, 8, 8), generator=generator) > 0.5).float()
    y = torch.arange(400) % 4
    noisy = (patterns[y] + 0.4 * torch.randn((400, 1, 8, 8), generator=generator)).clamp(0, 1)
    pairs = ImageDataset(
        *("patterns", "train"),
        images=(255 * noisy).to(torch.uint8),
        labels=y,
        class_names=tuple("abcd"),
        clean=(255 * patterns[y]).to(torch.uint8),
    )
    with isolated_rng(0):
        purifier = MADVAE(replace(SMALL, **WEIGHTS, centre_rate=0.5))
    model = Purified(purifier, make_model("conv-net"))
    before = {name: value.clone() for name, value in model.classifier.state_dict().items()}
    assert purifier.centres is not None
    centres = purifier.centres.detach().clone()
    config = TrainingConfig(epochs=12, batch_size=16, learning_rate=5e-3, noise_std=0.0)
    fabric = Fabric(accelerator="cpu", devices=1)
    result = fit(model, pairs, config=config, folder=tmp_path, fabric=fabric, show_progress=False)
    assert result.history[-1]["autoencoder"] < result.history[0]["autoencoder"]
    cleaned = purifier(noisy)
    assert (cleaned - patterns[y]).abs().mean() < 0.7 * (noisy - patterns[y]).abs().mean()
    assert all(torch.equal(value, before[name]) for name, value in model.classifier.state_dict().items())
    assert not torch.equal(purifier.centres, centres)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_weight": -1.0}, "`kl_weight` to be at least 0, but got -1.0"),
        ({"channels": (4, 4)}, r"`channels` of four convolutions, but got \(4, 4\)"),
        ({"input_shape": (1, 7, 8)}, r"`input_shape` of even sides, but got \(1, 7, 8\)"),
        ({"centre_rate": 0.5}, "no `centre_rate` without"),
    ],
)
def test_impossible_configs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MADVAEConfig(**settings)


def test_unknown_phases(make_model: Any) -> None:
    model, (x, y, clean) = small(), batch()
    with pytest.raises(ValueError, match=r"`phase` out of \['autoencoder'\], but got 'centres'"):
        model.training_loss("centres", x, y, clean=clean, classifier=make_model("conv-net"))
    with pytest.raises(ValueError, match="both weights are 0"):
        model.centre_loss(torch.zeros(6, 5, dtype=torch.float64), y)
