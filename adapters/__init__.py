"""One adapter per toolkit: it returns the toolkit's own model type and holds no maths."""

from .listing import list_attacks
from .registry import Adapter, AttackEntry, Crafted, available, registered

__all__ = ["Adapter", "AttackEntry", "Crafted", "available", "list_attacks", "registered"]
