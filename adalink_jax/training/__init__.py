"""Training: parameters, the step, the loop, evaluation, and the checkpoints and files of a run."""
