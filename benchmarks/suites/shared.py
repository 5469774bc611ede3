"""What suites share: attacks by name, attacks under several gradients, and a suite that extends another."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from ..._fields import check_choice, checked
from .model import Scale

__all__ = ["ATTACKS_FILE", "expanded_attacks", "merged", "shared_attacks"]

ATTACKS_FILE = "attacks.toml"

# How a title says by which gradient, where that is more than its name.
_BY_GRADIENT = {
    "through": " through the purifier",
    "bpda": " by BPDA",
    "unrolled": " through the last steps",
}


@cache
def shared_attacks() -> Mapping[str, Mapping[str, Any]]:
    """Returns the attacks of `attacks.toml`, by names such as `"eabs.pgd-linf"`."""
    content = tomllib.loads(files(__package__).joinpath(ATTACKS_FILE).read_text(encoding="utf-8"))
    return {f"{paper}.{key}": entry for paper, group in content.items() for key, entry in group.items()}


def expanded_attacks(entries: Sequence[Any], scale: Scale) -> list[Any]:
    """Replaces entries that `use` shared attacks by complete ones.

    An entry names one shared attack or a list of them, and whatever else it holds goes over each. An entry
    with `gradients` becomes an attack for each gradient, whose key and title say which.

    Args:
        entries: The suite's `attacks`.
        scale: The small one takes what the shared attack says of it.

    Raises:
        ValueError: If there is no such shared attack (the nearest is named), or `gradients` stands without
            `use`.
    """
    return [complete for entry in entries for complete in _expanded(entry, scale)]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Puts changes over a base: tables are merged key by key, everything else is replaced."""
    result = dict(base)
    for key, value in changes.items():
        there = base.get(key)
        if isinstance(there, dict) and isinstance(value, dict):
            value = merged(there, value)
        result[key] = value
    return result


def _expanded(entry: Any, scale: Scale) -> Iterator[Any]:
    if not isinstance(entry, dict) or "use" not in entry:
        if isinstance(entry, dict) and "gradients" in entry:
            raise ValueError("Expected `use` beside `gradients`: an attack of its own has one `gradient`")
        yield entry
        return
    changes = {name: value for name, value in entry.items() if name not in ("use", "gradients")}
    gradients = checked(entry.get("gradients", [None]), tuple[str | None, ...], "`gradients`")
    used = checked(entry["use"], str | tuple[str, ...], "`use`")
    for gradient in gradients:
        for name in [used] if isinstance(used, str) else used:
            check_choice("use", name, list(shared_attacks()))
            attack = {"key": name.rpartition(".")[2], **shared_attacks()[name]}
            small = attack.pop("small", {})
            attack |= small if scale == "small" else {}
            yield attack | _by(gradient, attack) | changes


def _by(gradient: str | None, attack: Mapping[str, Any]) -> dict[str, Any]:
    if gradient is None:
        return {}
    title = attack["title"] + _BY_GRADIENT.get(gradient, f", {gradient} gradient")
    return {"key": f"{attack['key']}-{gradient}", "title": title, "gradient": gradient}
