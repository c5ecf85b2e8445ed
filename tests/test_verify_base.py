"""`adalink verify-base` passes on what transformers saves, and fails on what this package does not reproduce."""

import json
import shutil

import pytest
from references import make_reference, torch, transformers
from safetensors.numpy import load_file, save_file
from test_vision_parity import QUERIES, SIZES, randomise

from adalink_jax.checkpoints import convert, open_source
from adalink_jax.cli.main import main
from adalink_jax.data import load_vocabulary
from adalink_jax.data.vocabularies import train_sentencepiece
from adalink_jax.errors import CheckpointError
from adalink_jax.interop import verify_base

ROWS = 512
TEXT = ["The house is wonderful.", "translate English to German: Where is the nearest train station?"] * 20
LANGUAGE = ["T5 1.0", "T5 1.1", "mT5", "ByT5"]


def save_tokenizer(form, folder):
    """Saves the tokenizer of a form as transformers does."""
    if form == "ByT5":
        tokenizer = transformers.ByT5Tokenizer()
    else:
        train_sentencepiece(TEXT, 290, str(folder / "pieces"))
        tokenizer = transformers.T5Tokenizer.from_pretrained(folder / "pieces")
        shutil.rmtree(folder / "pieces")
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_language_model(form, folder):
    make_reference(form, vocab_size=ROWS).save_pretrained(folder)
    save_tokenizer(form, folder)


