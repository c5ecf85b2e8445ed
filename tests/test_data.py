"""Data: saved positions, digits that never leak across splits, features, vocabularies, uneven batches, k-shot."""

import numpy as np
import pytest

from adalink_jax.data import DatasetConfig, EpochIterator, FeatureConverter, digits, padded_batches, train_batches
from adalink_jax.data.metrics import accuracy
from adalink_jax.errors import UserError

LENGTHS = {"inputs": 6, "targets": 4}


def numbered(count):
    """Examples whose input is their number, in an order that depends on the seed."""

    def examples(seed, start):
        order = np.random.default_rng(seed).permutation(count)[start:]
        return ({"inputs": [i + 3, 1], "targets": [i + 3, 1]} for i in order)

    return examples


def make(count=10, batch_size=4, seed=0):
    return EpochIterator(numbered(count), FeatureConverter(LENGTHS), batch_size, seed)


def test_a_restored_position_gives_the_same_batches():
    steady, batches = make(), []
    states = []
    for _ in range(7):  # 2 batches an epoch: crosses epochs
        states.append(steady.get_state())
        batches.append(next(steady))
    for position in (0, 3, 4, 6):
        resumed = make()
        resumed.set_state(states[position])
        for expected in batches[position:]:
            np.testing.assert_equal(next(resumed), expected)


def test_epochs_are_shuffled_differently_and_hold_each_example_once():
    iterator = make(count=8)
    epochs = [np.concatenate([next(iterator)["encoder_input_tokens"][:, 0] for _ in range(2)]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(3, 11))
    assert list(epochs[0]) != list(epochs[1])


def test_another_seed_gives_another_order():
    assert (next(make(seed=1))["encoder_input_tokens"] != next(make(seed=2))["encoder_input_tokens"]).any()


def test_fewer_examples_than_a_batch_is_an_error():
    with pytest.raises(UserError, match="fewer examples than the batch size, 4"):
        next(make(count=3))


def test_features_are_t5x_s():
    batch = FeatureConverter(LENGTHS)([{"inputs": [5, 6, 1], "targets": [7, 8, 9, 10, 1]}], batch_size=2)
    np.testing.assert_array_equal(batch["encoder_input_tokens"], [[5, 6, 1, 0, 0, 0], [0] * 6])
    np.testing.assert_array_equal(batch["decoder_target_tokens"], [[7, 8, 9, 10], [0] * 4])  # cut
    np.testing.assert_array_equal(batch["decoder_input_tokens"], [[0, 7, 8, 9], [0] * 4])
    np.testing.assert_array_equal(batch["decoder_loss_weights"], [[1, 1, 1, 1], [0] * 4])


def test_an_uneven_last_batch_holds_every_example_once():
    examples = [{"inputs": [i + 3], "targets": [i + 3]} for i in range(10)]
    batches = list(padded_batches(examples, FeatureConverter(LENGTHS), 4))
    assert {batch["encoder_input_tokens"].shape for batch, _ in batches} == {(4, 6)}
    assert [row["inputs"][0] for _, rows in batches for row in rows] == list(range(3, 13))
    assert sum(batch["decoder_loss_weights"].sum() for batch, _ in batches) == 10


def test_digit_images_are_split_before_scenes_are_composed():
    tiles = {}
    for split in digits.SCENES:
        scenes = digits.compose("digits_read", split)["image"]
        cut = scenes.reshape(-1, 8, digits.NUM_DIGITS, 8).transpose(0, 2, 1, 3).reshape(-1, 64)
        tiles[split] = {tile.tobytes() for tile in cut}
    assert len(tiles["train"]) > 1000
    assert not tiles["train"] & tiles["validation"]
    assert not tiles["train"] & tiles["test"]
    assert not tiles["validation"] & tiles["test"]


def test_answers_follow_from_the_digits_shown():
    read, reverse, total = (digits.compose(f"digits_{name}", "test") for name in ("read", "reverse", "sum"))
    np.testing.assert_array_equal(read["image"], reverse["image"])
    for a, b, c in zip(read["targets"], reverse["targets"], total["targets"]):
        assert a.split() == b.split()[::-1]
        assert int(c) == sum(map(int, a.split()))


def test_shifted_images_show_the_same_digits():
    plain, inverted, rotated = (digits.compose(f"digits_{name}", "test") for name in ("read", "inverted", "rotated"))
    np.testing.assert_array_equal(plain["targets"], inverted["targets"])
    np.testing.assert_allclose(inverted["image"], -plain["image"])
    np.testing.assert_array_equal(rotated["image"][0, :, :8, 0], np.rot90(plain["image"][0, :, :8, 0]))


def test_accuracy_counts_exact_matches():
    assert accuracy(["a", "b", "c", "d"], ["a", "B", "c", ""]) == {"accuracy": 0.5}
    with pytest.raises(UserError, match="one prediction per target"):
        accuracy(["a"], [])


@pytest.fixture(scope="module")
def instruct():
    pytest.importorskip("seqio")
    from adalink_jax.data import DatasetConfig, get_tasks

    return get_tasks(DatasetConfig("digits_instruct", {"inputs": 24, "targets": 4}, 8))


@pytest.mark.slow
def test_a_seqio_mixture_is_deterministic_and_starts_anywhere(instruct):
    mixture, _ = instruct
    take = lambda seed, start: [bytes(ex["inputs"]) for ex, _ in zip(mixture.examples("train", seed, start), range(8))]
    assert take(3, 0)[5:] == take(3, 5)[:3]
    assert take(3, 0) != take(4, 0)
    assert len(set(take(3, 0))) > 1  # several questions


def test_seqio_tasks_are_scored_on_decoded_text(instruct):
    _, tasks = instruct
    assert sorted(task.name for task in tasks) == sorted(digits.INSTRUCT)
    task = next(task for task in tasks if task.name == "digits_sum")
    examples = [ex for ex, _ in zip(task.examples("test"), range(20))]
    right = [task.decode(ex["targets"]) for ex in examples]
    assert task.score(examples, right) == {"accuracy": 1.0}
    assert task.score(examples, ["x", *right[1:]]) == {"accuracy": 0.95}
    assert examples[0]["image"].shape == digits.SCENE_SHAPE


@pytest.mark.parametrize("shape", [(2, 3), (None, 3)])
def test_examples_equal_the_task_s_for_features_of_all_kinds(shape):
    seqio, tf = pytest.importorskip("seqio"), pytest.importorskip("tensorflow")
    from adalink_jax.data.seqio_source import SeqioTask

    def rows():
        for i in range(150):
            ids = np.arange(i % 7, dtype=np.int32)
            yield {
                "inputs": ids, "targets": ids[:1], "image": np.full((2, 3), i, np.float32), "label": i, "name": f"n{i}",
                "words": ["a"] * (i % 3), "box": np.full(4, i, np.float32), "file": b"\x00\xff",
            }  # fmt: skip

    ids, words = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.string)
    spec = lambda kind, *shape: tf.TensorSpec(shape, kind)
    signature = {
        "inputs": ids, "targets": ids, "image": spec(tf.float32, *shape), "label": spec(tf.int64), "name": spec(tf.string),
        "words": words, "box": spec(tf.float32, 4), "file": spec(tf.string),
    }  # fmt: skip
    dataset = lambda split, shuffle_files, seed=None: tf.data.Dataset.from_generator(rows, output_signature=signature)
    feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=False)
    task = seqio.Task(
        "rows_of_all_kinds", seqio.FunctionDataSource(dataset, splits=["train"]), dict.fromkeys(("inputs", "targets"), feature),
        [],
    )  # fmt: skip
    lengths = {"inputs": 8, "targets": 8}
    wanted = list(task.get_dataset(lengths, split="train", shuffle=False, num_epochs=1).as_numpy_iterator())
    for start in (0, 100):
        examples = list(SeqioTask(task, lengths, False).examples("train", start=start))
        assert len(examples) == 150 - start
        for example, expected in zip(examples, wanted[start:]):
            assert example.keys() == expected.keys()
            for name, value in expected.items():
                assert type(example[name]) is type(value) and np.array_equal(example[name], value), name
                assert np.asarray(example[name]).dtype == np.asarray(value).dtype


