"""Studies made of many runs: tuning, comparisons."""
