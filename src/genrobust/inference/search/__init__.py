"""Search over candidate latents."""
