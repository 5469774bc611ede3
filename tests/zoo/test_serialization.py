"""Models come back as they were saved, or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genrobust import (
    ABS,
    CNN,
    EABS,
    MADVAE,
    MLP,
    ABSConfig,
    Adversary,
    BayesianMLP,
    BayesianMLPConfig,
    Classifier,
    CNNConfig,
    ComDefend,
    ComDefendConfig,
    ConvNet,
    ConvNetConfig,
    DeepBayes,
    DeepBayesConfig,
    EABSConfig,
    LatentProjection,
    MADVAEConfig,
    MLPConfig,
    PoolCNN,
    PoolCNNConfig,
    Purified,
    VaDEClassifier,
    VaDEConfig,
)
from genrobust.models.amortized import SamplingBudget
from genrobust.models.conditionals import ConditionalArchitecture, graph
from genrobust.models.eabs import PUBLISHED_BUDGET
from genrobust.nets import Architecture, Conv
from genrobust.zoo.serialization import config_from_dict, read_model, save_model

ARCH = Architecture(
    input_shape=(1, 8, 8),
    latent_dim=2,
    encoder=(Conv(3, 4, 2), Conv(4, 3)),
    decoder=(Conv(3, 4), Conv(1, 4, 2, 1)),
    decoder_stem=3,
    discriminator=(5,),
)
SHAPE = (1, 8, 8)
CONDITIONAL = ConditionalArchitecture(input_shape=SHAPE, latent_dim=2, channels=(3,), hidden=(4,))
MODELS = {
    "abs": lambda: ABS(ABSConfig(num_classes=3, architecture=ARCH, beta=0.5)),
    "cnn": lambda: CNN(CNNConfig(num_classes=3, architecture=ARCH)),
    "adv-l2": lambda: CNN(
        CNNConfig(num_classes=3, architecture=ARCH, adversary=Adversary(norm="l2", epsilon=1.5))
    ),
    "bnn": lambda: BayesianMLP(
        BayesianMLPConfig(num_classes=3, input_shape=SHAPE, hidden=(5,), dropout=0.2, samples=3)
    ),
    "mlp": lambda: MLP(MLPConfig(num_classes=3, input_shape=SHAPE, hidden=(5, 4))),
    "pool-cnn": lambda: PoolCNN(PoolCNNConfig(num_classes=3, input_shape=SHAPE, channels=(3, 4), hidden=5)),
    "deep-bayes": lambda: DeepBayes(
        DeepBayesConfig(
            num_classes=3,
            architecture=CONDITIONAL,
            graph=graph("DFZ"),
            likelihood="bernoulli",
            inference=SamplingBudget(samples=3, seed=4),
        )
    ),
    "conv-net": lambda: ConvNet(
        ConvNetConfig(
            num_classes=3, input_shape=SHAPE, convolutions=(Conv(3, 3, 1, 1),), pooled=(0,), hidden=()
        )
    ),
    "purified": lambda: Purified(
        MADVAE(
            MADVAEConfig(
                num_classes=3, input_shape=SHAPE, channels=(3, 3, 4, 4), latent_dim=2, proximity_weight=0.1
            )
        ),
        MODELS["abs"](),
    ),
    "comdefend": lambda: Purified(
        ComDefend(ComDefendConfig(input_shape=SHAPE, bits=2, compression=(3,), reconstruction=(4,))),
        MODELS["mlp"](),
    ),
    "vade": lambda: VaDEClassifier(VaDEConfig(num_classes=3, architecture=ARCH, variance=0.2, alpha=0.5)),
    "dv-abs": lambda: EABS(
        EABSConfig(
            num_classes=3,
            architecture=ARCH,
            adversarial=False,
            inference=replace(PUBLISHED_BUDGET, candidates=7, steps=2),
        )
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    model: Classifier = MODELS[name]()
    if hasattr(model, "temperature"):
        model.temperature.fill_(3.5)
    save_model(model, tmp_path / "model.safetensors")
    loaded = read_model(tmp_path / "model.safetensors")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.predict(x).probabilities, model.predict(x).probabilities)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        read_model(tmp_path / "none.safetensors")


def test_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(MODELS["cnn"](), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="Expected a safetensors file"):
        read_model(path)


def test_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"model": "Diffusion"})
    with pytest.raises(ValueError, match="'Diffusion'"):
        read_model(path)


def test_foreign_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got Linear"):
        save_model(torch.nn.Linear(2, 2), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_purifier_alone_is_no_classifier(tmp_path: Path) -> None:
    projection = LatentProjection(torch.nn.Identity(), latent_dim=2, input_shape=SHAPE)
    model = Purified(projection, MODELS["mlp"]())
    with pytest.raises(ValueError, match="got LatentProjection"):
        save_model(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_unknown_config_field() -> None:
    with pytest.raises(ValueError, match=r"\['depth'\]"):
        config_from_dict(CNNConfig, {"num_classes": 3, "depth": 4})
