"""Models come back as they were saved, or not at all."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genrobust import Classifier, Purified, load_plugin
from genrobust.data import dataset_info
from genrobust.models import (
    ABS,
    CNN,
    EABS,
    MLP,
    ABSConfig,
    Adversary,
    BayesianMLP,
    BayesianMLPConfig,
    CNNConfig,
    ConditionalFlow,
    ConvNet,
    ConvNetConfig,
    DeepBayes,
    DeepBayesConfig,
    EABSConfig,
    FlowConfig,
    MLPConfig,
    PixelCNN,
    PixelCNNConfig,
    PoolCNN,
    PoolCNNConfig,
    VaDEClassifier,
    VaDEConfig,
)
from genrobust.models._amortized import SamplingBudget
from genrobust.models.eabs import PUBLISHED_BUDGET
from genrobust.nets.architectures import Architecture, Conv
from genrobust.nets.conditionals import ConditionalArchitecture, graph
from genrobust.purifiers import MADVAE, ComDefend, ComDefendConfig, LatentProjection, MADVAEConfig
from genrobust.zoo import registered
from genrobust.zoo.weight_files import Precision, config_from_dict, read_model, save_model

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
    "flow": lambda: ConditionalFlow(
        FlowConfig(num_classes=3, input_shape=SHAPE, patch=2, couplings=3, hidden=4, levels=16)
    ),
    "pixelcnn": lambda: PixelCNN(
        PixelCNNConfig(num_classes=3, input_shape=SHAPE, patch=2, hidden=4, layers=1, levels=16)
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

NEEDS_ZUKO = pytest.mark.skipif(find_spec("zuko") is None, reason="zuko is not installed")
each_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=NEEDS_ZUKO) if name == "flow" else name for name in MODELS]
)


@each_model
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


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@each_model
def test_a_precision_rounds_what_has_axes_and_nothing_else(
    name: str, precision: Precision, tmp_path: Path
) -> None:
    model: Classifier = MODELS[name]()
    save_model(model, tmp_path / "model.safetensors", precision=precision)
    loaded = read_model(tmp_path / "model.safetensors").state_dict()
    for key, value in model.state_dict().items():
        rounded = value.to(getattr(torch, precision)) if value.ndim >= 2 else value
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], rounded.to(value.dtype)), key
    whole = tmp_path / "whole.safetensors"
    save_model(model, whole)
    assert (tmp_path / "model.safetensors").stat().st_size < whole.stat().st_size


@each_model
def test_inference_needs_nothing_that_a_shipped_file_leaves_out(name: str, tmp_path: Path) -> None:
    model: Classifier = MODELS[name]()
    path, again = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    save_model(model, path, for_inference=True)
    loaded = read_model(path)
    save_model(loaded, again)
    assert read_model(again).state_dict().keys() == loaded.state_dict().keys()
    left_out = {"abs": {"encoders"}, "purified": {"purifier.scale", "classifier.encoders"}}.get(name, set())
    missing = model.state_dict().keys() - loaded.state_dict().keys()
    assert {part for part in left_out if any(key.startswith(f"{part}.") for key in missing)} == left_out
    assert all(any(key.startswith(f"{part}.") for part in left_out) for key in missing)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.predict(x).probabilities, model.predict(x).probabilities)


def test_a_part_that_is_left_out_is_named_by_what_needs_it(tmp_path: Path) -> None:
    save_model(MODELS["abs"](), tmp_path / "model.safetensors", for_inference=True)
    model = read_model(tmp_path / "model.safetensors")
    assert isinstance(model, ABS)
    with pytest.raises(ValueError, match="a model with its encoders"):
        model.with_inference(encoder_proposal=True)(torch.rand(1, 1, 8, 8))


def test_weights_that_do_not_fit_a_precision(tmp_path: Path) -> None:
    model = MODELS["mlp"]()
    with torch.no_grad():
        model.layers[0].weight[0, 0] = 1e5
    save_model(model, tmp_path / "wide.safetensors", precision="bfloat16")
    with pytest.raises(ValueError, match=r"fit float16, but layers\.0\.weight has a maximum of 100000"):
        save_model(model, tmp_path / "model.safetensors", precision="float16")
    with pytest.raises(ValueError, match="`precision` out of"):
        save_model(model, tmp_path / "model.safetensors", precision="int8")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["wide.safetensors"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        read_model(tmp_path / "none.safetensors")


def test_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(MODELS["cnn"](), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="to be a safetensors file"):
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


PLUGIN = """
from dataclasses import dataclass

import torch
from torch import nn

from genrobust import Classifier, register_model


@dataclass(frozen=True, kw_only=True)
class FlatConfig:
    num_classes: int
    input_shape: tuple[int, int, int]


class Flat(Classifier):
    def __init__(self, config: FlatConfig) -> None:
        super().__init__(input_shape=config.input_shape, num_classes=config.num_classes)
        self.config = config
        self.layer = nn.LazyLinear(config.num_classes)
        self.layer(torch.zeros(1, *config.input_shape).flatten(1))

    def logits(self, x):
        return self.layer(x.flatten(1))


@register_model("flat", classes={Flat: FlatConfig})
def flat(info):
    return Flat(FlatConfig(num_classes=info.num_classes, input_shape=info.input_shape))
"""


@pytest.mark.slow
def test_a_strangers_class_is_read_where_its_plugin_is_loaded_and_named_where_it_is_not(
    tmp_path: Path, registrations_taken_back: None
) -> None:
    plugin, weights = tmp_path / "mine.py", tmp_path / "flat.safetensors"
    plugin.write_text(PLUGIN)
    module = load_plugin(plugin)
    model = registered.MODELS.get("flat").build(dataset_info("digits"))
    save_model(model, weights)
    loaded = read_model(weights)
    assert type(loaded) is module.Flat
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x), model(x))
    script = "import sys; from genrobust.zoo import read_model; read_model(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(weights)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "got 'Flat'; load mine.py first, by `--plugin` or `genrobust.load_plugin`" in done.stderr


def test_a_class_that_only_bears_a_registered_name_is_not_saved(tmp_path: Path) -> None:
    impostor = type("CNN", (CNN,), {})
    with pytest.raises(ValueError, match="a class that `register_model` was told"):
        save_model(impostor(MODELS["cnn"]().config), tmp_path / "model.safetensors")


def test_a_file_brings_no_code(tmp_path: Path) -> None:
    for name in ("os.system", "subprocess.Popen", "builtins.eval"):
        path = tmp_path / "model.safetensors"
        save_file({"x": torch.zeros(1)}, path, metadata={"model": name, "config": '{"command": "true"}'})
        with pytest.raises(ValueError, match="registered class"):
            read_model(path)
