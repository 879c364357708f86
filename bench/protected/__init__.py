"""A protected VM at work."""
