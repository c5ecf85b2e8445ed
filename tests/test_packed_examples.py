"""Packed examples: each has the loss and the gradients that it has alone, in an order that any number of hosts can resume."""

import collections
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import VOCAB, tiny_pali, tiny_t5
from own_files_cases import csv_text, load, written

from adalink_jax import T5, AdaLinkAdapter, AdaptedModel
from adalink_jax.adapters import Chain, LoRA, NormTuning, PositionOffsets, PromptTuning, check_packable
from adalink_jax.adapters.bank import make_bank
from adalink_jax.cli.main import main
from adalink_jax.data import DatasetConfig, FeatureConverter, FileTask, train_batches
from adalink_jax.data.batch_order import epoch_seed
from adalink_jax.data.packed_examples import PackedIterator
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.attention import blockwise
from adalink_jax.models.seam import Inputs
from adalink_jax.parallel import unbox
from adalink_jax.training import partition
from adalink_jax.training.session import check_trainable
from adalink_jax.training.setup import Setup
from adalink_jax.training.step import packing_metrics

LENGTHS = {"inputs": 16, "targets": 8}


def random_examples(count, seed=0):
    """Short sequences that end in EOS; the inputs begin with the example's number plus 3."""
    rng = np.random.default_rng(seed)
    ids = lambda most: [*rng.integers(3, VOCAB, rng.integers(0, most)).tolist(), 1]
    return [{"inputs": [3 + i, *ids(9)], "targets": ids(4)} for i in range(count)]


def shuffled(examples):
    return lambda seed, start: [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))[start:]]


def packed(examples, batch_size=4, lengths=LENGTHS, rows=None):
    return PackedIterator(shuffled(examples), FeatureConverter(lengths), batch_size, 0, rows)


def numbers(batch):
    """The numbers of the examples in each row."""
    starts = (batch["encoder_positions"] == 0) & (batch["encoder_segment_ids"] > 0)
    return [(row[start] - 3).tolist() for row, start in zip(batch["encoder_input_tokens"], starts)]


# --- the data ---


def test_features_are_t5x_s():
    first = [{"inputs": [5, 6, 1], "targets": [7, 1]}, {"inputs": [8, 1], "targets": [9, 9, 1]}]
    batch = FeatureConverter({"inputs": 6, "targets": 6}).packed([first, [{"inputs": [4] * 9, "targets": [1]}]])
    expected = {
        "encoder_input_tokens": [[5, 6, 1, 8, 1, 0], [4] * 6],  # cut
        "encoder_segment_ids": [[1, 1, 1, 2, 2, 0], [1] * 6],
        "encoder_positions": [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]],
        "decoder_target_tokens": [[7, 1, 9, 9, 1, 0], [1, 0, 0, 0, 0, 0]],
        "decoder_input_tokens": [[0, 7, 0, 9, 9, 0], [0] * 6],
        "decoder_loss_weights": [[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]],
        "decoder_segment_ids": [[1, 1, 2, 2, 2, 0], [1, 0, 0, 0, 0, 0]],
        "decoder_positions": [[0, 1, 0, 1, 2, 0], [0] * 6],
    }
    assert batch.keys() == expected.keys() == T5(tiny_t5()).abstract_packed_batch(2, 6, 6).keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)
        assert batch[name].dtype == (np.float32 if name == "decoder_loss_weights" else np.int32)


def test_an_example_goes_into_the_first_row_with_room_for_both_sides():
    sizes = [(10, 1), (4, 8), (6, 1), (9, 1), (3, 1), (9, 1)]  # the third has no room in the second row's targets
    examples = [{"inputs": [3 + i] * size[0], "targets": [1] * size[1]} for i, size in enumerate(sizes)]
    batch = next(PackedIterator(lambda seed, start: examples[start:], FeatureConverter(LENGTHS), 3, 0))
    assert numbers(batch) == [[0, 2], [1], [3, 4]]


def test_epochs_follow_each_other_with_every_example_once():
    examples, seen = random_examples(40), collections.Counter()
    batches = packed(examples)
    for _ in range(30):
        rows = numbers(next(batches))
        assert all(rows)
        seen.update(sum(rows, []))
        state = batches.get_state()
        begun = shuffled(examples)(epoch_seed(0, state["epoch"]), 0)[: state["example"]]
        begun = collections.Counter(example["inputs"][0] - 3 for example in begun)
        assert seen == collections.Counter({i: state["epoch"] + begun[i] for i in range(40)})
    assert state["epoch"] >= 3


def test_no_more_than_a_batch_is_in_memory():
    read = []

    def examples(seed, start):
        for example in random_examples(1000)[start:]:
            read.append(example)
            yield example

    batches = PackedIterator(examples, FeatureConverter(LENGTHS), 4, 0)
    for _ in range(10):
        next(batches)
        assert len(read) == batches.get_state()["example"] + 1


