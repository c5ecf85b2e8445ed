"""Models of `transformers` that the tests compare with, and inputs for them.

Importing this skips the test, or the whole file of tests, where the extra `parity` is not installed.
"""

import numpy as np
import pytest

NEEDS_PARITY = "compares with PyTorch; run `make test EXTRAS=parity`"
torch = pytest.importorskip("torch", reason=NEEDS_PARITY)
transformers = pytest.importorskip("transformers", reason=NEEDS_PARITY)

VOCAB, D, H, F = 96, 32, 4, 48
# transformers' class and settings of each form; a head width that is not D / H, stacks of different depth for ByT5.
FORMS = {
    "T5 1.0": ("T5", {"feed_forward_proj": "relu", "tie_word_embeddings": True, "d_kv": 12}),
    "T5 1.1": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 12}),
    "UL2": ("T5", {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False, "d_kv": 256}),
    "mT5": ("MT5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 8}),
    "umT5": ("UMT5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 12}),
    "ByT5": (
        "T5",
        {
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "d_kv": 10,
            "num_layers": 4,
            "vocab_size": 384,
        },
    ),
}


def make_reference(form, **overrides):
    """A transformers model with weights that are large enough to matter; its outputs differ, and half of them end.

    An untied head gets a matrix of its own: transformers 5 ties it in a freshly made T5, whatever the config says.
    """
    kind, settings = FORMS[form]
    tied = settings["tie_word_embeddings"]
    torch.manual_seed(0 if tied else 2)  # seeds whose outputs are as described above
    config = getattr(transformers, f"{kind}Config")(
        **{"vocab_size": VOCAB, "d_model": D, "d_ff": F, "num_layers": 2, "num_decoder_layers": 2, "num_heads": H,
           "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, **settings, **overrides}
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    if kind == "UMT5":
        model.config.tie_word_embeddings = (
            False  # as released; transformers 5 forces True, which divides the logits by D^0.5
        )
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, D) * 0.3)
    for name, leaf in model.named_parameters():
        if "layer_norm" in name:
            leaf.data = 1 + 0.2 * torch.randn_like(leaf)
        elif "shared" in name or "relative_attention_bias" in name:
            leaf.data = torch.randn_like(leaf)
        elif "lm_head" not in name:
            strong = "EncDecAttention" in name and name.endswith(("v.weight", "o.weight"))  # outputs follow inputs
            leaf.data = torch.randn_like(leaf) * leaf.shape[-1] ** -0.5 * (3.0 if strong else 1.0)
            if name.endswith(".q.weight") and not tied:
                leaf.data *= 2 * config.d_kv**-0.5  # T5 keeps 1/sqrt(K) in the weights
    with torch.no_grad():
        model.lm_head.weight[1] *= 16.0 if tied else 7.0  # EOS
    return model


def tokens(rows, length, seed=0):
    """Ids of inputs of different lengths, [rows, length], padded after EOS."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, VOCAB, (rows, length)).astype(np.int64)
    lengths = rng.integers(2, length + 1, rows)
    lengths[0] = length
    ids[np.arange(rows), lengths - 1] = 1
    ids[np.arange(length) >= lengths[:, None]] = 0
    return ids
