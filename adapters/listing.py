"""A list of all attacks of all toolkits: whether each runs here, and what it needs."""

from collections.abc import Mapping
from typing import Any

from .contract import Adapter, AttackEntry, registered

__all__ = ["list_attacks"]


def list_attacks(toolkit: str | None = None, *, channels: int = 1) -> list[dict[str, Any]]:
    """Lists attacks as rows that can be written as JSON.

    Args:
        toolkit: The only toolkit to list, such as `"foolbox"`; None lists all.
        channels: Number of channels of the images to attack.

    Returns:
        Rows with `toolkit`, its `version` (None if it is not installed), `released` (the month of its last
        release, "" if unknown), `maintained` (whether that was within a year, None if unknown), `name`,
        `norm`, `knowledge` (white, score, decision), `runs`, `reason` (why it does not run and what would
        help, or a warning), `wrapper` (the call that builds the model for the attack), `needs_epsilon`,
        `targeted` and `parameters`.

    Raises:
        ValueError: If no adapter has that name.
    """
    adapters = registered()
    if toolkit is not None and toolkit not in adapters:
        raise ValueError(f"Expected `toolkit` out of {sorted(adapters)}, but got {toolkit!r}")
    chosen = adapters.values() if toolkit is None else [adapters[toolkit]]
    return [_row(adapter, entry, channels) for adapter in chosen for entry in adapter.attacks]


def _row(adapter: Adapter, entry: AttackEntry, channels: int) -> dict[str, Any]:
    obstacle = adapter.obstacle(entry, channels=channels)
    asks_for = f"Needs a model with {entry.asks_for}." if entry.asks_for else ""
    options = "".join(f", {name}={value!r}" for name, value in entry.options.items())
    return {
        "toolkit": adapter.toolkit,
        "version": adapter.version,
        "released": adapter.released,
        "maintained": adapter.maintained,
        "name": entry.name,
        "norm": entry.norm,
        "knowledge": entry.knowledge,
        "runs": not obstacle,
        "reason": obstacle or " ".join(filter(None, (asks_for, entry.weak, entry.note))),
        "wrapper": f"{adapter.wrapper or f'wrap_for_{adapter.toolkit}'}(model{options})",
        "needs_epsilon": entry.needs_epsilon,
        "targeted": entry.targeted,
        "parameters": _plain(entry.parameters),
    }


def _plain(value: Any) -> Any:
    """Converts parameters to JSON values; an attack among them becomes its name and parameters."""
    if isinstance(value, AttackEntry):
        return {"name": value.name, "parameters": _plain(value.parameters)}
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
