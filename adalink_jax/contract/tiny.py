"""Models of width 32 and random batches, for checks that take seconds."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from adalink_jax.models import (
    T5,
    PaLI,
    PaliGemma,
    PaliGemmaConfig,
    Pix2Struct,
    Pix2StructConfig,
    T5Config,
    T5Gemma,
    T5Gemma2,
    T5Gemma2Config,
    T5GemmaConfig,
    ViTConfig,
)
from adalink_jax.models.backbone import Backbone

VOCAB = 64


def tiny_t5(**overrides: Any) -> T5Config:
    """A two-layer T5 1.1 of width 32."""
    sizes = {"vocab_size": VOCAB, "emb_dim": 32, "num_heads": 4, "head_dim": 8, "mlp_dim": 64}
    return T5Config(**{**sizes, "num_encoder_layers": 2, "num_decoder_layers": 2, **overrides})


def tiny_pali(**overrides: Any) -> PaLI:
    """A PaLI of width 32 with images of 8 x 16 pixels, eight tokens each; `overrides` go to T5Config, shared ones to the ViT too."""
    return PaLI(tiny_t5(**overrides), _tiny_vit(**overrides))


def _tiny_vit(**overrides: Any) -> ViTConfig:
    shared = {k: v for k, v in overrides.items() if k in ("scan_layers", "dtype", "remat", "dropout_rate", "attention")}
    return ViTConfig((8, 16), 4, 32, 4, 64, 2, channels=1, **shared)


def tiny_t5gemma(**overrides: Any) -> T5Gemma:
    """A two-layer T5Gemma of width 32, whose windows are shorter than the checks' inputs and whose decoder is smaller."""
    sizes = {"vocab_size": VOCAB, "emb_dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 64}
    decoder = {"decoder_emb_dim": 24, "decoder_mlp_dim": 48, "decoder_num_kv_heads": 1}
    depth = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    more = {"query_pre_attn_scalar": 8, "sliding_window": 3}
    return T5Gemma(T5GemmaConfig(**{**sizes, **decoder, **depth, **more, **overrides}))


def tiny_paligemma(**overrides: Any) -> PaliGemma:
    """A two-layer PaliGemma 2 of width 32, with the tower of `tiny_pali` and windows that are shorter than the checks' suffixes."""
    sizes = {"vocab_size": VOCAB, "emb_dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 64}
    more = {"num_layers": 2, "query_pre_attn_scalar": 8, "post_norms": True, "sliding_window": 3}
    caps = {"attention_softcap": 50.0, "logits_softcap": 30.0}
    return PaliGemma(PaliGemmaConfig(**{**sizes, **more, **caps, **overrides}), _tiny_vit(**overrides))


IMAGE_TOKEN = 9  # of the tiny T5Gemma 2's text


def tiny_t5gemma2(**overrides: Any) -> T5Gemma2:
    """A T5Gemma 2 of width 32 with windows shorter than the checks' inputs, whose images are two tokens each."""
    sizes = {"vocab_size": VOCAB, "emb_dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 64}
    depth = {"num_encoder_layers": 2, "num_decoder_layers": 2, "full_attention_every": 2}
    more = {"query_pre_attn_scalar": 8, "sliding_window": 3, "image_pool": 2, "image_token_id": IMAGE_TOKEN}
    config = T5Gemma2Config(**{**sizes, **depth, **more, "end_of_image_token_id": 8, **overrides})
    return T5Gemma2(config, _tiny_vit(**overrides))


def tiny_pix2struct(**overrides: Any) -> Pix2Struct:
    """A two-layer Pix2Struct of width 32 that reads ten patches of 2 x 2 grey pixels."""
    sizes = {"vocab_size": VOCAB, "emb_dim": 32, "num_heads": 4, "head_dim": 8, "mlp_dim": 64}
    depth = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    pictures = {"max_patches": 10, "num_positions": 10, "patch_size": 2, "channels": 1}
    return Pix2Struct(Pix2StructConfig(**{**sizes, **depth, **pictures, **overrides}))


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "T5": lambda **overrides: T5(tiny_t5(**overrides)),
    "PaLI": tiny_pali,
    "T5Gemma": tiny_t5gemma,
    "PaliGemma": tiny_paligemma,
    "T5Gemma2": tiny_t5gemma2,
    "Pix2Struct": tiny_pix2struct,
}


def random_batch(backbone: Backbone, batch_size: int, inputs: int, targets: int, seed: int) -> dict[str, np.ndarray]:
    """Random features with padding: rows of different lengths that end in EOS (1)."""
    rng = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        lengths = rng.integers(1, length + 1, batch_size)
        lengths[0] = length
        out = rng.integers(3, VOCAB, (batch_size, length)).astype(np.int32)
        out[np.arange(batch_size), lengths - 1] = 1
        out[np.arange(length) >= lengths[:, None]] = 0
        return out

    target = ids(targets)
    encoder = {"encoder_input_tokens": ids(inputs)} if backbone.reads_text else {}
    batch = encoder | {
        "decoder_target_tokens": target,
        "decoder_input_tokens": np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=backbone.token_ids.start),
        "decoder_loss_weights": (target > 0).astype(np.float32),
    }
    abstract = backbone.abstract_batch(batch_size, inputs, targets)
    if "images" in abstract:
        numbers = rng.uniform(-1, 1, abstract["images"].shape).astype(np.float32)
        batch["images"] = backbone.as_images(numbers)
    if backbone.image_places is not None:
        placeholder, number = backbone.image_places
        text = batch["encoder_input_tokens"][:, :number]  # begins with an image, as far as there is text
        text[text > 1] = placeholder
    return batch


def init(model: nn.Module, batch: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Initializes a model; returns its parameters as plain arrays."""
    return nn.meta.unbox(jax.jit(model.init)(jax.random.key(seed), batch)["params"])
