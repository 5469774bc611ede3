"""Every attack of every toolkit: whether it runs here, and what it needs."""

from typing import Any

from .registry import Adapter, AttackEntry, registered

__all__ = ["list_attacks"]


def list_attacks(toolkit: str | None = None, *, channels: int = 1) -> list[dict[str, Any]]:
    """List attacks as rows that can be written as JSON.

    Args:
        toolkit: Of this one only, such as `"foolbox"`.
        channels: Of the images that are to be attacked.

    Returns:
        Rows with `toolkit`, its `version` (None where it is not installed), `name`, `norm`, `knowledge`
        (white, score, decision), `runs`, `reason` (why not and what would help, or what to know), `wrapper`
        (the call that makes what the attack takes), `needs_epsilon`, `targeted` and `parameters`.

    Raises:
        ValueError: If there is no adapter of that name.
    """
    adapters = registered()
    if toolkit is not None and toolkit not in adapters:
        raise ValueError(f"Expected `toolkit` out of {sorted(adapters)}, but got {toolkit!r}")
    chosen = adapters.values() if toolkit is None else [adapters[toolkit]]
    return [_row(adapter, entry, channels) for adapter in chosen for entry in adapter.attacks]


def _row(adapter: Adapter, entry: AttackEntry, channels: int) -> dict[str, Any]:
    obstacle = adapter.obstacle(entry, channels=channels)
    options = "".join(f", {name}={value!r}" for name, value in entry.options.items())
    return {
        "toolkit": adapter.toolkit,
        "version": adapter.version,
        "name": entry.name,
        "norm": entry.norm,
        "knowledge": entry.knowledge,
        "runs": not obstacle,
        "reason": obstacle or " ".join(filter(None, (entry.weak, entry.note))),
        "wrapper": f"wrap_for_{adapter.toolkit}(model{options})",
        "needs_epsilon": entry.needs_epsilon,
        "targeted": entry.targeted,
        "parameters": dict(entry.parameters),
    }
