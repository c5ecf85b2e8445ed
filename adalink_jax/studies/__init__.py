"""What many runs or models are needed for: the behaviours of methods, tuning, comparisons."""
