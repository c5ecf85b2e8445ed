"""Tokenizers of Hugging Face folders: ids and text equal those of `transformers`, for folders as it saves them and as others do."""

import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

from etils import epath  # noqa: E402

from adalink_jax.checkpoints.hugging_face import copy_files  # noqa: E402
from adalink_jax.checkpoints.source import Source  # noqa: E402
from adalink_jax.data import FeatureConverter, WordPieceVocabulary, load_vocabulary  # noqa: E402
from adalink_jax.data.transformers_vocabulary import TransformersVocabulary  # noqa: E402
from adalink_jax.data.vocabularies import SentencePieceVocabulary, fingerprint, train_sentencepiece  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402

REAL = pathlib.Path(__file__).parents[2] / "shared/data/t5_vocab/spiece.model"
TEXTS = [
    "film { good } <sep> was",
    "The <extra_id_0> walks in <extra_id_1> park.",
    "a</s>b <pad> c <unk>",
    "<extra_id_7>ly  two  spaces \n and a <new>line ",
    "x<sep>y {z}  <sep>  q",
    "Z\u00fcrich \u2013 \u65e5\u672c \ufb01",
    "",
    " ",
]
ADDED = ["{", "}"]


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))


def added_tokens():
    special = {"special": True, "normalized": False}
    return [*ADDED, transformers.AddedToken("<sep>", lstrip=True, rstrip=True, **special),
            transformers.AddedToken("<new>", single_word=True, normalized=False)]  # fmt: skip


def model_saved(folder):
    """What a model's `save_pretrained` leaves, with the SentencePiece model beside it."""
    write(folder, "config.json", {"model_type": "t5"})


def added_tokens_json(folder):
    """As slow tokenizers of transformers 4 were saved."""
    model_saved(folder)
    size = len(transformers.T5Tokenizer.from_pretrained(folder))
    write(folder, "added_tokens.json", {token: size + i for i, token in enumerate((*ADDED, "<sep>"))})


