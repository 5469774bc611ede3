"""Suites as TOML files: those that are shipped, and a user's own.

A file describes a table of a paper once, and each of its scales (`[scale.small]`, `[scale.paper]`) says how
many images, how hard the attacks are, and in words what was reduced.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar, get_args

from ..adapters.registry import registered
from ..data import dataset_names
from ..zoo.recipes import MODEL_NAMES
from ..zoo.serialization import config_from_dict
from .own import OWN_ATTACKS
from .suites import OWN, Attack, Expected, Scale, Suite, SuiteModel, ThreatModel, check_choice

__all__ = ["load_suite", "read_suite", "scales", "shipped_suites"]

T = TypeVar("T")

_FOLDER = files(__package__) / "suites"
_SUFFIX = ".toml"

_ENTRIES: Mapping[str, type] = {"models": SuiteModel, "threat_models": ThreatModel, "attacks": Attack}
_TEXT = ("title", "paper", "dataset", "baseline")
_SCALED = ("samples", "batch_size", "attack_inference", "overshoots", "starting_images", "reduced")
_TOP = (*_TEXT, *_SCALED, *_ENTRIES, "expected", "scale")
_IN_SCALE = (*_SCALED, "models", "attacks", "threat_models", "without")
_NUMBERS = (*(field.name for field in fields(Expected) if field.name not in ("model", "value")), "values")


def shipped_suites() -> tuple[str, ...]:
    """Give the names of the shipped suites, sorted."""
    names = (entry.name for entry in _FOLDER.iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)))


def load_suite(name: str | Path, *, scale: Scale = "small") -> Suite:
    """Load a suite at one of its scales.

    Args:
        name: Of a shipped suite, or the path of a TOML file.
        scale: As published, or reduced.

    Raises:
        ValueError: If there is no such suite or scale (the nearest name is given), or the file makes no
            sense: the message says where in it.
    """
    if isinstance(name, Path) or name.endswith(_SUFFIX):
        return read_suite(Path(name), scale=scale)
    check_choice("suite", name, shipped_suites())
    with as_file(_FOLDER / f"{name}{_SUFFIX}") as path:
        return read_suite(path, scale=scale)


def scales(path: Path) -> tuple[str, ...]:
    """Give the scales that a file describes."""
    return tuple(_parsed(path).get("scale", {}))


def read_suite(path: Path, *, scale: Scale = "small") -> Suite:
    """Read a suite from a TOML file; its name is the file's.

    Raises:
        ValueError: As `load_suite`.
    """
    check_choice("scale", scale, get_args(Scale))
    content, place = _parsed(path), _Place(path.name)
    place.known(content, _TOP)
    described = content.pop("scale", {})
    place.known(described, get_args(Scale), "[scale]")
    if scale not in (there := list(described) or ["small"]):
        raise place.error(f"Expected the scale {' or '.join(map(repr, there))}, but got {scale!r}")
    content = _scaled(content, described.get(scale, {}), place.inside(f"[scale.{scale}]"))
    if not isinstance(content.get("dataset"), str):
        raise place.error("Expected the name of a `dataset`, but got none")
    with place.naming():
        check_choice("dataset", content["dataset"], dataset_names())
    for name, kind in _ENTRIES.items():
        content[name] = _entries(kind, content.get(name, []), place.inside(f"[[{name}]]"))
    for model in content["models"]:
        if model.file is None:
            with place.inside(f"[[models]] {model.name!r}").naming():
                check_choice("zoo" if model.zoo else "name", model.weights, MODEL_NAMES)
    for attack in content["attacks"]:
        with place.inside(f"[[attacks]] {attack.key!r}").naming():
            _check_toolkit(attack)
    content["expected"] = _numbers(content.get("expected", []), place.inside("[[expected]]"))
    for name in ("overshoots", "reduced"):
        if name in content:
            content[name] = tuple(content[name])
    with place.naming():
        return Suite(name=path.stem, scale=scale, **content)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"Expected a suite at {path}, but there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"Expected {path} to be TOML, but {error}") from error


def _scaled(content: dict[str, Any], scale: Mapping[str, Any], place: "_Place") -> dict[str, Any]:
    """Put what a scale changes over what the file says for all of them."""
    place.known(scale, _IN_SCALE)
    left_out, known = scale.get("without", []), []
    for name, key in (("models", "name"), ("attacks", "key")):
        entries, changes = content.get(name, []), scale.get(name, {})
        names = [str(entry.get(key)) for entry in entries]
        known += names
        place.known(changes, names, f"{place.where.rstrip(']')}.{name}]")
        changed = [{**entry, **changes.get(entry.get(key), {})} for entry in entries]
        content[name] = [entry for entry in changed if entry.get(key) not in left_out]
        content["expected"] = [
            _without(number, left_out) for number in content.get("expected", []) if isinstance(number, dict)
        ]
    content["expected"] = [
        number
        for number in content["expected"]
        if number.get("attack") not in left_out and number.get("values")
    ]
    place.known(dict.fromkeys(left_out), known, f"{place.where.rstrip(']')}] without")
    return content | {name: scale[name] for name in (*_SCALED, "threat_models") if name in scale}


def _without(number: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    values = number.get("values")
    if not isinstance(values, dict):
        return dict(number)
    return {**number, "values": {name: value for name, value in values.items() if name not in left_out}}


def _entries(kind: type[T], entries: Any, place: "_Place") -> tuple[T, ...]:
    if not isinstance(entries, list):
        raise place.error(f"Expected a list of tables, but got {type(entries).__name__}")
    made = []
    for number, entry in enumerate(entries, 1):
        here = place.numbered(entry, number)
        here.known(entry, [field.name for field in fields(kind)])  # type: ignore[arg-type]
        with here.naming():
            made.append(config_from_dict(kind, entry))
    return tuple(made)


def _numbers(entries: Any, place: "_Place") -> tuple[Expected, ...]:
    """Read the paper's numbers: one table a row, with a value for each model."""
    made = []
    for number, entry in enumerate(entries, 1):
        here = place.numbered(entry, number)
        here.known(entry, _NUMBERS)
        shared = {name: value for name, value in entry.items() if name != "values"}
        for model, value in entry.get("values", {}).items():
            with here.naming():
                made.append(Expected(model=model, value=float(value), **shared))
    return tuple(made)


