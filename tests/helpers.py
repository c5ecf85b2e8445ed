"""Small models and batches that several tests share."""

from adalink_jax.contract.tiny import VOCAB, init, random_batch, tiny_pali, tiny_t5

__all__ = ["VOCAB", "init", "random_batch", "tiny_pali", "tiny_t5"]
