"""Attention's arithmetic, `softmax(q k^T + bias) v`, with a bias that is described rather than stored.

`attend` is the one interface of encoder, decoder, cross attention, vision towers and Q-Former; `ATTENTION` chooses how it
computes. The kinds agree (tests/test_attention.py), and only `reference` has the scores [B, H, Q, S] in memory.

Letters: B batch, H heads, Q queries, S keys, K head width.
"""

from adalink_jax.models.attention.bias import MASKED, Bias
from adalink_jax.models.attention.kinds import KINDS, AttentionKind, Scores, attend, for_stack
from adalink_jax.models.attention.merged import attend_merged

__all__ = ["KINDS", "MASKED", "AttentionKind", "Bias", "Scores", "attend", "attend_merged", "for_stack"]