def test_any_position_resumes_on_any_number_of_hosts():
    steady, states, expected = packed(random_examples(40)), [], []
    for _ in range(14):
        states.append(json.loads(json.dumps(steady.get_state())))
        expected.append(next(steady))
    for position in (0, 5, 13):
        for rows in ([0, 1, 2, 3], [0, 2], [1, 3], [3]):
            resumed = packed(random_examples(40), rows=rows)
            resumed.set_state(states[position])
            for batch in expected[position:]:
                np.testing.assert_equal(next(resumed), {name: x[rows] for name, x in batch.items()})
                assert resumed.get_state() in [*states, steady.get_state()]


def test_short_texts_fill_nine_tenths_of_the_rows():
    batch = next(packed(random_examples(500), 16, {"inputs": 64, "targets": 32}))
    metrics = packing_metrics(batch)
    tokens = [np.count_nonzero(batch[f"{side}_segment_ids"]) for side in ("encoder", "decoder")]
    assert metrics["non_padding_fraction"] == pytest.approx(sum(tokens) / (16 * 96))
    assert metrics["examples"] == len(sum(numbers(batch), [])) == 16 * metrics["examples_per_row"]
    assert tokens[0] / (16 * 64) > 0.9
    assert packing_metrics({"encoder_input_tokens": batch["encoder_input_tokens"]}) == {}


def test_your_own_files_are_packed_with_the_examples_of_their_epoch(tmp_path):
    task = load(written(tmp_path, "a.csv", csv_text([(f"text {i}", str(i)) for i in range(100)])))
    lengths = {"inputs": 64, "targets": 32}
    batches = train_batches(task, DatasetConfig("mine", lengths, 4, seed=3, pack=True), FeatureConverter(lengths))
    order = [row["targets_pretokenized"] for row in task.examples("train", epoch_seed(3, 0))]
    batch, texts = next(batches), []
    for row, ids in zip(batch["decoder_target_tokens"], batch["decoder_segment_ids"]):
        texts += [task.decode(row[ids == i]) for i in range(1, ids.max() + 1)]
    assert sorted(texts) == sorted(order[: len(texts)]) and len(texts) > 12


def test_a_split_without_examples_is_refused():
    with pytest.raises(UserError, match="the data has no examples to train on"):
        next(packed([]))


def test_a_run_logs_how_well_rows_are_filled(tmp_path):
    data = written(tmp_path, "a.csv", csv_text([(f"text {i}", "yes" if i % 2 else "no") for i in range(400)]))
    sizes = {"emb_dim": 32, "mlp_dim": 32, "num_heads": 2, "head_dim": 8, "vocab_size": 384}
    sizes |= {"num_encoder_layers": 1, "num_decoder_layers": 1}
    macros = {
        "DATA": str(data), "INPUTS": "{text}", "TARGETS": "{label}", "VOCABULARY": "bytes", "MIXTURE_OR_TASK_NAME": "mine",
        "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 32}, "BATCH_SIZE": 8, "PACK_EXAMPLES": True, "METRIC": None,
        "TRAIN_STEPS": 2, "WARMUP_STEPS": 1, "train.log_period": 1, "MODEL_DIR": f"{tmp_path}/run",
    } | {f"T5Config.{name}": value for name, value in sizes.items()}  # fmt: skip
    files = ("models/t5_1_1_small", "tasks/files", "runs/pretrain")
    flags = [f"--gin_file=gin/{name}.gin" for name in files] + [
        f"--gin.{name}={value!r}" for name, value in macros.items()
    ]
    assert main(["train", *flags]) == 0
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["train/examples"] == 8 * row["train/examples_per_row"] >= 8 * 5
        assert 0.7 < row["train/non_padding_fraction"] < 1
        assert row["train/examples_per_second"] > 0


# --- the model ---


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blockwise, "_TILE", 2**6)


ADAPTERS = {
    "AdaLink": AdaLinkAdapter(rank=2, kinds=("text", "target")),
    "offsets": Chain((AdaLinkAdapter(rank=2), PositionOffsets(16, 2))),
    "LoRA": LoRA(rank=2),
    "full": None,
}


def example_losses(model, params, batch, segments):
    """The loss of each example: `segments` [B, T] numbers the examples of a row from 1."""
    logits = model.apply({"params": params}, batch)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["decoder_target_tokens"][..., None], -1)[..., 0]
    of_example = segments[..., None] == jnp.arange(1, int(segments.max()) + 1)
    return -jnp.einsum("bt,bti->bi", log_p * batch["decoder_loss_weights"], of_example.astype(jnp.float32))


