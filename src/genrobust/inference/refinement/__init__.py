"""Refinement of latents: Adam and BFGS."""
