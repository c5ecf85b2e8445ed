"""Vocabularies: ids and text equal those of seqio's of the same name; T5's extra ids; files that are not vocabularies."""

import json
import pathlib
import random

import jax.numpy as jnp
import pytest

from adalink_jax.data import ByteVocabulary, SentencePieceVocabulary, load_vocabulary
from adalink_jax.errors import UserError
from adalink_jax.models.stopping import StopStrings

REAL = pathlib.Path(__file__).parents[2] / "shared/data/t5_vocab/spiece.model"
SENTENCES = ["The house is wonderful.", "read the digits", "Z\u00fcrich \u2013 \u65e5\u672c", "", "  two  spaces ", "1, 2; <extra_id_0> or <extra_id_7>ly"]  # fmt: skip


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A small model with T5's first ids."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("vocabulary")
    rng = random.Random(0)
    words = "the house is wonderful read digits from right to left and a model adapts its embeddings".split()
    (folder / "corpus.txt").write_text("\n".join(" ".join(rng.choices(words, k=8)) + "." for _ in range(400)))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "spiece"), vocab_size=39, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return folder / "spiece.model"


@pytest.fixture(params=["small", "T5's"])
def model(request, spiece):
    if request.param == "T5's" and not REAL.exists():
        pytest.skip("T5's vocabulary is not on this machine")
    return REAL if request.param == "T5's" else spiece


def test_byte_vocabulary_equals_seqio_s():
    seqio = pytest.importorskip("seqio")
    vocabulary, reference = ByteVocabulary(), seqio.ByteVocabulary()
    for text in SENTENCES:
        assert vocabulary.encode(text) == list(reference.encode(text))
        assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.vocab_size == reference.vocab_size
    assert vocabulary.decode([*vocabulary.encode("a"), 1, *vocabulary.encode("b")]) == "a"


@pytest.mark.parametrize("extra_ids", [0, 100])
def test_sentencepiece_vocabulary_equals_seqio_s(model, extra_ids):
    seqio = pytest.importorskip("seqio")
    vocabulary, reference = (
        SentencePieceVocabulary(model, extra_ids),
        seqio.SentencePieceVocabulary(str(model), extra_ids),
    )
    assert vocabulary.vocab_size == reference.vocab_size
    rng = random.Random(0)
    for text in SENTENCES:
        assert vocabulary.encode(text) == list(reference.encode(text))
    for _ in range(50):
        ids = [rng.randrange(2, vocabulary.vocab_size + 10) for _ in range(12)] + [1, 5, 6]
        assert vocabulary.decode(ids) == reference.decode(ids)


def test_the_first_extra_id_is_the_last_id(model):
    vocabulary = SentencePieceVocabulary(model)
    last = vocabulary.vocab_size - 1
    ids = vocabulary.encode("the <extra_id_0> house <extra_id_99>")
    assert (ids[-1], last in ids) == (last - 99, True)
    assert vocabulary.decode(ids) == "the <extra_id_0> house <extra_id_99>"


@pytest.mark.skipif(not REAL.exists(), reason="T5's vocabulary is not on this machine")
def test_t5_s_ids_are_the_documented_ones():
    vocabulary = load_vocabulary(REAL)
    ids = vocabulary.encode("translate English to German: The house is wonderful.")
    assert ids == [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5]
    assert vocabulary.vocab_size == 32_100


def test_a_model_that_has_its_extra_ids_gets_no_others(spiece, tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(spiece.read_bytes())
    proto.pieces.add(piece="\u2581<extra_id_0>", score=0.0, type=proto.SentencePiece.USER_DEFINED)
    (tmp_path / "spiece.model").write_bytes(proto.SerializeToString())
    assert SentencePieceVocabulary(tmp_path / "spiece.model").vocab_size == 40


def test_what_tokens_add_is_what_is_decoded(model):
    vocabulary = SentencePieceVocabulary(model)
    added = vocabulary.token_bytes()
    for text in SENTENCES:
        ids = vocabulary.encode(text)
        assert b"".join(added[i] for i in ids).decode().removeprefix(" ") == vocabulary.decode(ids)


def test_stop_strings_are_found_across_pieces(model):
    vocabulary = SentencePieceVocabulary(model)
    stop, state = StopStrings(("use i",), vocabulary), jnp.int32(0)
    steps = []
    for i in vocabulary.encode("the house is wonderful"):
        steps.append(bool(stop.ends(state, vocabulary.vocab_size)[i]))
        state = stop.advance(state, jnp.int32(i))
    assert any(steps)
    assert stop.cut("the house is wonderful") == "the ho"


def test_a_folder_s_vocabulary_is_found(spiece, tmp_path):
    assert load_vocabulary("bytes").vocab_size == 259
    assert load_vocabulary(spiece.parent).vocab_size == 139
    pytest.importorskip("transformers")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    assert load_vocabulary(tmp_path).vocab_size == 384


def test_a_file_that_is_not_a_vocabulary_is_named(spiece, tmp_path):
    with pytest.raises(
        UserError, match="holds no spiece.model or tokenizer.json; give the vocabulary's path, or 'bytes'"
    ):
        load_vocabulary(tmp_path)
    with pytest.raises(UserError, match="There is no folder or SentencePiece model .*nowhere.model"):
        load_vocabulary(tmp_path / "nowhere.model")
    (tmp_path / "cut.model").write_bytes(spiece.read_bytes()[:500])
    (tmp_path / "text.model").write_bytes(b"no model at all")
    (tmp_path / "empty.model").write_bytes(b"")
    for name in ("cut", "text", "empty"):
        with pytest.raises(UserError, match=f"{name}.model is damaged, or not a SentencePiece model"):
            load_vocabulary(tmp_path / f"{name}.model")
