"""The commands. Nothing is imported here, so that `adalink --help` is instant."""
