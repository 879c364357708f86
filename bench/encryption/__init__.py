"""The cost of encryption."""
