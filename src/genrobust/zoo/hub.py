"""Models on the Hugging Face Hub: `push_to_hub(model, "me/my-model")`, `from_pretrained("me/my-model")`.

A repository, or a folder, holds what a training leaves: the weights `model.safetensors`, whose metadata name
the class and hold its config, and the card `card.json`. A page `README.md` and a `config.json` for the Hub
stand beside them. Nothing in it is code: a model of a class that a plug-in registers needs that plug-in.
"""

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch

from .._files import read_json, sha256_of, write_json
from ..contract import Classifier
from .weight_files import CARD, WEIGHTS, read_model, save_model

try:
    from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
except ImportError as error:
    raise ImportError(
        "Expected huggingface_hub to be installed: pip install 'genrobust[hub]'", name="huggingface_hub"
    ) from error

__all__ = ["HubModel", "from_pretrained", "push_to_hub", "save_pretrained"]

CONFIG = "config.json"  # by which the Hub counts downloads
TAGS = ["adversarial-robustness", "generative-classifier", "genrobust"]

PAGE = """---
{{ card_data }}
---

# {{ name }}

A `{{ kind }}` of genrobust for images of shape {{ shape }} in [0, 1] and {{ classes }} classes.

```python
from genrobust.zoo.hub import from_pretrained

model = from_pretrained("{{ repo_id | default("owner/" ~ name, true) }}")
```
{% if facts %}
| measured | value |
| --- | --- |
{% for fact, value in facts -%}
| {{ fact }} | {{ value }} |
{% endfor %}{% endif %}"""


@final
class HubModel(ModelHubMixin, library_name="genrobust", tags=TAGS):
    """A classifier with the methods of the Hub: `save_pretrained`, `push_to_hub` and `from_pretrained`.

    Attributes:
        model: The classifier, of any class that `register_model` was told.
        card: What its training measured, as `model_card` returns it; empty if that is unknown.
    """

    def __init__(self, model: Classifier, card: Mapping[str, Any] | None = None) -> None:
        self.model, self.card = model, dict(card or {})

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = save_directory / WEIGHTS
        (save_directory / CARD).unlink(missing_ok=True)  # of what was there before
        save_model(self.model, weights)
        _check_whole(self.model, weights)
        digest = sha256_of(weights)
        if self.card:
            write_json(save_directory / CARD, {**self.card, "weights_sha256": digest})
        content = {
            "library_name": "genrobust",
            "library_version": version("genrobust"),
            "class": type(self.model).__name__,
            "input_shape": list(self.model.input_shape),
            "num_classes": self.model.num_classes,
            "weights_sha256": digest,
        }
        write_json(save_directory / CONFIG, content)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> "HubModel":
        del model_kwargs  # the file of weights holds the config
        folder = Path(model_id)
        if not folder.is_dir():
            found = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[WEIGHTS, CARD],
            )
            folder = Path(found)
        model, card = read_model(folder / WEIGHTS), folder / CARD
        return cls(model, read_json(card) if card.is_file() else None)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Returns the page of the repository.

        Args:
            args: Nothing.
            kwargs: `repo_id`, which the page tells readers to load.
        """
        del args
        accuracy = self.card.get("clean_accuracy")
        facts = {name: self.card.get(name) for name in ("dataset", "recipe", "seed")}
        if isinstance(accuracy, Mapping):
            facts["clean accuracy"] = f"{accuracy['value']:.2%} of {accuracy['images']} test images"
        kind = type(self.model).__name__
        known = [str(self.card.get(name, "")) for name in ("model", "dataset")]
        data = ModelCardData(
            library_name="genrobust",
            license=self.card.get("license"),
            pipeline_tag="image-classification",
            tags=TAGS,
        )
        page: ModelCard = ModelCard.from_template(
            data,
            template_str=PAGE,
            name="-".join(filter(None, known)) or kind,
            kind=kind,
            shape=tuple(self.model.input_shape),
            classes=self.model.num_classes,
            facts=[(name, value) for name, value in facts.items() if value is not None],
            **kwargs,
        )
        return page


def save_pretrained(
    model: Classifier, folder: str | os.PathLike[str], *, card: Mapping[str, Any] | None = None
) -> None:
    """Writes the files of a repository into a folder.

    Args:
        model: The model, of any class that `register_model` was told.
        folder: The folder; a `README.md` that is there stays.
        card: What its training measured, as `model_card` returns it.

    Raises:
        ValueError: If the class of the model is not registered, or the model is a variant, such as by
            `with_inference`, whose settings no file of weights holds.

    Example:
        >>> import tempfile
        >>> from genrobust.zoo import load_model, model_card
        >>> from genrobust.zoo.hub import from_pretrained, save_pretrained
        >>> folder = tempfile.mkdtemp()
        >>> model, card = (get("mlp", dataset="digits") for get in (load_model, model_card))
        >>> save_pretrained(model, folder, card=card)
        >>> from_pretrained(folder).num_classes
        10
    """
    HubModel(model, card).save_pretrained(Path(folder))


def push_to_hub(
    model: Classifier,
    repo_id: str,
    *,
    card: Mapping[str, Any] | None = None,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    commit_message: str = "Push a model of genrobust",
) -> str:
    """Uploads a model to a repository of the Hub, which is made if it is not there.

    Args:
        model: The model, of any class that `register_model` was told.
        repo_id: The repository, such as `"me/my-model"`.
        card: What its training measured, as `model_card` returns it.
        private: Whether a new repository is private; None is the owner's setting.
        token: The token of the Hub; None is the stored one.
        branch: The branch; None is `main`.
        create_pr: Whether to open a pull request.
        commit_message: The message of the commit.

    Returns:
        The address of the commit.

    Raises:
        ValueError: As `save_pretrained`.
    """
    done: str = HubModel(model, card).push_to_hub(
        repo_id,
        private=private,
        token=token,
        branch=branch,
        create_pr=create_pr,
        commit_message=commit_message,
        model_card_kwargs={"repo_id": repo_id},
    )
    return done


def from_pretrained(
    place: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Loads a model from a repository of the Hub, or from a folder that a training or this file wrote.

    The weights are read as `read_model` reads them: as data alone, compared with their card.

    Args:
        place: The repository, such as `"me/my-model"`, or the folder.
        revision: Branch, tag or commit; None is `main`.
        token: The token of the Hub; None is the stored one.
        cache_dir: Where downloads are kept; None is the Hub's own folder.
        force_download: Whether to download what is kept.
        local_files_only: Whether to use only what is kept.
        device: The device of the model.

    Raises:
        FileNotFoundError: If the folder has no weights.
        ValueError: If they are no weights of a registered class, or damaged, or not those of the card.
    """
    if Path(place).is_dir():
        return read_model(Path(place) / WEIGHTS).to(device)
    found = HubModel.from_pretrained(
        os.fspath(place),
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        force_download=force_download,
        local_files_only=local_files_only,
    )
    return found.model.to(device)


def _check_whole(model: Classifier, weights: Path) -> None:
    """Checks that a file of weights holds whatever decides a model's answers, so that nothing is lost."""
    mine, written = model.settings(), read_model(weights).settings()
    if lost := [name for name, value in mine.items() if value != written.get(name)]:
        raise ValueError(
            f"Expected a model that its weights and its config describe, but `{lost[0]}` is set beside them: "
            "save the model that it is a variant of, and set this again after loading"
        )