@pytest.mark.usefixtures("exact_matmuls", "small_blocks")
@pytest.mark.parametrize("adapter, scanned, attention", [
    ("AdaLink", True, "reference"), ("LoRA", True, "blockwise"), ("offsets", False, "blockwise"), ("full", False, "reference"),
])  # fmt: skip
def test_each_example_has_the_loss_and_the_gradients_that_it_has_alone(adapter, scanned, attention):
    method = ADAPTERS[adapter]
    layers = 2 if scanned else 1
    config = tiny_t5(attention=attention, scan_layers=scanned, num_encoder_layers=layers, num_decoder_layers=layers)
    model = AdaptedModel(T5(config), method)
    examples = random_examples(11)
    alone = FeatureConverter({"inputs": 11, "targets": 5})(examples)
    together = next(packed(examples, 3))
    rows = numbers(together)
    alone = {name: x[sum(rows, [])] for name, x in alone.items()}
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), alone)["params"])
    params = jax.tree.map(lambda x: 0.3 * jax.random.normal(jax.random.key(math.prod(x.shape)), x.shape), shapes)
    trainable, frozen = partition.split(paths.flatten(params), ("backbone/.*" if method is None else "adapter/.*",))

    def run(batch, segments):
        """The examples' losses, and the gradients of their sum."""

        def total(trainable):
            losses = example_losses(model, partition.merge(trainable, frozen), batch, segments)
            return jnp.sum(losses), losses

        (_, losses), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(trainable)
        return losses, gradients

    losses, gradients = run(alone, np.ones_like(alone["decoder_target_tokens"]))
    packed_losses, packed_gradients = run(together, together["decoder_segment_ids"])
    packed_losses = np.concatenate([row[: len(number)] for row, number in zip(packed_losses, rows)])
    np.testing.assert_allclose(packed_losses, losses[:, 0], rtol=1e-5)
    spread = np.std(np.concatenate([np.ravel(x) for x in gradients.values()]))
    for name, gradient in gradients.items():
        np.testing.assert_allclose(packed_gradients[name], gradient, rtol=1e-4, atol=1e-5 * spread, err_msg=name)


def test_a_prompt_an_image_and_a_bank_are_refused_before_anything_is_compiled():
    prompt = PromptTuning(length=2)
    refused = {
        "PromptTuning does not keep the examples of a packed row apart": prompt,
        "Chain does not keep": Chain((AdaLinkAdapter(rank=2), prompt)),
        "Bank does not keep": make_bank(AdaLinkAdapter(rank=2)),
    }
    batch = next(packed(random_examples(9), 1))
    dataset = DatasetConfig("mine", LENGTHS, 8, pack=True)
    for words, adapter in refused.items():
        model = AdaptedModel(T5(tiny_t5()), adapter)
        with pytest.raises(UserError, match=words):
            check_trainable(Setup(model, ("adapter/.*",), dataset))
        with pytest.raises(UserError, match=words):
            jax.eval_shape(model.init, jax.random.key(0), batch)
    with pytest.raises(UserError, match="PaLI reads images, and only text can be packed"):
        check_trainable(Setup(AdaptedModel(tiny_pali(), AdaLinkAdapter(rank=2)), ("adapter/.*",), dataset))
    for adapter in (LoRA(rank=2), NormTuning(), None):
        check_packable(T5(tiny_t5()), adapter)
    text = jnp.zeros((1, 3, 32))
    inputs = Inputs(prompt=text, prompt_mask=jnp.ones((1, 3), bool), text=text, text_mask=jnp.ones((1, 3), bool))
    with pytest.raises(UserError, match="would precede a row of packed examples"):
        T5(tiny_t5()).bind({}).encode(inputs.replace(text_segments=jnp.ones((1, 3), jnp.int32)))


def test_a_plan_has_the_packed_step(capsys):
    flags = ["--gin_file=gin/models/pali_nano.gin", "--gin_file=gin/adapters/adalink.gin", "--topology=v5e:1x1"]
    assert main(["plan", *flags, "--gin.PACK_EXAMPLES=True"]) == 2
    assert "PaLI reads images, and only text can be packed" in capsys.readouterr().err


def test_examples_with_images_and_worker_processes_are_refused():
    with pytest.raises(UserError, match="mine has images, and only text can be packed"):
        FeatureConverter(LENGTHS, task_name="mine").packed([[{"inputs": [3], "targets": [1], "image": b""}]])
    files = FileTask(data="a.csv", inputs="{text}", targets="{label}", vocabulary="bytes", workers=2)
    with pytest.raises(UserError, match="PACK_EXAMPLES is True and WORKERS 2"):
        DatasetConfig("mine", LENGTHS, 8, own_files=files, pack=True)
