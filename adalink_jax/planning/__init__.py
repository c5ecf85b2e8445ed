"""The real step compiled for hardware that is not here, and what it would need and do."""
