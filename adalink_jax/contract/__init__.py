"""What every method must do: the list of behaviours, and one tiny model to try each on."""
