"""A scaling study: model size x base x task x method, each cell a pack of runs."""
