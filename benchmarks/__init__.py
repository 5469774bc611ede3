"""Suites of attacks on generative classifiers: runner, per-sample results, statistics, figures."""
