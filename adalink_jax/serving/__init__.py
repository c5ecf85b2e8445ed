"""Predictions for texts and images, by a run or a base model, opened without gin files."""

from adalink_jax.serving.predictor import Predictor

__all__ = ["Predictor"]
