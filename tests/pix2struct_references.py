"""Small models of `transformers` of the Pix2Struct family, for the tests to compare with; like `references`."""

import numpy as np
from PIL import Image
from references import torch, transformers

VOCAB, D, PATCH, MOST, POSITIONS = 96, 32, 4, 24, 40  # MOST: patches of a picture
SIZES = ((30, 20), (9, 70), (64, 11), (16, 16), (50, 35), (5, 3))  # of pictures, width and height


def make_pix2struct(seed=9, vocab_size=VOCAB, **text):
    """A Pix2Struct with random weights; nothing stays at its initial value. `text` goes to its text."""
    torch.manual_seed(seed)
    common = {"hidden_size": D, "d_kv": 8, "d_ff": 48}
    config = transformers.Pix2StructConfig(
        text_config={**common, "vocab_size": vocab_size, "num_layers": 3, "num_heads": 4, "dropout_rate": 0.0,
                     "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, **text},
        vision_config={**common, "patch_embed_hidden_size": 3 * PATCH**2, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "seq_len": POSITIONS},
    )  # fmt: skip
    model = transformers.Pix2StructForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, leaf in model.named_parameters():
            if leaf.ndim == 1:
                leaf.copy_(torch.randn_like(leaf) * 0.3 + ("norm" in name))
            elif "embed" in name and "projection" not in name or "relative" in name:
                leaf.copy_(torch.randn_like(leaf))
            else:
                # Outputs follow the picture and the tokens before; T5 keeps 1/sqrt(K) in the weights.
                gains = {"query": 2 * 8**-0.5, "encoder_decoder": 1.5, "self_attention": 2.0, "Dense": 2.5}
                gain = next((gain for part, gain in gains.items() if part in name), 1.0)
                leaf.copy_(torch.randn_like(leaf) * gain * leaf.shape[-1] ** -0.5)
    return model


def processor(**settings):
    """The image processor of `transformers`."""
    from transformers.models.pix2struct.image_processing_pil_pix2struct import Pix2StructImageProcessorPil

    return Pix2StructImageProcessorPil(
        **{"max_patches": MOST, "patch_size": {"height": PATCH, "width": PATCH}, **settings}
    )


def pictures(rows, seed=0):
    """Random pictures of different aspect ratios."""
    rng = np.random.default_rng(seed)
    size = lambda i: SIZES[i % len(SIZES)]
    return [Image.fromarray(rng.integers(0, 256, (*size(i)[::-1], 3), np.uint8)) for i in range(rows)]
