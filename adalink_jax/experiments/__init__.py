"""Many runs as one: sweeps, comparisons of methods, scaling studies. What they found is read by `reports`."""
