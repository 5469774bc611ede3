"""Generative classifiers as torch modules, for the toolkits of adversarial robustness."""
