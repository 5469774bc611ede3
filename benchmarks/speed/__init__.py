"""Speed and memory of latent inference, measured: `python -m genrobust.benchmarks.speed`."""
