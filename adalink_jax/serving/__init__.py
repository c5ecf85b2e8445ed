"""Predictions: a run or a base model, opened without gin, and what it says of texts and images."""

from adalink_jax.serving.predictor import Predictor

__all__ = ["Predictor"]
