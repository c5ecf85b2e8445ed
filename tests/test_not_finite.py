"""A step whose loss or gradient is not finite: what is kept, and that the message names the example, the part and the leaf."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali

import adalink_jax as al
from adalink_jax import parallel
from adalink_jax.adapters import AdaptedModel
from adalink_jax.errors import NotFinite
from adalink_jax.training import optimizers, partition
from adalink_jax.training.loop import StepNotFinite
from adalink_jax.training.not_finite import Explanation, first_failing, holding
from adalink_jax.training.step import CrossEntropy, TrainState, make_gradients, make_train_step

BASE = "bundled:pali_nano_instruct"
ROWS = [{"inputs": f"is {i} even", "targets": "no" if i % 2 else "yes"} for i in range(48)]
HELD = [{"inputs": f"and {i}", "targets": "no" if i % 2 else "yes"} for i in range(8)]

# Orbax's own, as in test_run.py.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def base():
    return al.load_base(BASE)


def with_image(row, number):
    return row | {"image": np.full((8, 16, 1), number, np.uint8)}


@pytest.mark.parametrize(
    "rows, which", [([5], "alone makes it so"), ([5, 9], "is the first of several rows that make it so")]
)
def test_a_poisoned_example_is_named(base, rows, which):
    model = al.attach(base, al.AdaLinkAdapter(rank=4))
    batches = [
        {name: np.array(x) for name, x in model.batch([with_image(row, 9) for row in ROWS[i : i + 16]]).items()}
        for i in (0, 16, 32)
    ]
    batches[1]["images"][rows, 3, 4] = np.nan
    settings = {"METRIC": None, "WARMUP_STEPS": 1}
    validation = [with_image(row, 1) for row in HELD]
    with pytest.raises(NotFinite) as failed:
        model.fit(iter(batches), validation, validation, steps=3, batch_size=16, settings=settings)
    message = str(failed.value)
    assert message.startswith("The loss of step 2 is nan. Row 5 of the batch (input 'is 21 even', target 'no')"), (
        message
    )
    assert f"{which}: its images are not finite. Training stopped" in message
    assert "; correct it or leave it out." in message


def test_the_line_of_a_file_and_the_stage_are_named(base, monkeypatch):
    """A finite embedding so large that a product with it overflows: the first values that are not finite are the adapter's."""
    name, parameters = "backbone/token_embedder/embedding", base.parameters
    frozen = {**parameters.frozen, name: parameters.frozen[name].at[3 + ord("Z")].set(3e38)}
    large = dataclasses.replace(parameters, frozen=frozen)
    monkeypatch.setattr(type(base), "parameters", property(lambda self: large))
    rows = [*ROWS, {"inputs": "is Z even", "targets": "no"}]
    model = al.attach(base, al.AdaLinkAdapter(rank=4))
    with pytest.raises(NotFinite) as failed:
        settings = {"METRIC": None, "MICROBATCHES": 2}
        model.fit(rows, HELD[:4], HELD[4:], steps=40, batch_size=16, settings=settings)
    message = str(failed.value)
    assert "(input 'is Z even', target 'no', line 49 of the data) alone makes it so" in message, message
    assert "its text embeddings after the adapter are not finite" in message, message
    assert "lower the learning rate" in message


class BadGradient(CrossEntropy):
    """Finite, with a gradient that is not finite where a target has id 7."""

    def __call__(self, logits, targets):
        zero = jnp.where(targets == 7, 0.0, 1.0)[..., None] * 1.0
        return super().__call__(logits, targets) + (
            jnp.sqrt(jnp.square(logits) * jnp.where(zero == 0, 0.0, 1.0)) * 0
        ).sum(-1)


def state_and_step(loss=None, poison=lambda leaves: leaves):
    model, loss = AdaptedModel(tiny_pali(), al.AdaLinkAdapter(rank=4)), loss or CrossEntropy()
    batch = random_batch(model.backbone, 8, 6, 4, seed=1)
    trainable, frozen = partition.split(init(model, batch, 0), ["adapter/.*"])
    optimizer = optimizers.adamw(0.01)
    state = TrainState(jnp.int32(0), poison(trainable), optimizer.init(trainable))
    step = jax.jit(holding(make_train_step(model, optimizer, loss=loss)))
    return model, make_gradients(model, loss=loss), step, state, frozen, batch


def test_a_gradient_is_named_whose_loss_is_finite_and_the_state_before_it_is_kept():
    model, gradients, step, state, frozen, batch = state_and_step(BadGradient())
    good = batch | {
        "decoder_target_tokens": np.where(batch["decoder_target_tokens"] == 7, 8, batch["decoder_target_tokens"])
    }
    bad = good | {"decoder_target_tokens": good["decoder_target_tokens"].copy()}
    bad["decoder_target_tokens"][6, 0], bad["decoder_loss_weights"] = 7, np.ones_like(bad["decoder_loss_weights"])
    before, _ = step(state, frozen, good)
    held, metrics = step(before, frozen, bad)
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    again, _ = step(held, frozen, good)  # dispatched before the loop knows
    assert int(before.step) == 1 and int(held.step) == int(again.step) == ~1
    for kept in (held, again):
        jax.tree.map(
            np.testing.assert_array_equal, (kept.trainable, kept.opt_state), (before.trainable, before.opt_state)
        )
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        explanation = Explanation(model, gradients, mesh, Task(), None, 0)
        failed = StepNotFinite("gradient of step 2 has the norm nan", 2, again, parallel.put_batch(bad, mesh))
        cause, remedy = explanation.cause(failed, frozen)
    assert cause.startswith("Row 6 of the batch (input '") and "alone makes it so: its gradients of adapter/" in cause
    assert remedy == "lower the learning rate, or clip gradients, or leave this example out"


class Task:
    """Decodes ids as numbers."""

    def decode(self, ids):
        return json.dumps(list(ids))


def test_a_leaf_that_was_not_finite_is_named():
    poison = lambda leaves: leaves | {"adapter/text/down": leaves["adapter/text/down"].at[1, 2].set(jnp.nan)}
    model, gradients, step, state, frozen, batch = state_and_step(poison=poison)
    held, _ = step(state, frozen, batch)
    mesh = parallel.make_mesh()
    failed = StepNotFinite("loss of step 1 is nan", 1, held, parallel.put_batch(batch, mesh))
    of = lambda frozen: Explanation(model, gradients, mesh, Task(), None, 0).cause(failed, frozen)[0]
    assert of(frozen) == "The trainable leaf adapter/text/down was not finite before this step."
    failed.state = failed.state.replace(trainable=state_and_step()[3].trainable)
    name = "backbone/token_embedder/embedding"
    assert of(frozen | {name: frozen[name] * jnp.inf}) == f"The frozen leaf {name} is not finite."


@pytest.mark.parametrize("bad, found", [({5}, 5), ({0, 6}, 0), ({6}, 6), (set(), None)])
def test_the_first_row_is_found_by_halves(bad, found):
    calls = []
    assert first_failing(lambda rows: calls.append(rows) or bool(bad & set(rows)), range(7)) == found
    assert len(calls) <= 7
