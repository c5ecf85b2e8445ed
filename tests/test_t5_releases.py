"""Public T5s in the exact form of their folders: fields of `config.json`, names of tensors, special ids, tokenizers."""

import json

import jax
import numpy as np
import pytest
from references import torch, transformers
from safetensors.numpy import load_file, save_file
from test_t5_parity import assert_close, ours

from adalink_jax.checkpoints import open_source
from adalink_jax.data.vocabularies import load_vocabulary
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.serving import Predictor
from adalink_jax.training.setup import Setup

pytestmark = pytest.mark.usefixtures("exact_matmuls")

SIZES = {
    "vocab_size": 300,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
}
COMMON = {"is_encoder_decoder": True, "decoder_start_token_id": 0, "layer_norm_epsilon": 1e-6, "dropout_rate": 0.1,
          "relative_attention_num_buckets": 32, "initializer_factor": 1.0, "n_positions": 512, "output_past": True}  # fmt: skip
GATED = {
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
    "tie_word_embeddings": False,
}
STACKS = {f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")}
RELEASES = {  # fields of config.json; the names under which the file has the tables
    "MADLAD-400": ({**GATED, "model_type": "t5", "eos_token_id": 2, "pad_token_id": 1}, {*STACKS, "lm_head.weight"}),
    "Aya-101": ({**GATED, "model_type": "mt5", "eos_token_id": 1, "pad_token_id": 0, "tokenizer_class": "T5Tokenizer"},
                {"shared.weight", "lm_head.weight"}),
    "CodeT5": ({"model_type": "t5", "feed_forward_proj": "relu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
                "gradient_checkpointing": False, "tokenizer_class": "RobertaTokenizer"}, {"shared.weight"}),
    "LaMini-T5": ({"model_type": "t5", "feed_forward_proj": "relu", "dense_act_fn": "relu", "is_gated_act": False, "eos_token_id": 1,
                   "pad_token_id": 0, "task_specific_params": {"summarization": {"num_beams": 4, "prefix": "summarize: "}}},
                  {"shared.weight", *STACKS, "lm_head.weight"}),
    "FLAN-UL2": ({**GATED, "model_type": "t5", "feed_forward_proj": "gated-silu", "dense_act_fn": "silu", "eos_token_id": 1,
                  "pad_token_id": 0}, {"shared.weight", "lm_head.weight"}),
}  # fmt: skip


def release(name, folder):
    """Writes a small model in the form of a release; returns it."""
    fields, tables = RELEASES[name]
    kind = transformers.MT5Config if fields["model_type"] == "mt5" else transformers.T5Config
    config = kind(**{**SIZES, **COMMON, **fields})
    torch.manual_seed(3)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    if fields.get("tie_word_embeddings") is False:  # transformers 5 ties the head of a new T5, whatever the config says
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for leaf in model.parameters():
            leaf.copy_(torch.randn_like(leaf) * (0.3 if leaf.ndim == 1 else leaf.shape[-1] ** -0.5))
    state = {key: leaf.numpy().copy() for key, leaf in model.state_dict().items()}
    every = {"shared.weight", "lm_head.weight", *STACKS}
    folder.mkdir()
    save_file({key: x for key, x in state.items() if key not in every - tables}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({**SIZES, **COMMON, **fields, "architectures": [type(model).__name__]})
    )
    return model


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_s_form_gives_the_logits_of_transformers(name, tmp_path):
    theirs = release(name, tmp_path / "base")
    model, params = ours(tmp_path / "base")
    pad, rng = theirs.config.pad_token_id, np.random.default_rng(0)
    inputs, targets = (rng.integers(3, 300, shape).astype(np.int32) for shape in ((4, 11), (4, 7)))
    inputs[1:3, 8:] = pad
    with torch.no_grad():
        ids = torch.tensor(inputs.astype(np.int64))
        logits = theirs(
            input_ids=ids, attention_mask=ids != pad, decoder_input_ids=torch.tensor(targets.astype(np.int64))
        ).logits
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": targets}
    assert_close(jax.jit(model.apply)({"params": params}, batch), logits)
    fields = RELEASES[name][0]
    assert model.backbone.token_ids[:3] == (0, fields["pad_token_id"], fields["eos_token_id"])


def test_an_untied_head_is_not_taken_for_a_table_that_is_missing(tmp_path):
    release("MADLAD-400", tmp_path / "base")
    path = tmp_path / "base/model.safetensors"
    tensors = load_file(path)
    for name in STACKS:
        del tensors[name]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="no shared.weight, the embedding table"):
        open_source(tmp_path / "base")


def make_code_tokenizer(folder):
    """CodeT5's form: pairs of bytes as in RoBERTa, inputs `<s> text </s>`; pad 0, start 1, end 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    specials = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
    words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=False)
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token", "mask_token"), specials))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def test_a_tokenizer_with_other_special_ids_frames_inputs_and_ends_targets_as_it_does(tmp_path):
    make_code_tokenizer(tmp_path)
    vocabulary, theirs = load_vocabulary(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n    return 'caf\u00e9'"
    assert vocabulary.input_ids(text) == theirs(text).input_ids and vocabulary.eos == 2
    assert vocabulary.decode([*vocabulary.encode(text), 2, 9]) == text
    added = vocabulary.token_bytes()
    assert b"".join(added[i] for i in [*vocabulary.encode(text), 2, 0]).decode() == text


def test_a_vocabulary_that_ends_texts_otherwise_than_the_model_is_refused(tmp_path):
    release("LaMini-T5", tmp_path / "base")
    make_code_tokenizer(tmp_path / "code")
    setup = Setup(ours(tmp_path / "base")[0])
    with pytest.raises(UserError, match="use the model's own vocabulary"):
        Predictor(setup, vocabulary=str(tmp_path / "code"))
