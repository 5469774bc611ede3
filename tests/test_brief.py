"""What a notebook shows of a result is one line, however many images it holds."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import genrobust
from genrobust import Prediction, adapters, benchmarks
from genrobust._brief import one_line

SETTINGS = ("Config", "Budget", "Architecture", "Conv", "Graph", "Adversary", "Column", "Study", "Overhead")
MANY = ("Tensor", "ndarray", "pa.Table", "Mapping", "tuple[", "list[", "Results", "Verification", "Summary")
FILLINGS: list[Any] = [
    torch.zeros(300, 3, 28, 28),
    np.zeros((300, 784)),
    "a line\n" * 1000,
    tuple(range(1000)),
    {str(number): torch.zeros(10) for number in range(1000)},
    [torch.zeros(100), np.zeros(100)],
    1 / 3,
    None,
]


@dataclass(frozen=True)
class Found:
    """A result with as many fields as the largest."""

    images: Any
    verdict: Any
    one: Any
    two: Any
    three: Any
    four: Any
    five: Any
    six: Any
    seven: Any
    eight: Any
    a_long_name_of_a_field_that_says_what_it_holds: Any

    __repr__ = one_line


def results() -> Iterator[tuple[str, ast.ClassDef]]:
    """Yields every public dataclass that holds many values and is no setting."""
    rooms = [Path(package.__path__[0]) for package in (genrobust, adapters, benchmarks)]
    for path in (path for room in rooms for path in sorted(room.glob("**/*.py"))):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            if node.name.endswith(SETTINGS):
                continue
            if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue
            hints = [ast.unparse(line.annotation) for line in node.body if isinstance(line, ast.AnnAssign)]
            if any(word in hint for word in MANY for hint in hints):
                yield f"{path.parent.name}/{path.name}", node


def test_every_public_result_says_how_it_is_shown() -> None:
    found = {(place, node.name): ast.unparse(node) for place, node in results()}
    assert {"Prediction", "Detector", "Results", "Summary", "Verification"} <= {name for _, name in found}
    silent = [where for where, text in found.items() if "__repr__" not in text]
    assert not silent


@pytest.mark.parametrize("filling", FILLINGS, ids=lambda value: type(value).__name__)
def test_whatever_a_result_holds_it_is_one_line(filling: object) -> None:
    shown = repr(Found(*[filling] * 11))
    assert shown.startswith("Found(images=")
    assert len(shown) < 200
    assert "\n" not in shown


def test_arrays_are_named_by_dtype_and_shape() -> None:
    prediction = Prediction(
        labels=torch.zeros(3, dtype=torch.int64),
        probabilities=torch.zeros(3, 10),
        rejected=torch.zeros(3, dtype=torch.bool),
        scores=torch.zeros(3, 10),
    )
    start = "Prediction(labels=int64[3], probabilities=float32[3, 10], rejected=bool[3], "
    assert repr(prediction).startswith(start)
