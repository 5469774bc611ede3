"""Measurements of the speed and memory of latent inference: `python -m genrobust.benchmarks.speed`."""
