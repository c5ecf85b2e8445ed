"""Many runs from one description: sweeps, comparisons of methods, scaling studies."""
