"""Attacks that are aimed at generative models; each is called like a toolkit's own."""

from .thresholds import fooling_attack, threshold_attack

__all__ = ["fooling_attack", "threshold_attack"]
