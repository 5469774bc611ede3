"""Suites as TOML files: those that are shipped, and a user's own.

A file describes a table of a paper once, and each of its scales (`[scale.small]`, `[scale.paper]`) says how
many images, how hard the attacks are, and in words what was reduced. A file may take attacks from those that
all suites share (`use`), and begin where another suite ends (`extends`).
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar, get_args

from ..._fields import check_choice, checked
from ...adapters.contract import resolve
from ...registry import Registry
from ...zoo.registered import MODELS
from ...zoo.weight_files import config_from_dict
from .model import LONGEST_KEY, Attack, Expected, Scale, Suite, SuiteModel, ThreatModel
from .shared import ATTACKS_FILE, expanded_attacks, merged

__all__ = ["SUITES", "load_suite", "read_suite", "register_suite", "scales", "shipped_suites"]

T = TypeVar("T")

_FOLDER = files(__package__)
_SUFFIX = ".toml"

_ENTRIES: Mapping[str, type] = {"models": SuiteModel, "threat_models": ThreatModel, "attacks": Attack}
_TEXT = ("title", "paper", "dataset", "baseline")
_SCALED = (
    "samples",
    "batch_size",
    "attack_inference",
    "attack_again",
    "draws",
    "overshoots",
    "starting_images",
    "reclassify",
    "reduced",
)
_TOP = (*_TEXT, *_SCALED, *_ENTRIES, "expected", "scale")
_IN_SCALE = (*_SCALED, "models", "attacks", "threat_models", "without")
_TABLES = tuple[dict[str, Any], ...]
_CHANGES = dict[str, dict[str, Any]]
_LAYOUT = {**dict.fromkeys((*_ENTRIES, "expected"), _TABLES), "scale": _CHANGES, "reduced": tuple[str, ...]}
_SCALE_LAYOUT = {
    "models": _CHANGES,
    "attacks": _CHANGES,
    "threat_models": _TABLES,
    "without": tuple[str, ...],
    "reduced": tuple[str, ...],
}
SUITES: Registry[Suite | Path] = Registry("suite", "genrobust.suites")

_NUMBERS = (*(field.name for field in fields(Expected) if field.name not in ("model", "value")), "values")


def shipped_suites() -> tuple[str, ...]:
    """Returns the names of the shipped suites, sorted."""
    names = {entry.name for entry in _FOLDER.iterdir()} - {ATTACKS_FILE}
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)))


def load_suite(name: str | Path, *, scale: Scale = "small") -> Suite:
    """Loads a suite at one of its scales.

    Args:
        name: Name of a shipped or a registered suite, or the path of a TOML file.
        scale: As published, or reduced.

    Raises:
        ValueError: If there is no such suite or scale (the nearest name is given), or the file makes no
            sense: the message says where in it.
    """
    if not isinstance(name, str | Path):
        raise ValueError(f"Expected a suite, its name or the path of a file, but got {type(name).__name__}")
    if isinstance(name, Path) or name.endswith(_SUFFIX):
        return read_suite(Path(name), scale=scale)
    if name in SUITES:
        found = SUITES.get(name)
        return found if isinstance(found, Suite) else read_suite(found, scale=scale)
    check_choice("suite", name, [*shipped_suites(), *SUITES.names()])
    with as_file(_FOLDER / f"{name}{_SUFFIX}") as path:
        return read_suite(path, scale=scale)


def register_suite(suite: Suite | str | Path) -> str:
    """Adds a suite that `evaluate` and `genrobust bench` know by its name; returns the name.

    Args:
        suite: The suite, which has one scale; or the path of a TOML file, whose name is the suite's.

    Raises:
        ValueError: If another suite has the name.
    """
    name = suite.name if isinstance(suite, Suite) else Path(suite).stem
    if name in shipped_suites():
        raise ValueError(f"Expected another name for this suite: {name!r} is shipped")
    SUITES.register(name, suite if isinstance(suite, Suite) else Path(suite))
    return name


def scales(path: Path) -> tuple[str, ...]:
    """Returns the scales that a file describes."""
    return tuple(_extended(path).get("scale", {}))


def read_suite(path: Path, *, scale: Scale = "small") -> Suite:
    """Reads a suite from a TOML file; its name is the file's.

    Raises:
        ValueError: As `load_suite`.
    """
    check_choice("scale", scale, get_args(Scale))
    content, place = _extended(path), _Place(path.name)
    place.known(content, _TOP)
    content = _laid_out(content, _LAYOUT, place)
    described = content.pop("scale", {})
    place.known(described, get_args(Scale), "[scale]")
    if scale not in (there := list(described) or ["small"]):
        raise place.error(f"Expected the scale {' or '.join(map(repr, there))}, but got {scale!r}")
    with place.inside("[[attacks]]").naming():
        content["attacks"] = expanded_attacks(content.get("attacks", ()), scale)
    content = _scaled(content, described.get(scale, {}), place.inside(f"[scale.{scale}]"))
    if not isinstance(content.get("dataset"), str):
        raise place.error("Expected the name of a `dataset`, but got none")
    for name, kind in _ENTRIES.items():
        content[name] = _entries(kind, content.get(name, ()), place.inside(f"[[{name}]]"))
    for model in content["models"]:
        with place.inside(f"[[models]] {model.name!r}").naming():
            MODELS.get(model.weights)
    for attack in content["attacks"]:
        with place.inside(f"[[attacks]] {attack.key!r}").naming():
            resolve(attack.toolkit, attack.name)
    content["expected"] = _numbers(content["expected"], place.inside("[[expected]]"))
    with place.naming():
        return Suite(name=_name_of(path), scale=scale, **content)


def _name_of(path: Path) -> str:
    """Returns a file's name without what no name of a suite may have, such as blanks; or else `suite`."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", path.stem).lstrip("._+-")[:LONGEST_KEY] or "suite"


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad puts a mark first
    except FileNotFoundError:
        raise ValueError(f"Expected a suite at {path}, but there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"Expected {path} to be TOML, but {error}") from error


def _extended(path: Path, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """Reads a file, and put it over the suite that it extends: a shipped one, or a file beside it."""
    content = _parsed(path)
    base = content.pop("extends", None)
    if base is None:
        return content
    with _Place(path.name).naming():
        if base in below:
            raise ValueError(f"Expected `extends` to end, but {base!r} extends itself")
        if isinstance(base, str) and base.endswith(_SUFFIX):
            return merged(_extended(path.parent / base, (*below, base)), content)
        check_choice("extends", base, shipped_suites())
        with as_file(_FOLDER / f"{base}{_SUFFIX}") as shipped:
            return merged(_extended(shipped, (*below, base)), content)


def _laid_out(content: Mapping[str, Any], layout: Mapping[str, Any], place: "_Place") -> dict[str, Any]:
    """Returns what a file says, if its tables and lists are where they belong."""
    with place.naming():
        known = {
            name: checked(content[name], hint, f"`{name}`")
            for name, hint in layout.items()
            if name in content
        }
    return {**content, **known}


def _scaled(content: dict[str, Any], scale: Mapping[str, Any], place: "_Place") -> dict[str, Any]:
    """Puts what a scale changes over what the file says for all of them."""
    place.known(scale, _IN_SCALE)
    scale = _laid_out(scale, _SCALE_LAYOUT, place)
    left_out, known = scale.get("without", ()), []
    for name, key in (("models", "name"), ("attacks", "key")):
        entries, changes = content.get(name, ()), scale.get(name, {})
        names = [str(entry.get(key)) for entry in entries]
        known += names
        place.known(changes, names, f"{place.where.rstrip(']')}.{name}]")
        content[name] = [
            {**entry, **changes.get(called, {})}
            for entry, called in zip(entries, names, strict=True)
            if called not in left_out
        ]
    content["expected"] = [
        _without(number, left_out)
        for number in content.get("expected", ())
        if str(number.get("attack")) not in left_out
    ]
    place.known(dict.fromkeys(left_out), known, f"{place.where.rstrip(']')}] without")
    scaled = {name: scale[name] for name in (*_SCALED, "threat_models") if name in scale}
    reduced = [*scale.get("reduced", ()), *content.get("reduced", ())]
    return content | scaled | {"reduced": reduced}


def _without(number: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    values = number.get("values")
    if not isinstance(values, dict):
        return dict(number)
    return {**number, "values": {name: value for name, value in values.items() if name not in left_out}}


def _entries(kind: type[T], entries: Sequence[Mapping[str, Any]], place: "_Place") -> tuple[T, ...]:
    made = []
    for number, entry in enumerate(entries, 1):
        here = place.numbered(entry, number)
        here.known(entry, [field.name for field in fields(kind)])  # type: ignore[arg-type]
        with here.naming():
            made.append(config_from_dict(kind, entry))
    return tuple(made)


def _numbers(entries: Sequence[Mapping[str, Any]], place: "_Place") -> tuple[Expected, ...]:
    """Reads the paper's numbers: one table a row, with a value for each model."""
    made = []
    for number, entry in enumerate(entries, 1):
        here = place.numbered(entry, number)
        here.known(entry, _NUMBERS)
        shared = {name: value for name, value in entry.items() if name != "values"}
        with here.naming():
            values = checked(entry.get("values"), dict[str, Any], "`values`")
            made += [Expected(model=model, value=value, **shared) for model, value in values.items()]
    return tuple(made)


@dataclass(frozen=True)
class _Place:
    """Where in a file something is wrong."""

    file: str
    where: str = ""

    def inside(self, where: str) -> "_Place":
        return _Place(self.file, where)

    def numbered(self, entry: Mapping[str, Any], number: int) -> "_Place":
        """Names an entry of a list by what it is called, or by its number."""
        name = next((entry[key] for key in ("key", "name", "norm", "attack") if key in entry), number)
        return self.inside(f"{self.where} {name!r}")

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.file}{', ' if self.where else ''}{self.where}: {message}")

    def known(self, content: Any, names: Iterable[str], where: str | None = None) -> None:
        """Checks that a table has no unknown keys."""
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
