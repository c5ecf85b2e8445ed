"""Training gives the same results on any mesh: eight virtual devices, in a separate process, against one."""

import os
import subprocess
import sys

import jax
import pytest
from helpers import tiny_pali, with_devices
from jax.experimental import topologies

from adalink_jax import AdaptedModel, parallel
from adalink_jax.adapters import abstract_params
from adalink_jax.errors import UserError
from adalink_jax.models import T5Gemma, T5GemmaConfig, paths
from adalink_jax.planning.collectives import collectives
from adalink_jax.planning.hlo import Program
from adalink_jax.training import abstract

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import shape_checks

shape_checks.install()
import jax
import jax.numpy as jnp
import numpy as np
from helpers import random_batch, tiny_pali

from adalink_jax import AdaLinkAdapter, AdaptedModel, checkpoints, parallel
from adalink_jax.models import paths
from adalink_jax.models.decoding import BeamSearch, Sampling
from adalink_jax.training import optimizers, partition, setup
from adalink_jax.training.step import TrainState, make_train_step

assert jax.device_count() == 8
jax.config.update("jax_default_matmul_precision", "highest")
model = AdaptedModel(tiny_pali(num_heads=8, head_dim=4), AdaLinkAdapter(rank=4))
batch = random_batch(model.backbone, 8, 6, 4, seed=0)
config = setup.Setup(model, trainable=("adapter/.*", "backbone/.*"))
optimizer = optimizers.adamw(1e-3)


def train(shape, fsdp):
    mesh = parallel.make_mesh(*shape, devices=jax.devices()[: shape[0] * shape[1]])
    rules = parallel.logical_axis_rules(fsdp=fsdp)
    with parallel.use_mesh(mesh, rules):
        leaves = setup.load_parameters(config, mesh, rules).trainable
        kernel = leaves["backbone/encoder/layers_0/mlp/wi_0/kernel"]
        expected = (32 // (shape[0] if fsdp else 1), 64 // shape[1])
        assert kernel.addressable_shards[0].data.shape == expected, kernel.sharding
        mark = checkpoints.fingerprint(partition.below(leaves, "backbone"))
        state = TrainState(jnp.int32(0), leaves, optimizer.init(leaves))
        step, losses = jax.jit(make_train_step(model, optimizer)), []
        for _ in range(4):
            state, metrics = parallel.settle(step(state, {}, parallel.put_batch(batch, mesh)))
            losses.append(float(metrics["loss"]))
        return mark, losses, {k: np.asarray(v) for k, v in partition.below(state.trainable, "adapter").items()}


mark, losses, adapter = train((1, 1), False)
for shape, fsdp in (((8, 1), True), ((2, 4), True)):
    other_mark, other_losses, other_adapter = train(shape, fsdp)
    assert other_mark == mark, "initial weights or fingerprint depend on the mesh"
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5, err_msg=str((shape, fsdp)))
    for name in adapter:
        np.testing.assert_allclose(other_adapter[name], adapter[name], atol=1e-5, err_msg=str((shape, fsdp, name)))


def decode(shape, decoding):
    mesh = parallel.make_mesh(*shape, devices=jax.devices()[: shape[0] * shape[1]])
    rules = parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        params = setup.load_parameters(config, mesh, rules).tree()
        features = {name: batch[name] for name in ("encoder_input_tokens", "images")}
        keys = jax.random.split(jax.random.key(0), len(batch["images"]))
        generate = jax.jit(lambda params, batch: model.apply(
            {"params": params}, batch, 6, decoding, keys, method="generate"))
        return jax.tree.map(np.asarray, parallel.settle(generate(params, parallel.put_batch(features, mesh))))


for decoding in (Sampling(), Sampling(1.0, num_decodes=2), BeamSearch(3)):
    one = decode((1, 1), decoding)
    for shape in ((8, 1), (2, 4)):
        other = decode(shape, decoding)
        np.testing.assert_array_equal(other.ids, one.ids, err_msg=str((shape, decoding)))
        np.testing.assert_allclose(other.scores, one.scores, rtol=1e-4, err_msg=str((shape, decoding)))
