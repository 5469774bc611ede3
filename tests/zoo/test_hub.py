"""Models as repositories of the Hugging Face Hub, without a network."""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from genrobust import load_plugin
from genrobust.zoo import load_model, model_card
from genrobust.zoo.registered import MODELS

huggingface_hub = pytest.importorskip("huggingface_hub", minversion="1.4")

from genrobust.zoo.hub import HubModel, from_pretrained, push_to_hub, save_pretrained  # noqa: E402

IMAGES = torch.rand((3, 1, 28, 28), generator=torch.Generator().manual_seed(0))

PLUGIN = """
from dataclasses import dataclass
from torch import nn
from genrobust import Classifier, register_model

@dataclass(frozen=True)
class TinyConfig:
    classes: int = 10

class Tiny(Classifier):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__(input_shape=(1, 28, 28), num_classes=config.classes)
        self.config = config
        self.layer = nn.Linear(784, config.classes)

    def logits(self, x):
        return self.layer(x.flatten(1))

@register_model("tiny", classes={Tiny: TinyConfig})
def tiny(info):
    return Tiny(TinyConfig(classes=info.num_classes))
"""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every request fail at once."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def cnn() -> Any:
    return load_model("cnn", dataset="digits")


def same(first: Any, second: Any) -> bool:
    return torch.equal(first(IMAGES), second(IMAGES)) and first.settings() == second.settings()


@pytest.mark.parametrize("name", ["cnn", "bnn", "deep-bayes", "mad-vae-combined"])
def test_a_shipped_model_comes_back_from_a_folder(name: str, tmp_path: Path) -> None:
    model, card = load_model(name, dataset="digits"), model_card(name, dataset="digits")
    save_pretrained(model, tmp_path, card=card)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "card.json",
        "config.json",
        "model.safetensors",
    }
    assert same(from_pretrained(tmp_path), model)
    found = HubModel.from_pretrained(tmp_path)
    assert same(found.model, model)
    assert found.card == {**card, "weights_sha256": found.card["weights_sha256"]}
    page = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert (page.data.library_name, page.data.license) == ("genrobust", card["license"])
    assert f"# {name}-digits" in page.content
    assert f"| clean accuracy | {card['clean_accuracy']['value']:.2%} of 360 test images |" in page.content
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["class"], config["num_classes"]) == (type(model).__name__, 10)


def test_a_folder_without_a_card(cnn: Any, tmp_path: Path) -> None:
    save_pretrained(cnn, tmp_path, card={"model": "old"})
    save_pretrained(cnn, tmp_path)
    assert not (tmp_path / "card.json").exists()
    assert HubModel.from_pretrained(tmp_path).card == {}


def test_a_training_folder_is_read_as_it_is(cnn: Any, tmp_path: Path) -> None:
    shipped = Path(str(files("genrobust.zoo") / "weights"))
    shutil.copy(shipped / "cnn-digits.safetensors", tmp_path / "model.safetensors")
    shutil.copy(shipped / "cnn-digits.json", tmp_path / "card.json")
    assert same(from_pretrained(tmp_path), cnn)


def test_weights_of_another_card_are_an_error(cnn: Any, tmp_path: Path) -> None:
    save_pretrained(cnn, tmp_path, card=model_card("cnn", dataset="digits"))
    (tmp_path / "card.json").write_text(json.dumps(model_card("cnn", dataset="digits")))
    for load in (from_pretrained, HubModel.from_pretrained):
        with pytest.raises(ValueError, match=r"to be the file that .*card\.json describes"):
            load(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Expected a safetensors file at"):
        from_pretrained(tmp_path)


@pytest.mark.usefixtures("registrations_taken_back")
def test_anybodys_registered_model_is_pushed_and_read(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    load_plugin(plugin)
    found: Any = MODELS.get("tiny")
    model = found.builder(SimpleNamespace(num_classes=10))
    save_pretrained(model, tmp_path / "repository")
    assert same(from_pretrained(tmp_path / "repository"), model)


def test_a_module_of_no_registered_class_is_an_error(tmp_path: Path) -> None:
    from genrobust import as_classifier

    network = as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), IMAGES)
    with pytest.raises(ValueError, match="Expected a model of a class that `register_model` was told"):
        save_pretrained(network, tmp_path)


def test_what_weights_and_config_cannot_tell_is_an_error(tmp_path: Path) -> None:
    model = load_model("eabs", dataset="digits").with_inference(candidates=7)
    with pytest.raises(ValueError, match="but `budget` is set beside them: save the model that"):
        save_pretrained(model, tmp_path)


def test_a_model_comes_from_the_cache_of_the_hub(cnn: Any, tmp_path: Path) -> None:
    """The layout of the cache is the Hub's: a commit by its name, and its files."""
    commit, repository = "0" * 40, tmp_path / "models--me--mine"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    card = model_card("cnn", dataset="digits")
    save_pretrained(cnn, repository / "snapshots" / commit, card=card)
    assert same(from_pretrained("me/mine", cache_dir=tmp_path, local_files_only=True), cnn)
    found = HubModel.from_pretrained("me/mine", cache_dir=tmp_path, local_files_only=True)
    assert found.card["recipe"] == card["recipe"]


def test_what_is_pushed_is_what_is_read(cnn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    class Api:
        def __init__(self, **settings: Any) -> None:
            told.update(settings)

        def create_repo(self, repo_id: str, **settings: Any) -> Any:
            told.update(settings)
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, folder_path: Path, **settings: Any) -> str:
            told.update(settings)
            shutil.copytree(folder_path, tmp_path / "uploaded")
            return "address of the commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    card = model_card("cnn", dataset="digits")
    address = push_to_hub(cnn, "me/mine", card=card, private=True, token="secret", branch="try")
    assert address == "address of the commit"
    assert (told["repo_id"], told["private"], told["token"], told["revision"]) == (
        "me/mine",
        True,
        "secret",
        "try",
    )
    assert same(from_pretrained(tmp_path / "uploaded"), cnn)
    assert 'from_pretrained("me/mine")' in (tmp_path / "uploaded" / "README.md").read_text()