def test_the_error_for_an_unknown_task_names_the_nearest(instruct):
    from adalink_jax.data import DatasetConfig, get_tasks

    with pytest.raises(UserError, match="digits_reverse"):
        get_tasks(DatasetConfig("digit_revers", {"inputs": 24, "targets": 4}, 8))


# --- k-shot ---


class Numbered:
    """A task of 50 numbered examples."""

    name, vocab_size, has_images, labels = "numbered", 60, False, None

    def examples(self, split, seed=None, start=0):
        assert split == "train"
        return numbered(50)(seed, start)


def shots(count, seed=0, batch_size=4):
    dataset = DatasetConfig("numbered", LENGTHS, batch_size, seed=seed, train_examples=count)
    return train_batches(Numbered(), dataset, FeatureConverter(LENGTHS))


def seen(batches, steps):
    return [next(batches)["encoder_input_tokens"][:, 0].tolist() for _ in range(steps)]


def test_k_shot_training_sees_the_same_k_examples_in_every_epoch():
    epochs = [sum(rows, []) for rows in zip(*[iter(seen(shots(8), 6))] * 2)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(epochs[0])] * 3 and len(set(epochs[0])) == 8
    assert epochs[0] != epochs[1]


def test_the_seed_draws_the_k_examples():
    assert set(sum(seen(shots(8, seed=1), 2), [])) != set(sum(seen(shots(8, seed=2), 2), []))
    assert seen(shots(8, seed=1), 5) == seen(shots(8, seed=1), 5)


def test_k_shot_training_resumes_at_its_position():
    batches = shots(8)
    seen(batches, 3)
    state, rest = batches.get_state(), seen(batches, 4)
    again = shots(8)
    again.set_state(state)
    assert seen(again, 4) == rest


def test_more_shots_than_examples_and_fewer_than_a_batch_are_refused():
    with pytest.raises(UserError, match="TRAIN_EXAMPLES is 60, and the training split has 50"):
        next(shots(60))
    with pytest.raises(UserError, match="TRAIN_EXAMPLES is 3 and BATCH_SIZE 4"):
        shots(3)


@pytest.mark.parametrize("processes, batch, how, says", [
    (1, 0, {}, False), (1, 3124, {}, False), (1, 3125, {}, True), (2, 0, {}, True),
    (2, 10**6, {"task_cache": "cache"}, False), (2, 10**6, {"train_examples": 64}, False),
])  # fmt: skip
def test_a_run_says_what_a_stream_costs_only_where_it_costs(processes, batch, how, says):
    config = DatasetConfig("digits_reverse", {"inputs": 24, "targets": 4}, 32, **how)
    note = config.stream_note(processes, {"epoch": 0, "batch": batch})
    assert (note is not None) == says
    if note:
        assert (
            "`adalink cache-task digits_reverse FOLDER` writes it once" in note and f"{batch * 32:,} examples" in note
        )
