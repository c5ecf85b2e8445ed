"""Models of `transformers` made of Gemma's blocks, for the tests to compare with; like `references`.

Nothing stays at its initial value: norms and tables that start at zero are drawn too.
"""

from references import torch, transformers

VOCAB = 96
# Windows shorter than the inputs, groups of heads, a head width that is not D / H, soft caps that are felt.
SIDE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 10, "query_pre_attn_scalar": 7, "vocab_size": VOCAB, "sliding_window": 6, "max_position_embeddings": 512,
    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 6.0, "dropout_rate": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
SMALLER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
UNCAPPED = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
EQUAL = {**SIDE, **UNCAPPED, "num_key_value_heads": 4, "query_pre_attn_scalar": 40}
T5GEMMA_FORMS = {  # settings of the encoder and of the decoder; a seed whose outputs are varied
    "grouped": (SIDE, SIDE, 8),
    "one head each": (EQUAL, EQUAL, 5),
    "another decoder": (SIDE, {**SIDE, **SMALLER}, 8),
}


def make_t5gemma(form, vocab_size=VOCAB):
    """A T5Gemma with random weights."""
    *sides, seed = T5GEMMA_FORMS[form]
    torch.manual_seed(seed)
    encoder, decoder = (transformers.T5GemmaModuleConfig(**{**side, "vocab_size": vocab_size}) for side in sides)
    config = transformers.T5GemmaConfig(
        encoder=encoder, decoder=decoder, vocab_size=vocab_size, attn_implementation="eager"
    )
    model = transformers.T5GemmaForConditionalGeneration(config).eval()
    randomise(model, last_norm="decoder.norm")
    return model


T5GEMMA2_IMAGE, T5GEMMA2_END = 93, 92  # ids of the placeholder and of the end of an image
T5GEMMA2_TOKENS = 4  # of an image
_KINDS = ["sliding_attention", "full_attention"]
T5GEMMA2_SIDE = {name: value for name, value in SIDE.items() if "softcapping" not in name} | {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}  # fmt: skip


def make_t5gemma2(seed=3, vocab_size=VOCAB, image=T5GEMMA2_IMAGE, end=T5GEMMA2_END):
    """A T5Gemma 2 with random weights, of four and three layers, of which each second sees all tokens; images are 16 x 16."""
    torch.manual_seed(seed)
    encoder = {
        "text_config": {**T5GEMMA2_SIDE, "layer_types": _KINDS * 2, "vocab_size": vocab_size},
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 4, "vision_use_head": False,
        },
        "mm_tokens_per_image": T5GEMMA2_TOKENS, "boi_token_index": 91, "eoi_token_index": end,
    }  # fmt: skip
    decoder = {**T5GEMMA2_SIDE, "num_hidden_layers": 3, "layer_types": (_KINDS * 2)[:3], "vocab_size": vocab_size}
    config = transformers.T5Gemma2Config(encoder=encoder, decoder=decoder, image_token_index=image)
    config._attn_implementation = "eager"
    model = transformers.T5Gemma2ForConditionalGeneration(config).eval()
    randomise(model, last_norm="decoder.norm")
    return model


def make_tokenizer(folder, chat_template=None, extra=(), **tokens):
    """Writes a tokenizer of bytes in Gemma's form: inputs begin with BOS and have no EOS. It has 262 ids, `extra` ones, and named `tokens`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    specials = ("<pad>", "<eos>", "<bos>", "<unk>")
    words = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    parts = [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("\u2581", " ")]
    tokenizer.decoder = decoders.Sequence(parts)
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), specials))
    names |= {"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"], "chat_template": chat_template}
    names |= {"extra_special_tokens": tokens} if tokens else {}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.add_tokens([*extra], special_tokens=True)
    fast.save_pretrained(folder)


def randomise(model, last_norm):
    """Draws all weights: gains of norms about 1, of the last one about 0, so that the tied head does not repeat a token."""
    with torch.no_grad():
        for name, leaf in model.named_parameters():
            if leaf.ndim == 1:
                leaf.copy_(torch.randn_like(leaf) - 1 if last_norm in name else torch.randn_like(leaf) * 0.3)
            elif "embed_tokens" in name:
                leaf.copy_(torch.randn_like(leaf) * leaf.shape[1] ** -0.5)
            else:
                gain = 1.5 if name.endswith(("q_proj.weight", "k_proj.weight")) else 2.5
                leaf.copy_(torch.randn_like(leaf) * gain * leaf.shape[-1] ** -0.5)


PALIGEMMA_IMAGE = VOCAB  # the placeholder's id, behind the vocabulary
PALIGEMMA_FORMS = {  # transformers' type and settings of the text, and a seed whose outputs are varied
    "1": ("gemma", {"num_key_value_heads": 1, "head_dim": 10}, 1),
    "2": ("gemma2", {name: value for name, value in SIDE.items() if name != "dropout_rate"}, 1),
}


def make_paligemma(version, seed=None, image_token_index=PALIGEMMA_IMAGE, **overrides):
    """A PaliGemma with random weights, which reads images of 28 x 28 pixels as four tokens; `overrides` go to its text."""
    kind, settings, usual_seed = PALIGEMMA_FORMS[version]
    torch.manual_seed(usual_seed if seed is None else seed)
    sizes = {name: SIDE[name] for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings",
    )}  # fmt: skip
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": kind, **sizes, **settings, **overrides},
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 28, "patch_size": 14, "vision_use_head": False,
        },
        image_token_index=image_token_index, projection_dim=32, hidden_size=32, vocab_size=VOCAB,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = transformers.PaliGemmaForConditionalGeneration(config).eval()
    randomise(model, last_norm="language_model.norm")
    return model