print("meshes agree")
"""


@pytest.mark.slow
def test_every_mesh_gives_the_losses_of_one_device():
    env = with_devices(8)
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, "-c", PROGRAM, here], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "meshes agree" in done.stdout


MESHES = [
    f"{mesh}{fsdp}{scanned}"
    for mesh in ("1x8", "2x4", "4x2", "8x1")
    for fsdp in ("", ",fsdp")
    for scanned in ("", ",scanned")
]


def assert_trains_as_on_one_device(method, steps, *cases):
    """Trains on each mesh and on one device; mesh_program.py lists what must agree."""
    env = with_devices(8)
    program = os.path.join(os.path.dirname(__file__), "mesh_program.py")
    done = subprocess.run(
        [sys.executable, program, method, str(steps), *cases], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("as one device") == len(cases)


@pytest.mark.parametrize("method, steps, cases", [
    ("adalink", 10, ("2x4,fsdp,scanned",)),
    pytest.param("adalink", 100, ("2x4,fsdp,scanned", "8x1,fsdp,blockwise"), marks=pytest.mark.slow),
    pytest.param("adalink+nf4", 3, ("2x4,fsdp,scanned",), marks=pytest.mark.slow),
    pytest.param("adalink+int8@T5Gemma2", 20, ("2x4,fsdp", "4x2,scanned"), marks=pytest.mark.slow),
    pytest.param("adalink@T5Gemma", 20, ("2x4,fsdp,scanned",), marks=pytest.mark.slow),
    pytest.param("adalink@T5Gemma2", 10, ("2x4,fsdp,scanned",), marks=pytest.mark.slow),
    pytest.param("full@T5Gemma2", 5, ("4x2,fsdp,blockwise",), marks=pytest.mark.slow),
    pytest.param("adalink@PaliGemma", 10, ("2x4,fsdp,scanned",), marks=pytest.mark.slow),
    pytest.param("adalink@Pix2Struct", 20, ("2x4,fsdp,scanned", "4x2,blockwise"), marks=pytest.mark.slow),
    pytest.param("lora@PaliGemma", 20, ("1x8", "4x2,fsdp,blockwise"), marks=pytest.mark.slow),
    pytest.param("lora@T5Gemma", 20, ("1x8", "4x2,fsdp,blockwise"), marks=pytest.mark.slow),
    pytest.param("lora", 100, ("4x2,fsdp,scanned",), marks=pytest.mark.slow),
    pytest.param("full", 10, ("2x4,fsdp", "4x2,scanned,blockwise"), marks=pytest.mark.slow),
])  # fmt: skip
def test_a_small_model_trains_on_a_mesh_as_on_one_device(method, steps, cases):
    assert_trains_as_on_one_device(method, steps, *cases)


@pytest.mark.slow
@pytest.mark.parametrize("method, steps", [("adalink", 100), ("lora", 100), ("full", 10)])
def test_pali_nano_trains_on_every_mesh_as_on_one_device(method, steps):
    assert_trains_as_on_one_device(method, steps, *MESHES)


def test_a_dimension_that_does_not_divide_names_parameter_axis_and_sizes():
    model = AdaptedModel(tiny_pali(num_heads=6, head_dim=4, mlp_dim=60))
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = parallel.make_mesh(data=1, model=8, devices=devices)
    with pytest.raises(
        UserError,
        match=r"\(\w+, \d+\): '(mlp|heads|joined_kv|vocab)' of size \d+ does not divide over the 8 devices of mesh axis 'model'; "
        r"sizes that divide it: 1, 2",
    ):
        parallel.param_shardings(abstract_params(model), mesh, parallel.logical_axis_rules())


def test_grouped_heads_that_do_not_divide_are_whole_on_every_device():
    heads = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "query_pre_attn_scalar": 64}
    sizes = {"vocab_size": 256, "emb_dim": 256, "mlp_dim": 512, "num_encoder_layers": 2, "num_decoder_layers": 2}
    model = AdaptedModel(T5Gemma(T5GemmaConfig(**sizes, **heads, dropout_rate=0.0, scan_layers=True)))
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x4").devices
    mesh, rules = parallel.make_mesh(model=8, devices=devices), parallel.logical_axis_rules()
    leaves = abstract.abstract_leaves(model, mesh, rules)
    kernels = [x for name, x in leaves.items() if name.endswith(("attention/key/kernel", "attention/value/kernel"))]
    assert kernels and all(x.sharding.is_fully_replicated for x in kernels)
    with parallel.use_mesh(mesh, rules):
        place = parallel.batch_sharding(mesh)
        shapes = model.backbone.abstract_batch(8, 128, 16)
        batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in shapes.items()}
        forward = jax.jit(lambda leaves, batch: model.apply({"params": paths.unflatten(leaves)}, batch).sum())
        program = Program(forward.lower(leaves, batch).compile().as_text())
    sent = collectives(program, 8, 1)
    assert {one.kind for one in sent} == {"all-reduce"}  # no part of a head is gathered


def test_slices_are_the_outermost_axis_and_hold_whole_copies():
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2).devices
    mesh = parallel.make_mesh(slices=2, model=2, devices=devices)
    assert dict(mesh.shape) == {"slice": 2, "data": 4, "model": 2}
    for i in (0, 1):
        assert {device.slice_index for device in mesh.devices[i].flat} == {i}
    rules = parallel.logical_axis_rules(fsdp=True)
    for sharding in jax.tree.leaves(parallel.param_shardings(abstract_params(AdaptedModel(tiny_pali())), mesh, rules)):
        assert "slice" not in jax.tree.leaves(tuple(sharding.spec))
    assert parallel.data_axis_size(mesh) == 8
    with pytest.raises(UserError, match="16 devices are 2 slices; set make_mesh.slices = 2"):
        parallel.make_mesh(devices=devices)


def test_a_rule_for_an_axis_that_the_mesh_has_not_is_an_error():
    with pytest.raises(UserError, match="'adapter_embed' names 'modle'; the mesh has the axes slice, data, model"):
        parallel.logical_axis_rules(extra=(("adapter_embed", "modle"),))


def test_a_mesh_that_does_not_cover_the_devices_is_an_error():
    with pytest.raises(UserError, match="data=2 x model=3 does not cover the 1 devices"):
        parallel.make_mesh(data=2, model=3)


def test_a_mesh_is_made_for_one_device_too():
    assert dict(parallel.make_mesh().shape) == {"slice": 1, "data": 1, "model": 1}
