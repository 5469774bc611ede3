"""Training: one loop for every model, and the recipes of the shipped weights."""
