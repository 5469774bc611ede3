"""Weights that are damaged, or made to harm: one error names the file, before memory is spent."""

import json
import math
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from genrobust import zoo
from genrobust._tensors import TensorFile, shapes_alone
from genrobust.models import ABS, CNN, ABSConfig, CNNConfig
from genrobust.nets.architectures import Architecture, Conv
from genrobust.zoo import list_models, load_detectors, read_model, save_model
from genrobust.zoo import weight_files as files

ARCH = Architecture(
    input_shape=(1, 8, 8),
    latent_dim=2,
    encoder=(Conv(3, 4, 2), Conv(4, 3)),
    decoder=(Conv(3, 4), Conv(1, 4, 2, 1)),
    decoder_stem=3,
    discriminator=(5,),
)
Weights = dict[str, Tensor]
SHIPPED = Path(str(zoo._WEIGHTS))


@pytest.fixture
def rewritten(tmp_path: Path) -> Callable[..., Path]:
    """Gives a function that writes a model and changes its file."""

    def write(model: Any, change: Callable[[Weights], object] | None = None, /, **metadata: str) -> Path:
        path = tmp_path / "model.safetensors"
        save_model(model, path)
        file = TensorFile.open(path)
        weights = file.read()
        if change is not None:
            change(weights)
        save_file(weights, path, metadata={**file.metadata, **metadata})
        return path

    return write


def cnn() -> CNN:
    return CNN(CNNConfig(num_classes=3, architecture=ARCH))


def filled(name: str, value: float) -> Callable[[Weights], object]:
    return lambda weights: weights.update({name: torch.full_like(weights[name], value)})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_are_finite(value: float, rewritten: Callable[..., Path]) -> None:
    path = rewritten(cnn(), filled("head.weight", value))
    with pytest.raises(ValueError, match=r"finite numbers in .*model\.safetensors, but 'head\.weight' has"):
        read_model(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "`temperature` in .* to be above 0, but got 0.0"),
        (-1.0, "`temperature` in .* to be above 0, but got -1.0"),
        (math.nan, "finite numbers in .*, but 'temperature' has others"),
        (math.inf, "finite numbers in .*, but 'temperature' has others"),
    ],
)
def test_a_temperature_is_above_0(value: float, message: str, rewritten: Callable[..., Path]) -> None:
    model = ABS(ABSConfig(num_classes=3, architecture=ARCH))
    with pytest.raises(ValueError, match=message):
        read_model(rewritten(model, filled("temperature", value)))


def test_a_variance_is_not_negative(rewritten: Callable[..., Path]) -> None:
    name = next(key for key in cnn().state_dict() if key.endswith("running_var"))
    with pytest.raises(ValueError, match=r"variances of at least 0 .*running_var` has a minimum of -1"):
        read_model(rewritten(cnn(), filled(name, -1.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("head.weight"), r"to hold the tensor 'head\.weight', but it has none"),
        (lambda w: w.update(more=torch.zeros(1)), "to hold no tensor 'more'"),
        (lambda w: w.update({"head.weight": w["head.weight"][:1].clone()}), "but got shape"),
        (lambda w: w.update({"head.weight": w["head.weight"].int()}), "but got shape .* and type I32"),
        (lambda w: w.update({"head.weight": w["head.weight"].bool()}), "but got shape .* and type BOOL"),
    ],
    ids=["missing", "surplus", "shape", "integer", "bool"],
)
def test_tensors_are_those_of_the_config(
    change: Callable[[Weights], object], message: str, rewritten: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=message) as found:
        read_model(rewritten(cnn(), change))
    assert "model.safetensors" in str(found.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {"config": "[]"},
        {"config": "null"},
        {"config": "no JSON"},
        {"config": "[" * 100_000},
        {"config": '{"num_classes": "many"}'},
        {"config": '{"num_classes": true}'},
        {"config": '{"num_classes": 10, "architecture": {}}'},
        {"model": "Purified", "config": "{}"},
        {"model": "Purified", "config": '{"purifier": 1, "classifier": null}'},
        {"model": "Purified", "config": '{"purifier": {"model": [], "config": 3}, "classifier": {}}'},
        {"model": "ABS", "config": '{"architecture": [[[]]]}'},
        {"model": "Stranger", "plugins": "{3"},
    ],
    ids=range(12),
)
def test_a_config_that_describes_nothing_is_named_with_its_file(
    metadata: dict[str, str], rewritten: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read_model(rewritten(cnn(), **metadata))


@pytest.mark.parametrize("classes", [10**5, 10**9, 10**18, 10**30])
def test_a_config_cannot_ask_for_more_than_the_file_holds(
    classes: int, rewritten: Callable[..., Path]
) -> None:
    path = rewritten(cnn())
    config = {**json.loads(TensorFile.open(path).metadata["config"]), "num_classes": classes}
    path = rewritten(cnn(), config=json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(("name", "dataset"), list_models(), ids=lambda value: str(value))
def test_every_shipped_model_has_its_shapes_without_memory(name: str, dataset: str) -> None:
    file = TensorFile.open(SHIPPED / f"{name}-{dataset}.safetensors")
    with shapes_alone():
        blank = files._Plan.of(file).build()
    assert all(values.is_meta for values in blank.state_dict().values())
    assert file.shapes.keys() <= blank.state_dict().keys()


def test_loading_leaves_the_global_generators_alone(rewritten: Callable[..., Path]) -> None:
    path = rewritten(cnn())
    state = torch.get_rng_state()
    read_model(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_card_is_the_card_of_its_weights(rewritten: Callable[..., Path], tmp_path: Path) -> None:
    path = rewritten(cnn())
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"weights_sha256": files.sha256_of(path)}))
    read_model(path)
    rewritten(cnn(), filled("head.bias", 2.0))
    with pytest.raises(ValueError, match=r"the file that .*card\.json describes, but its content is another"):
        read_model(path)
    card.write_text("{")
    with pytest.raises(ValueError, match=r"card\.json to be JSON"):
        read_model(path)
    card.unlink()
    read_model(path)


def test_detectors_are_those_of_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("vade-digits", "gmvae-digits"):
        for suffix in (".safetensors", ".json", ".detectors.json"):
            shutil.copy(SHIPPED / f"{other}{suffix}", tmp_path)
    monkeypatch.setattr(zoo, "_WEIGHTS", tmp_path)
    assert load_detectors("vade", dataset="digits")
    shutil.copy(tmp_path / "gmvae-digits.detectors.json", tmp_path / "vade-digits.detectors.json")
    with pytest.raises(ValueError, match=r"vade-digits\.detectors\.json to be the file that"):
        load_detectors("vade", dataset="digits")
