"""Banks: each row of a batch is served by its own adapter, as if it were alone; adapters come and go under names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali, tiny_t5

from adalink_jax import T5, AdaLinkAdapter, AdaptedModel, Chain, LoRA, NormTuning, PromptTuning
from adalink_jax.adapters import NamedAdapters, stack_adapters
from adalink_jax.errors import UserError
from adalink_jax.models.decoding import BeamSearch, Sampling

BACKBONES = {"T5": lambda: T5(tiny_t5(scan_layers=True)), "PaLI": tiny_pali}
METHODS = {  # the i-th adapter: other ranks and lengths
    "adalink": lambda i: AdaLinkAdapter(rank=1 + i % 2, phi="gelu"),
    "adalink_target": lambda i: AdaLinkAdapter(rank=1 + i % 2, kinds=("text", "target"), share=True),
    "prompt_tuning": lambda i: PromptTuning(length=1 + i % 2),
    "lora": lambda i: LoRA(rank=1 + i % 2),
    "adept": lambda i: Chain((AdaLinkAdapter(rank=1 + i % 2, phi="relu", share=True), PromptTuning(length=2 + i % 2))),
}
ROWS = 64
GREEDY, BEAM = Sampling(), BeamSearch(2)
pytestmark = pytest.mark.usefixtures("exact_matmuls")


@functools.cache
def fresh(backbone, module):
    return init(AdaptedModel(BACKBONES[backbone](), module), random_batch(BACKBONES[backbone](), 2, 6, 5, seed=0))


def trained(backbone, method, i):
    """The i-th module, and its parameters as after some training."""
    module = METHODS[method](i)
    move = lambda x: np.asarray(x + 0.1 * jnp.sin(i + jnp.arange(x.size)).reshape(x.shape))
    return module, jax.tree.map(move, fresh(backbone, module)["adapter"])


def run(model, params, batch):
    """Logits; and the outputs of greedy decoding and of beam search."""
    generate = lambda decoding: model.apply({"params": params}, batch, 6, decoding, method="generate").ids
    return model.apply({"params": params}, batch), generate(GREEDY), generate(BEAM)


SLOW = [("T5", method) for method in METHODS]


@pytest.mark.parametrize(
    "backbone, method", [("PaLI", "adalink"), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_64_rows_with_64_adapters_give_what_64_separate_runs_give(backbone, method):
    model = AdaptedModel(BACKBONES[backbone]())
    members = [trained(backbone, method, i) for i in range(ROWS - 1)]
    base = fresh(backbone, members[0][0])["backbone"]
    batch = random_batch(model.backbone, ROWS, 6, 5, seed=1)
    index = np.random.default_rng(0).permutation(ROWS).astype(np.int32)  # one of them 0: no adapter
    bank, stacked = stack_adapters(model.backbone, members)
    together = functools.partial(run, AdaptedModel(model.backbone, bank))
    outputs = jax.jit(together)({"backbone": base, "adapter": stacked}, {**batch, "adapter_index": index})
    compiled = {}
    for i, number in enumerate(index):
        module, adapter = members[number - 1] if number else (None, {})
        if module not in compiled:
            compiled[module] = jax.jit(functools.partial(run, AdaptedModel(model.backbone, module)))
        row = {name: x[i : i + 1] for name, x in batch.items()}
        logits, greedy, beam = compiled[module]({"backbone": base, "adapter": adapter}, row)
        np.testing.assert_allclose(outputs[0][i], logits[0], rtol=0, atol=1e-5 * float(logits.std()))
        np.testing.assert_array_equal(outputs[1][i], greedy[0])
        np.testing.assert_array_equal(outputs[2][i], beam[0])
    assert len({np.asarray(logits).tobytes() for logits in outputs[0]}) == ROWS


@pytest.mark.parametrize("method", METHODS)
def test_named_adapters_come_and_go_in_one_program(method):
    backbone = BACKBONES["T5"]()
    adapters = NamedAdapters(backbone, METHODS[method](3), capacity=2)
    base = fresh("T5", METHODS[method](0))["backbone"]
    batch = random_batch(backbone, 3, 6, 5, seed=1)
    program = jax.jit(AdaptedModel(backbone, adapters.bank).apply)
    outputs = lambda names=3: np.asarray(
        program(
            {"params": {"backbone": base, "adapter": adapters.params}}, {**batch, "adapter_index": adapters.rows(names)}
        )
    )
    plain = np.asarray(jax.jit(AdaptedModel(backbone).apply)({"params": {"backbone": base}}, batch))
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5 * plain.std())
    near(outputs(), plain)
    for i in range(2):
        adapters.add(f"a{i}", *trained("T5", method, i))
    adapters.activate("a0")
    first = outputs()
    adapters.activate("a1")
    second = outputs()
    assert np.abs(first - plain).max() > 1e-2 and np.abs(second - first).max() > 1e-3
    mixed = outputs(["a1", None, "a0"])
    near(mixed[0], second[0])
    near(mixed[1], plain[1])
    near(mixed[2], first[2])
    adapters.disable()
    near(outputs(), plain)
    with pytest.raises(UserError, match="The bank is full with 2 adapters"):
        adapters.add("a2", *trained("T5", method, 2))
    adapters.activate("a1")
    adapters.delete("a1")
    assert adapters.names == ["a0"] and adapters.active is None
    with pytest.raises(UserError, match="There is no adapter 'a1'; there are: a0"):
        adapters.activate("a1")
    adapters.add("a2", *trained("T5", method, 1))
    near(outputs(["a2"] * 3), second)
    assert program._cache_size() == 1


def test_what_no_bank_can_hold_is_refused():
    backbone = BACKBONES["T5"]()
    pair = lambda method: (METHODS[method](0), fresh("T5", METHODS[method](0))["adapter"])
    with pytest.raises(UserError, match="different methods: AdaLinkAdapter, PromptTuning"):
        stack_adapters(backbone, [pair("adalink"), pair("prompt_tuning")])
    other = AdaLinkAdapter(rank=1, phi="relu")
    with pytest.raises(UserError, match=r"differ in AdaLinkAdapter.phi \(gelu and relu\)"):
        stack_adapters(backbone, [pair("adalink"), (other, fresh("T5", other)["adapter"])])
    norms = NormTuning()
    with pytest.raises(UserError, match="NormTuning cannot be served from a bank"):
        stack_adapters(backbone, [(norms, fresh("T5", norms)["adapter"])])
    with pytest.raises(UserError, match=r"larger than its bank: {'rank': 2.* in {'rank': 1.*sizes\.$"):
        NamedAdapters(backbone, METHODS["lora"](0), 2).add("big", *trained("T5", "lora", 3))
    with pytest.raises(UserError, match="does not fit its bank"):
        stack_adapters(backbone, [(METHODS["lora"](0), fresh("T5", METHODS["lora"](1))["adapter"])])
    module, params = pair("adalink")
    bank, stacked = stack_adapters(backbone, [(module, params)])
    batch = random_batch(backbone, 2, 6, 5, seed=0)
    weights = {"backbone": fresh("T5", module)["backbone"], "adapter": stacked}
    with pytest.raises(UserError, match="needs `adapter_index`"):
        AdaptedModel(backbone, bank).apply({"params": weights}, batch)
    with pytest.raises(UserError, match="`adapter_index`, but AdaLinkAdapter is not a bank"):
        indexed = {**batch, "adapter_index": np.zeros(2, np.int32)}
        AdaptedModel(backbone, module).apply({"params": {**weights, "adapter": params}}, indexed)