def _check_toolkit(attack: Attack) -> None:
    adapters = registered()
    check_choice("toolkit", attack.toolkit, [*adapters, OWN])
    if attack.toolkit == OWN:
        check_choice("name", attack.name, list(OWN_ATTACKS))
    else:
        check_choice("name", attack.name, [entry.name for entry in adapters[attack.toolkit].attacks])


@dataclass(frozen=True)
class _Place:
    """Where in a file something is wrong."""

    file: str
    where: str = ""

    def inside(self, where: str) -> "_Place":
        return _Place(self.file, where)

    def numbered(self, entry: Any, number: int) -> "_Place":
        """Name an entry of a list by what it is called, or by its number."""
        if not isinstance(entry, dict):
            raise self.error(f"Expected a table, but entry {number} is of type {type(entry).__name__}")
        name = next((entry[key] for key in ("key", "name", "norm", "attack") if key in entry), number)
        return self.inside(f"{self.where} {name!r}")

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.file}{', ' if self.where else ''}{self.where}: {message}")

    def known(self, content: Any, names: Iterable[str], where: str | None = None) -> None:
        """Check that a table has no unknown keys."""
        place = self if where is None else self.inside(where)
        if not isinstance(content, dict):
            raise place.error(f"Expected a table, but got {type(content).__name__}")
        names = list(names)
        for key in content:
            if key not in names:
                nearest = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; it may have {', '.join(names)}"
                raise place.error(f"Expected no key {key!r}{hint}")

    def naming(self) -> "_Naming":
        return _Naming(self)


class _Naming:
    """Puts the place before what is raised inside."""

    def __init__(self, place: _Place) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ValueError | TypeError):
            raise self._place.error(str(error)) from error
