"""Pictures of what a model draws, and of its latent space."""
