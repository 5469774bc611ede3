"""One name means one thing, wherever in the package it is read."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("src/genrobust", "adapters", "benchmarks")


def modules() -> Iterator[Path]:
    for room in ROOMS:
        yield from (path for path in sorted((ROOT / room).rglob("*.py")) if path.resolve() == path)


def names(path: Path) -> Iterator[str]:
    """The public classes of a module, and its public aliases of types."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.ClassDef(name=name):
                pass
            case ast.Assign(
                targets=[ast.Name(id=name)], value=ast.Subscript(value=ast.Name(id="Literal" | "Callable"))
            ):
                pass
            case _:
                continue
        if not name.startswith("_"):
            yield name


def defined() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for name in names(path):
            found[name].append(str(path.relative_to(ROOT)))
    return found


def test_no_class_and_no_type_is_defined_twice() -> None:
    places = defined()
    assert len(places) > 100
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("source", ["class Norm:\n    pass\n", "Norm = Literal['l2']\n"])
def test_a_second_definition_is_seen(source: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert list(names(path)) == ["Norm"]
