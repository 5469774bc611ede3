"""Capabilities are declared: no source asks for an attribute, or for the class of a model of another file."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import genrobust
from genrobust.zoo.registered import CLASSES

PACKAGE = Path(genrobust.__file__).parent
MODELS_AND_WRAPPERS = {
    *CLASSES.names(),
    *("Expectation", "GuardedClassifier", "LatentProjection", "Majority", "MeanPrediction", "NearestMean"),
    *("Probabilities", "Purified", "SelectiveClassifier", "Smoothed", "WrappedModule"),
}

# What asks something else than a model: toolkits and the C library, whose versions differ.
OF_OTHERS = {
    "_malloc.py": 1,
    "adapters/_advertorch.py": 4,
    "adapters/_art_crafting.py": 6,
    "adapters/_autoattack.py": 1,
    "adapters/_foolbox.py": 1,
    "adapters/_torchattacks.py": 1,
}
# A file of weights names the two parts of this one.
OF_ONE_CLASS = {"zoo/weight_files.py": "Purified"}


def calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))


def sources() -> Iterator[tuple[str, Path]]:
    # `adapters` and `benchmarks` may be links, which a search through the package does not follow.
    for folder in (PACKAGE, PACKAGE / "adapters", PACKAGE / "benchmarks"):
        for path in sorted(folder.rglob("*.py")):
            yield path.relative_to(PACKAGE).as_posix(), path


def name_of(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def test_nobody_asks_for_an_attribute() -> None:
    found: Counter[str] = Counter()
    for name, path in dict(sources()).items():
        for call in calls(path):
            defaulted = name_of(call) == "getattr" and len(call.args) == 3
            found[name] += name_of(call) == "hasattr" or defaulted
    asked = {name: count for name, count in found.items() if count > OF_OTHERS.get(name, 0)}
    assert asked == {}


def test_nobody_asks_for_the_class_of_a_model_of_another_file() -> None:
    found = []
    for name, path in dict(sources()).items():
        own = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)}
        for call in calls(path):
            if name_of(call) != "isinstance":
                continue
            asked = {node.id for node in ast.walk(call.args[1]) if isinstance(node, ast.Name)}
            allowed = {kind for start, kind in OF_ONE_CLASS.items() if name.startswith(start)}
            found += [f"{name}: {kind}" for kind in asked & MODELS_AND_WRAPPERS - own - allowed]
    assert found == []
