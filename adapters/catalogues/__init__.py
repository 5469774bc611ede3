"""What attacks each toolkit has, as data: readable without the toolkit."""
