"""Initial values of prompts: from the vocabulary and from class labels, alone and in a pack."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import tiny_t5gemma

from adalink_jax import AdaptedModel, PromptTuning, configuration, parallel
from adalink_jax.cli.arguments import register
from adalink_jax.errors import UserError
from adalink_jax.training.packs.members import Member
from adalink_jax.training.packs.pack import load_pack
from adalink_jax.training.prompt_start import from_class_labels, from_vocabulary
from adalink_jax.training.setup import Setup, apply_adapter_start, load_parameters

FILES = ("models/pali_nano", "adapters/prompt_tuning", "tasks/digits", "runs/finetune")


def setup_of(*flags) -> Setup:
    register()
    needed = ["TRAIN_STEPS=100", "MODEL_DIR='x'", "INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'",
              "MIXTURE_OR_TASK_NAME='digits_reverse'", "PROMPT_LENGTH=6", *flags]  # fmt: skip
    arguments = [f"--gin_file=gin/{name}.gin" for name in FILES] + [f"--gin.{flag}" for flag in needed]
    configuration.load(configuration.parse_flags(arguments)[0])
    return Setup()


def load(setup):
    params = load_parameters(setup, parallel.make_mesh(), parallel.logical_axis_rules())
    return np.asarray(params.frozen["backbone/token_embedder/embedding"]), params


def row_of(table, vector):
    found = np.flatnonzero((table == vector).all(axis=1))
    assert len(found) == 1
    return int(found[0])


def test_rows_of_the_vocabulary_are_drawn_once_each_by_the_seed():
    setup = setup_of("PROMPT_START=@from_vocabulary()", "from_vocabulary.most_common=20")
    table, params = load(setup)
    prompt = np.asarray(params.trainable["adapter/prompt"])
    rows = [row_of(table, vector) for vector in prompt]
    assert len(set(rows)) == 6 and min(rows) >= 3 and max(rows) < 20
    assert "PROMPT_START" in params.sources["adapter"]
    _, again = load(setup)
    np.testing.assert_array_equal(again.trainable["adapter/prompt"], prompt)
    _, other = load(dataclasses.replace(setup, random_seed=1))
    assert (np.asarray(other.trainable["adapter/prompt"]) != prompt).any()


def test_the_table_is_the_encoder_s_as_it_enters_the_seam():
    """T5Gemma: the encoder's own table, and multiplied by sqrt(32)."""
    setup = Setup(
        AdaptedModel(tiny_t5gemma(), PromptTuning(2)), adapter_start=lambda adapter, table, key: {"prompt": table}
    )
    tables = {"token_embedder": np.ones((64, 24)), "encoder/token_embedder": np.full((64, 32), 2.0)}
    leaves = {f"backbone/{name}/embedding": table for name, table in tables.items()}
    np.testing.assert_allclose(apply_adapter_start(setup, {}, leaves)["prompt"], np.full((64, 32), 2 * 32**0.5))


def test_labels_come_first_each_the_mean_of_its_tokens():
    flags = [
        "PROMPT_START=@from_class_labels()",
        "from_class_labels.labels=('7','no')",
        "from_class_labels.vocabulary='bytes'",
    ]
    table, params = load(setup_of(*flags))
    prompt = np.asarray(params.trainable["adapter/prompt"])
    np.testing.assert_array_equal(prompt[0], table[ord("7") + 3])
    np.testing.assert_allclose(prompt[1], (table[ord("n") + 3] + table[ord("o") + 3]) / 2, rtol=1e-6)
    assert len({row_of(table, vector) for vector in prompt[2:]}) == 4


def test_a_member_of_a_pack_starts_as_it_does_alone():
    setup = setup_of("PROMPT_START=@from_vocabulary()")
    members = [Member(0.1, 0), Member(0.1, 5)]
    pack = load_pack(setup, members, parallel.make_mesh(), parallel.logical_axis_rules())
    for number, member in enumerate(members):
        _, alone = load(member.setup(setup))
        np.testing.assert_array_equal(
            pack.member(pack.trainable, number)["adapter/prompt"], alone.trainable["adapter/prompt"]
        )


def test_only_prompts_are_replaced():
    adapter = {"adapters_0/text/down": np.ones(2), "adapters_1/prompt": np.zeros((2, 4))}
    table = np.arange(40.0).reshape(10, 4)
    found = from_vocabulary()(adapter, table, jax.random.key(0))
    np.testing.assert_array_equal(found["adapters_0/text/down"], np.ones(2))
    assert min(row_of(table, vector) for vector in np.asarray(found["adapters_1/prompt"])) >= 3


def test_impossible_starts_are_refused():
    table, key = np.ones((10, 4)), jax.random.key(0)
    prompt = lambda length: {"prompt": np.zeros((length, 4))}
    with pytest.raises(UserError, match="the adapter has no prompt"):
        from_vocabulary()({"text/down": np.zeros(2)}, table, key)
    with pytest.raises(UserError, match="8 positions to fill and the vocabulary 7 tokens"):
        from_vocabulary()(prompt(8), table, key)
    with pytest.raises(UserError, match="has 3 labels for a prompt of 2"):
        from_class_labels(("a", "b", "c"), "bytes")(prompt(2), table, key)
    with pytest.raises(UserError, match="'a' has no tokens among the 10 of the base"):
        from_class_labels(("a",), "bytes")(prompt(2), table, key)
    setup = setup_of("PROMPT_START=@from_vocabulary()", "INITIAL_ADAPTER_PATH='somewhere'")
    with pytest.raises(UserError, match="PROMPT_START and INITIAL_ADAPTER_PATH are both set"):
        load(setup)