def added_tokens_decoder(folder):
    size = len(transformers.T5Tokenizer.from_pretrained(folder))
    flags = {"lstrip": True, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    tokens = {str(size + i): {"content": token, **flags} for i, token in enumerate((*ADDED, "<sep>"))}
    write(folder, "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "added_tokens_decoder": tokens})


def fast_saved(folder):
    """As transformers 5 saves, without the SentencePiece model."""
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder)
    tokenizer.add_tokens(added_tokens())
    (folder / "spiece.model").unlink()
    tokenizer.save_pretrained(folder)


def of_mt5(folder):
    """The extra ids are pieces already."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString((folder / "spiece.model").read_bytes())
    for i in reversed(range(100)):
        proto.pieces.add(piece=f"\u2581<extra_id_{i}>", score=0.0, type=proto.SentencePiece.USER_DEFINED)
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    transformers.T5Tokenizer.from_pretrained(folder, extra_ids=0).save_pretrained(folder)
    write(folder, "config.json", {"model_type": "mt5"})


def of_byt5(folder):
    (folder / "spiece.model").unlink()
    tokenizer = transformers.ByT5Tokenizer()
    tokenizer.add_tokens(added_tokens())
    tokenizer.save_pretrained(folder)


def byt5_model_saved(folder):
    (folder / "spiece.model").unlink()
    write(folder, "config.json", {"model_type": "t5", "tokenizer_class": "ByT5Tokenizer"})


def native(folder):
    """A folder that was converted from one whose config.json alone names the model."""
    source = folder.parent / f"{folder.name}_source"
    shutil.copytree(folder, source)
    (folder / "spiece.model").unlink()
    copy_files(Source("", "", "", {}, epath.Path(source), config={"model_type": "t5"}), epath.Path(folder))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small SentencePiece model."""
    text = [
        "the film was good and the film was bad",
        "a dull film walks in the park",
        "what is this? hello 123 456",
    ] * 300
    return train_sentencepiece(text, 290, str(tmp_path_factory.mktemp("small")))


FOLDERS = [model_saved, added_tokens_json, added_tokens_decoder, fast_saved, of_mt5, of_byt5, byt5_model_saved, native]


@pytest.fixture(params=[(size, make) for size in ("small", "T5's") for make in FOLDERS if size == "small" or "byt5" not in make.__name__],
                ids=lambda param: f"{param[1].__name__}-{param[0]}")  # fmt: skip
def folder(request, small, tmp_path):
    size, make = request.param
    if size == "T5's" and not REAL.exists():
        pytest.skip("T5's vocabulary is not on this machine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/spiece.model").write_bytes((REAL if size == "T5's" else small).read_bytes())
    make(tmp_path / "folder")
    return tmp_path / "folder"


def test_ids_and_text_are_those_of_transformers(folder):
    vocabulary, reference = load_vocabulary(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert isinstance(vocabulary, TransformersVocabulary) and vocabulary.vocab_size == len(reference)
    rng = np.random.default_rng(0)
    for text in TEXTS:
        ids = reference.encode(text, add_special_tokens=False)
        assert vocabulary.encode(text) == ids
        until_end = ids[: ids.index(1)] if 1 in ids else ids
        assert vocabulary.decode([*ids, 1, 5, 0]) == reference.decode(until_end)
    for ids in rng.integers(2, len(reference), (20, 12)).tolist():
        assert vocabulary.decode(ids) == reference.decode(ids)
        assert vocabulary.decode([*ids, len(reference) + 20]) == reference.decode(ids)
    copied = pickle.loads(pickle.dumps(vocabulary))
    assert [copied.encode(text) for text in TEXTS] == [vocabulary.encode(text) for text in TEXTS]


def test_seqio_tasks_read_the_same_ids(folder):
    pytest.importorskip("seqio")
    from adalink_jax.data.seqio_vocabulary import seqio_vocabulary

    vocabulary, host = load_vocabulary(folder), seqio_vocabulary(str(folder))
    assert host.vocab_size == vocabulary.vocab_size and host == seqio_vocabulary(str(folder))
    for text in TEXTS:
        ids = vocabulary.encode(text)
        assert host.encode_tf(text).numpy().tolist() == list(host.encode(text)) == ids
        assert host.decode(ids) == vocabulary.decode(ids) == host.decode_tf(np.array([ids])).numpy()[0].decode()


def test_what_tokens_add_is_what_is_decoded(folder):
    vocabulary = load_vocabulary(folder)
    added = vocabulary.token_bytes()
    for text in ("film { good } was", "the <extra_id_0> park", "what is this?"):
        ids = vocabulary.encode(text)
        assert b"".join(added[i] for i in ids).decode().removeprefix(" ") == vocabulary.decode(ids)


def test_the_first_sentinel_is_the_first_extra_id(folder):
    vocabulary = load_vocabulary(folder)
    is_bytes = not ((folder / "spiece.model").exists() or (folder / "tokenizer.json").exists())
    assert vocabulary.first_sentinel == (258 if is_bytes else vocabulary.encode("a <extra_id_0>")[-1])


def test_a_sentencepiece_model_alone_is_read_as_seqio_does(small, tmp_path):
    (tmp_path / "spiece.model").write_bytes(small.read_bytes())
    plain = load_vocabulary(tmp_path)
    assert isinstance(plain, SentencePieceVocabulary) and 1 not in plain.encode("a</s>b")
    write(tmp_path, "config.json", {"model_type": "t5"})
    assert 1 in load_vocabulary(tmp_path).encode("a</s>b")
    assert 1 not in load_vocabulary(tmp_path / "spiece.model").encode("a</s>b")


def test_added_tokens_change_the_fingerprint(small, tmp_path):
    (tmp_path / "spiece.model").write_bytes(small.read_bytes())
    before = fingerprint(tmp_path)
    added_tokens_json(tmp_path)
    assert before == fingerprint(small) != fingerprint(tmp_path)


def test_a_tokenizer_that_its_files_contradict_is_refused_by_name(small, tmp_path):
    (tmp_path / "spiece.model").write_bytes(small.read_bytes())
    write(tmp_path, "added_tokens.json", {"{": 395, "}": 390})
    with pytest.raises(
        UserError, match=r"added_tokens.json gives the added token '\{' the id 395, and transformers reads 391"
    ):
        load_vocabulary(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"{": 4')
    with pytest.raises(UserError, match="added_tokens.json is damaged or cut short"):
        load_vocabulary(tmp_path)
    write(tmp_path, "added_tokens.json", ["{"])
    with pytest.raises(UserError, match=r"added_tokens.json holds \['\{'\], a list, not an object"):
        load_vocabulary(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    transformers.T5Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes()[:900])
    with pytest.raises(UserError, match="tokenizer.json is damaged or cut short"):
        load_vocabulary(tmp_path)


def test_a_tokenizer_that_ends_nothing_is_refused(small, tmp_path):
    (tmp_path / "spiece.model").write_bytes(small.read_bytes())
    transformers.T5Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(UserError, match="TokenizersBackend without an id that ends texts; add"):
        load_vocabulary(tmp_path)


def test_an_instruction_that_is_cut_keeps_its_end(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "##s", "?"]
    reference = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    reference.add_special_tokens({"bos_token": "[DEC]"})
    reference.save_pretrained(tmp_path / "qformer_tokenizer")
    vocabulary = WordPieceVocabulary(str(tmp_path))
    assert vocabulary.vocab_size == len(reference) == 11
    texts = ["what is it", "What is its? it is", "what", "it [SEP] [DEC] is", ""]
    batch = FeatureConverter({"inputs": 4, "targets": 3}, instructions=vocabulary)(
        [{"inputs": [5, 1], "targets": [6, 1], "inputs_pretokenized": text} for text in texts]
    )
    expected = reference(texts, truncation=True, max_length=4, padding="max_length")["input_ids"]
    assert batch["qformer_input_tokens"].tolist() == expected and expected[0] == [2, 5, 6, 3]
    assert [vocabulary.encode(text) for text in texts] == reference(texts)["input_ids"]
