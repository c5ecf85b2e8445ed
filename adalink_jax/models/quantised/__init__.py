"""Weights of the frozen model in eight bits or four: how they are stored, and the products that use them."""

from adalink_jax.models.quantised.arrays import (
    CODE_DTYPES,
    NF4,
    Quantised,
    bits_of,
    block_size,
    dequantised,
    precision_of,
    quantise,
)
from adalink_jax.models.quantised.products import gathered, product, rows
from adalink_jax.models.quantised.storage import STORED, TABLE, Matmul, Storage, StoredDType, in_form

__all__ = [
    "CODE_DTYPES",
    "NF4",
    "STORED",
    "TABLE",
    "Matmul",
    "Quantised",
    "Storage",
    "StoredDType",
    "bits_of",
    "block_size",
    "dequantised",
    "gathered",
    "in_form",
    "precision_of",
    "product",
    "quantise",
    "rows",
]
