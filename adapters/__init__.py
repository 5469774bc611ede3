"""One adapter per toolkit: it returns the toolkit's own model type and holds no maths."""

from .registry import Adapter, AttackEntry, Crafted, available, registered

__all__ = ["Adapter", "AttackEntry", "Crafted", "available", "registered"]
