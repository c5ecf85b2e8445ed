"""Several adapters trained in one program over one frozen base."""
