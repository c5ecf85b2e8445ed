"""Scaling studies: bases of several sizes, tuned and adapted by several methods."""
