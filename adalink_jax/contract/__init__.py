"""What every adaptation method must do, as checks that run on tiny models."""
