"""Speed of inference, measured."""
