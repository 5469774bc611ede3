"""One adapter per toolkit: it returns the toolkit's own model type and holds no maths."""
