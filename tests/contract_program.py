"""Run by test_contract.py in a process of eight virtual devices: what the compiled adapter step sends between devices.

python contract_program.py CASE...          CASE: PLACE,microbatches[,fsdp][,scanned], such as v5e:2x4,2,fsdp
"""

import re
import sys

import jax

from adalink_jax import AdaLinkAdapter, AdaptedModel, parallel
from adalink_jax.contract.tiny import tiny_pali
from adalink_jax.models.quantised import Storage
from adalink_jax.parallel.accelerators import parse_topology
from adalink_jax.planning.collectives import collectives
from adalink_jax.planning.hlo import Program
from adalink_jax.planning.plan import devices_of
from adalink_jax.training import abstract, optimizers
from adalink_jax.training.step import make_train_step

SCALARS = 2 * 4  # the sum of losses and the number of tokens


def check(case):
    place, microbatches, *flags = case.split(",")
    microbatches, topology = int(microbatches), parse_topology(place)
    mesh = parallel.make_mesh(devices=devices_of(topology))
    rules = parallel.logical_axis_rules(fsdp="fsdp" in flags)
    options = {"num_heads": 8, "head_dim": 4, "emb_dim": 64, "dtype": "bfloat16", "scan_layers": "scanned" in flags}
    model = AdaptedModel(tiny_pali(**options), AdaLinkAdapter(rank=4))
    optimizer = optimizers.adamw(1e-3, clip_norm=1.0)
    with parallel.use_mesh(mesh, rules):
        state, frozen = abstract.abstract_state(model, ("adapter/.*",), Storage(), optimizer, mesh, rules)
        shards = parallel.shards_of(state.trainable, mesh)
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.batch_sharding(mesh))
            for name, x in model.backbone.abstract_batch(8 * microbatches, 6, 4).items()
        }
        step = make_train_step(model, optimizer, microbatches=microbatches, shards=shards)
        compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    # A TPU gathers small leaves by adding them, each chip's part written into zeros; count that as a gather.
    text = re.sub(r" all-reduce\((?=%dynamic-update-slice)", " all-gather(", compiled.as_text())
    found = collectives(Program(text), topology.chips)
    adapter = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.trainable))
    reduced = [each for each in found if each.kind in ("all-reduce", "reduce-scatter")]
    gathered = [each for each in found if each not in reduced and each.kind != "all-to-all"]
    total = lambda rows: sum(each.nbytes * each.times for each in rows)
    assert {dtype for each in reduced for dtype in each.dtypes} == {"f32"}, f"{case}: {reduced}"
    assert total(reduced) == adapter + SCALARS, f"{case}: {total(reduced)} bytes, the adapter has {adapter}: {reduced}"
    split = sum(x.size * 4 for x in jax.tree.leaves(frozen) if x.sharding.shard_shape(x.shape) != x.shape)
    largest = 2 * microbatches * split  # a leaf is used forwards and backwards, in every microbatch
    assert total(gathered) <= largest, f"{case}: {total(gathered)} bytes are gathered, the leaves' use needs {largest}"
    if "fsdp" in flags:
        assert total(gathered) > 0, f"{case}: nothing is gathered"
    print(f"{case}: {adapter} bytes reduced once, {total(gathered)} of at most {largest} gathered", flush=True)


if __name__ == "__main__":
    for case in sys.argv[1:]:
        check(case)
