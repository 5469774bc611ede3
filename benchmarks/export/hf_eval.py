"""Evaluation results of the Hugging Face Hub: files `.eval_results/*.yaml` of a model's repository.

The fields are those of https://github.com/huggingface/hub-docs/blob/main/eval_results.yaml, which
`huggingface_hub` 1.4 and later read.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from ..._console import plain
from ..report.writing import write_text
from .content import Content

__all__ = ["write_hf_eval"]

FOLDER = ".eval_results"


def write_hf_eval(content: Content, out: Path) -> tuple[Path, ...]:
    """Writes one folder per model, whose content goes into the model's repository."""
    paths = []
    for model in content.results.models:
        path = out / model / FOLDER / f"{content.results.suite.name}.yaml"
        write_text(path, "\n".join(_lines(content, model)) + "\n")
        paths.append(path)
    return tuple(paths)


def _lines(content: Content, model: str) -> Iterator[str]:
    """Yields an entry for clean images, and one for the worst of all attacks of every norm."""
    for drawn in content.accuracies(model, headline=True):
        row = drawn.row
        task = row.key if row.norm is None else f"{row.key}-{row.epsilon:g}"
        yield "- dataset:"
        yield f"    id: {_scalar(content.benchmark or content.dataset)}"
        yield f"    task_id: {_scalar(task)}"
        yield f"  value: {round(100 * drawn.majority.value, 4)!r}"
        yield f"  notes: {_scalar('In percent. ' + content.described(drawn))}"


def _scalar(text: str) -> str:
    """Returns a text as YAML and JSON write it, on one line."""
    return json.dumps(plain(text).replace("\n", " "), ensure_ascii=False)
