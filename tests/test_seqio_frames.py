"""seqio tasks with a vocabulary whose inputs do not just end with EOS: Gemma's begin with BOS, a chat template has text around them."""

import pytest

seqio = pytest.importorskip("seqio")

import tensorflow as tf  # noqa: E402
from gemma_references import make_tokenizer  # noqa: E402
from published import tasks_of, text, write_rte  # noqa: E402
from references import transformers  # noqa: E402
from test_free_sets import write_corpus  # noqa: E402
from test_t5gemma_files import GEMMA  # noqa: E402

from adalink_jax.data import DatasetConfig, get_tasks, load_vocabulary  # noqa: E402
from adalink_jax.data.published.registration import replace  # noqa: E402
from adalink_jax.data.seqio_vocabulary import seqio_vocabulary  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402


@pytest.mark.parametrize("chat, length", [("", 128), ("", 20), ("chat:", 128), ("chat:", 20)])
def test_inputs_have_their_beginning_and_end_and_the_text_alone_is_cut(tmp_path, chat, length):
    make_tokenizer(tmp_path / "base", GEMMA)
    write_rte(tmp_path)
    path, lengths = f"{chat}{tmp_path / 'base'}", {"inputs": length, "targets": 32}
    vocabulary = load_vocabulary(path)
    _, [task] = tasks_of("glue", "glue_rte", tmp_path, vocabulary=path, lengths=lengths)
    examples = list(task.examples("train"))
    texts = text(examples, "inputs_pretokenized")
    assert [list(x["inputs"]) for x in examples] == [vocabulary.input_ids(x, length) for x in texts]
    assert [list(x["targets"]) for x in examples] == [
        [*vocabulary.encode(x), 1] for x in text(examples, "targets_pretokenized")
    ]
    assert task.encode(texts[0]) == vocabulary.input_ids(texts[0])
    other = f"{'' if chat else 'chat:'}{tmp_path / 'base'}"
    assert seqio_vocabulary(path) == seqio_vocabulary(path) != seqio_vocabulary(other)


def make_tokenizer_with_own_eos(folder):
    """As MADLAD-400's: inputs end with EOS alone, and its id is 2."""
    from tokenizers import processors

    make_tokenizer(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, eos_token="<bos>")
    end = processors.TemplateProcessing(single="$A <bos>", special_tokens=[("<bos>", 2)])
    tokenizer.backend_tokenizer.post_processor = end
    tokenizer.save_pretrained(folder)


def test_inputs_may_end_with_the_vocabulary_s_own_eos(tmp_path):
    make_tokenizer_with_own_eos(tmp_path / "base")
    features = {
        name: seqio.Feature(seqio_vocabulary(str(tmp_path / "base")), add_eos=True) for name in ("inputs", "targets")
    }
    rows = lambda split, shuffle_files=False, seed=None: tf.data.Dataset.from_tensors({"inputs": "ab", "targets": "c"})
    steps = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim]
    replace(seqio.TaskRegistry, "own_eos")
    source = seqio.FunctionDataSource(rows, splits=("train", "validation", "test"))
    seqio.TaskRegistry.add("own_eos", source=source, preprocessors=steps, output_features=features)
    task, _ = get_tasks(DatasetConfig("own_eos", {"inputs": 8, "targets": 8}, 1, "published"))
    vocabulary = load_vocabulary(str(tmp_path / "base"))
    [example] = task.examples("train")
    assert list(example["inputs"]) == vocabulary.input_ids("ab") == [*vocabulary.encode("ab"), 2]
    assert list(example["targets"]) == [*vocabulary.encode("c"), 2]


@pytest.mark.parametrize("make", [make_tokenizer, make_tokenizer_with_own_eos])
def test_span_corruption_is_of_inputs_that_end_with_t5_s_eos(tmp_path, make):
    make(tmp_path / "base")
    write_corpus(tmp_path)
    lengths = {"inputs": 64, "targets": 32}
    task, _ = tasks_of("free", "corpus_openstax", tmp_path, vocabulary=str(tmp_path / "base"), lengths=lengths)
    with pytest.raises(UserError, match="Span corruption is T5's"):
        next(iter(task.examples("train")))


def test_a_task_that_ends_such_inputs_with_eos_is_refused(tmp_path):
    make_tokenizer(tmp_path)
    features = {name: seqio.Feature(seqio_vocabulary(str(tmp_path)), add_eos=True) for name in ("inputs", "targets")}
    replace(seqio.TaskRegistry, "ends_with_eos")
    source = seqio.FunctionDataSource(lambda split, shuffle_files=False, seed=None: None, splits=("train",))
    seqio.TaskRegistry.add("ends_with_eos", source=source, preprocessors=[], output_features=features)
    with pytest.raises(UserError, match=r"puts them between \[2\] and \[\]: declare them with add_eos=False"):
        get_tasks(DatasetConfig("ends_with_eos", {"inputs": 8, "targets": 8}, 2, "published"))