def write_blip(kind, folder):
    """A BLIP-2 or InstructBLIP with its tokenizers and image processor."""
    text = dict(model_type="t5", vocab_size=ROWS, d_model=32, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, d_kv=8,
                feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
                decoder_start_token_id=0)  # fmt: skip
    qformer = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32, hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0, vocab_size=50, max_position_embeddings=512)  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        vision_config=SIZES,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=ROWS - 1,
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    model.language_model.lm_head.weight = torch.nn.Parameter(torch.empty(ROWS, 32))
    randomise(model, seed=3)
    with torch.no_grad():
        model.language_model.lm_head.weight *= 4.0
        model.language_projection.weight *= 3.0
    model.save_pretrained(folder)
    save_tokenizer("T5 1.1", folder)
    transformers.BlipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    if kind == "InstructBlip":
        words = folder / "qformer_tokenizer"
        words.mkdir()
        marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "is", ".", "house", "what", "to", ":"]
        (words / "vocab.txt").write_text("\n".join(marks) + "\n")
        transformers.BertTokenizer(str(words / "vocab.txt")).save_pretrained(words)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function from a kind of model to a folder that transformers saved."""
    saved = {}

    def folder(kind):
        if kind not in saved:
            saved[kind] = tmp_path_factory.mktemp(kind.replace(" ", "_"))
            (write_language_model if kind in LANGUAGE else write_blip)(kind, saved[kind])
        return saved[kind]

    return folder


def changed(folder, to, file, **fields):
    shutil.copytree(folder, to)
    path = to / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))
    return to


def verified(source, reference=None):
    reference = str(reference or source)
    return verify_base(open_source(source), reference, load_vocabulary(reference))


def failures(verification):
    return {check.name for check in verification.checks if check.passed is False}


@pytest.mark.parametrize("kind", [*LANGUAGE, "Blip2", "InstructBlip"])
def test_folders_that_transformers_saved_pass(kind, folders):
    verification = verified(folders(kind))
    assert verification.agrees, verification.checks
    assert all(check.passed for check in verification.checks), verification.checks
    assert len({row.reference for row in verification.rows}) > 5
    assert ("pixels" in {check.name for check in verification.checks}) == (kind not in LANGUAGE)


@pytest.mark.parametrize(
    ("fields", "failed"),
    [
        ({"decoder_start_token_id": 5}, {"settings", "logits", "likelihoods", "outputs", "beam search"}),
        pytest.param({"pad_token_id": 3}, {"settings"}, marks=pytest.mark.slow),
        pytest.param({"eos_token_id": 40}, {"settings"}, marks=pytest.mark.slow),
    ],
)
def test_another_id_of_the_reference_fails(folders, tmp_path, fields, failed):
    """The base states the usual ids; before, the reference was given these."""
    convert(open_source(folders("ByT5")), tmp_path / "native", "native")
    other = changed(folders("ByT5"), tmp_path / "other", "config.json", **fields)
    (other / "generation_config.json").unlink()
    assert failed <= failures(verified(tmp_path / "native", other))


@pytest.mark.slow
def test_another_id_of_the_folder_itself_passes_if_its_tokenizer_agrees(folders, tmp_path):
    for field, passes in (("decoder_start_token_id", True), ("eos_token_id", False)):
        path = changed(folders("ByT5"), tmp_path / field, "config.json", **{field: 40})
        (path / "generation_config.json").unlink()
        verification = verified(path)
        assert verification.agrees == passes
        assert failures(verification) == (set() if passes else {"special ids"})


def test_settings_of_the_generation_that_are_not_read_are_named_and_fail_where_outputs_differ(folders, tmp_path):
    path = changed(
        folders("ByT5"), tmp_path / "x", "generation_config.json", repetition_penalty=4.0, no_repeat_ngram_size=1
    )
    verification = verified(path)
    assert "outputs" in failures(verification)
    assert "repetition_penalty 4.0" in verification.checks[-1].finding


def test_added_tokens_that_are_not_reproduced_fail(folders, tmp_path):
    path = shutil.copytree(folders("T5 1.1"), tmp_path / "x")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["house", "<sep>"])
    tokenizer.save_pretrained(path)
    assert verified(path).agrees
    verification = verify_base(open_source(path), str(path), load_vocabulary(folders("T5 1.1")))
    assert "tokens" in failures(verification)


@pytest.mark.slow
def test_another_resampling_fails(folders, tmp_path):
    path = changed(folders("Blip2"), tmp_path / "x", "preprocessor_config.json", resample=2)
    assert verified(path).agrees
    convert(open_source(folders("Blip2")), tmp_path / "native", "native")
    assert {"settings", "pixels"} <= failures(verified(tmp_path / "native", path))


def test_another_epsilon_is_refused(folders, tmp_path):
    path = changed(folders("ByT5"), tmp_path / "x", "config.json", layer_norm_epsilon=1e-3)
    with pytest.raises(CheckpointError, match="layer_norm_epsilon 0.001"):
        verified(path)
    text = json.loads((folders("Blip2") / "config.json").read_text())["text_config"]
    path = changed(folders("Blip2"), tmp_path / "y", "config.json", text_config=text | {"layer_norm_epsilon": 1e-3})
    with pytest.raises(CheckpointError, match="layer_norm_epsilon 0.001"):
        verified(path)


@pytest.mark.slow
def test_the_page_has_every_difference_and_the_exports(folders, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert main(["verify-base", str(folders("ByT5")), "--report", str(page)]) == 0
    out, text = " ".join(capsys.readouterr().out.split()), page.read_text()
    assert "send it to the project" in out and "bfloat16" in out
    for part in ("Checks", "Prompts", "Training", "Settings", "Origin", "export --to hf", "export --to torch", "fingerprint",
                 "language.decoder_start_token_id", "What is the capital of Norway?", "transformers"):  # fmt: skip
        assert part in text, part
    assert "DIFFERENT" not in text

    other = shutil.copytree(folders("ByT5"), tmp_path / "other")
    leaves = load_file(other / "model.safetensors")
    leaves["encoder.block.0.layer.0.SelfAttention.o.weight"] *= 1.1
    save_file(leaves, other / "model.safetensors", {"format": "pt"})
    argv = ["verify-base", str(other), "--reference", str(folders("ByT5")), "--report", str(page)]
    assert main(argv) == 1
    assert "DIFFERENT in logits" in page.read_text()
    assert "does NOT give the numbers" in " ".join(capsys.readouterr().out.split())
