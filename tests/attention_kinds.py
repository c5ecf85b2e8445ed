"""Attention's kinds where tests run: `auto` as any of them, and the TPU kernels in Pallas' interpreter, with small blocks."""

import functools

from jax.experimental import pallas as pl

from adalink_jax.models.attention import kinds, pallas_blocks


def interpret_kernels(patch):
    """Lets `pallas` run on this CPU, until `patch`, a `pytest.MonkeyPatch`, is undone."""
    patch.setattr(kinds, "_platform", lambda: "tpu")
    patch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
    patch.setattr(pallas_blocks, "_BLOCK", 128)
    patch.setattr(pallas_blocks, "_ROLLED", 8)


def let_auto_be(kind, patch):
    """Makes `auto` this kind for all lengths, in this process."""
    if kind == "pallas":
        interpret_kernels(patch)
    choose = kinds._kind
    patch.setattr(kinds, "_kind", lambda name, *of: choose(kind if name == "auto" else name, *of))
