"""One adapter per toolkit, which returns the toolkit's own model type and contains no maths."""

from .contract import Adapter, AttackEntry, Crafted, available, registered
from .listing import list_attacks

__all__ = ["Adapter", "AttackEntry", "Crafted", "available", "list_attacks", "registered"]
