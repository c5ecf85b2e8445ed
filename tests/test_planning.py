"""Plans: FLOPs, memory and collectives compared with independent values, and `adalink plan` as users type it."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_pali, tiny_t5

import adalink_jax
from adalink_jax import T5, AdaLinkAdapter, AdaptedModel, parallel
from adalink_jax.cli.arguments import register
from adalink_jax.cli.main import main
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.quantised import Storage
from adalink_jax.parallel.accelerators import ACCELERATORS, parse_topology
from adalink_jax.planning import plan as plan_module
from adalink_jax.planning.collectives import collectives
from adalink_jax.planning.hlo import Array, Program
from adalink_jax.planning.plan import devices_of, with_remat
from adalink_jax.planning.traffic import bytes_moved
from adalink_jax.training import abstract, optimizers
from adalink_jax.training.flops import count_flops
from adalink_jax.training.packs.members import grid
from adalink_jax.training.packs.pack import abstract_pack, load_pack
from adalink_jax.training.setup import Setup, load_parameters
from adalink_jax.training.step import make_train_step

KEYS = {
    "fits", "hbm_bytes", "frozen_bytes", "trainable_bytes", "optimizer_bytes", "temp_bytes", "flops", "collectives",
    "eval_hbm_bytes", "estimated_step_seconds", "estimated_mfu", "compile_seconds",
}  # fmt: skip
NANO = ["--gin_file=gin/models/pali_nano.gin", "--gin_file=gin/adapters/adalink.gin"]


def step_of(model, trainable=("adapter/.*",), microbatches=1):
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    optimizer = optimizers.adamw(1e-3)
    with parallel.use_mesh(mesh, rules):
        state, frozen = abstract.abstract_state(model, trainable, Storage(), optimizer, mesh, rules)
    batch = model.backbone.abstract_batch(8, 6, 4)
    return make_train_step(model, optimizer, microbatches=microbatches), state, frozen, batch


def test_flops_agree_with_xla_on_unrolled_programs():
    """XLA counts unrolled programs correctly; it also counts elementwise operations, a small part."""
    for trainable in (("adapter/.*",), ("backbone/.*",)):
        step, *arguments = step_of(AdaptedModel(tiny_pali(emb_dim=128, mlp_dim=512), AdaLinkAdapter(rank=8)), trainable)
        flops = count_flops(step, *arguments)
        xla = jax.jit(step).lower(*arguments).compile().cost_analysis()["flops"]
        assert 0.9 * xla < flops < xla


def test_flops_count_every_iteration_of_a_loop_and_do_not_depend_on_microbatches():
    model = lambda scanned: AdaptedModel(tiny_pali(scan_layers=scanned), AdaLinkAdapter(rank=4))
    counts = {
        (scanned, parts): count_flops(*step_of(model(scanned), ("backbone/.*",), parts))
        for scanned in (False, True)
        for parts in (1, 4)
    }
    assert len(set(counts.values())) == 1, counts


def test_flops_per_parameter_and_token_are_four_for_adapter_training_and_six_for_full_training():
    """On a T5 with much larger matrices than attention: 2 forward, 2 backward to the input, 2 more for the weights."""
    model = AdaptedModel(T5(tiny_t5(emb_dim=256, mlp_dim=2048)), AdaLinkAdapter(rank=4))
    leaves = paths.flatten(abstract.abstract_leaves(model, parallel.make_mesh(), parallel.logical_axis_rules()))
    size = lambda part: sum(x.size for n, x in leaves.items() if part in n and n.endswith("kernel"))
    per_token = 8 * (6 * size("encoder/layers") + 4 * size("backbone/decoder"))
    for trainable, factor in ((("adapter/.*",), 4), (("backbone/.*",), 6)):
        assert count_flops(*step_of(model, trainable)) == pytest.approx(factor * per_token, rel=0.05)


def test_flops_with_and_without_recomputation():
    model = lambda remat: AdaptedModel(tiny_pali(remat=remat), AdaLinkAdapter(rank=4))
    flops = [count_flops(*step_of(model(remat))) for remat in ("full", "save:mlp_hidden,projections", "none")]
    assert flops[0] > flops[1] > flops[2] == count_flops(*step_of(with_remat(model("full"), "none")))


@pytest.mark.parametrize("iterations", [3, 24])
def test_traffic_of_a_loop_is_that_of_its_iterations(iterations):
    """Each iteration reads one matrix of a stack; all of them together read the whole stack once."""
    stack = jax.ShapeDtypeStruct((iterations, 256, 256), jnp.float32)
    x = jax.ShapeDtypeStruct((8, 256), jnp.float32)
    run = lambda x, stack: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]
    moved = bytes_moved(Program(jax.jit(run).lower(x, stack).compile().as_text()))
    weights = iterations * 256 * 256 * 4
    assert weights < moved < 3.5 * weights  # XLA's CPU program copies the slice before it multiplies


@pytest.mark.parametrize("array, stored", [
    (Array("bf16", (4, 9, 64), "{2,1,0:T(8,128)(2,1)}"), 4 * 16 * 128 * 2),
    (Array("bf16", (4, 64, 9), "{1,2,0:T(8,128)(2,1)}"), 4 * 16 * 128 * 2),
    (Array("f32", (300,), "{0:T(256)}"), 512 * 4),
    (Array("f32", (9, 64), "{1,0}"), 9 * 64 * 4),
])  # fmt: skip
def test_a_tpu_s_memory_holds_whole_tiles(array, stored):
    assert array.stored_bytes == stored


def test_memory_of_a_tpu_program_is_that_at_its_peak():
    """The compiler's sum of temporaries is another number: more in large programs, less in this one."""
    place = jax.sharding.SingleDeviceSharding(devices_of(parse_topology("v5e:1x1"))[0])
    array = jax.ShapeDtypeStruct((2048, 2048), jnp.float32, sharding=place)
    compiled = plan_module._compile(
        jax.jit(lambda x, w: jnp.sum(jnp.sort(jnp.tanh(x @ w), axis=0)[::2])), {}, array, array
    )
    memory = compiled.executable.memory_analysis()
    peak = memory.peak_memory_in_bytes - memory.argument_size_in_bytes - memory.output_size_in_bytes
    assert compiled.temporaries == peak != memory.temp_size_in_bytes
    assert compiled.needed == memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes


def test_traffic_of_slices_within_fusions_of_fusions_is_that_of_the_slices():
    """As TPU programs have them: each iteration reads one matrix of a stack, and reads and writes one row of another array."""
    place = jax.sharding.SingleDeviceSharding(devices_of(parse_topology("v5e:1x1"))[0])
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)

    def run(x, stack, cache):
        def layer(carry, number):
            x, cache = carry
            x = jnp.tanh(x @ stack[number].T) @ stack[number]
            row = jax.lax.dynamic_index_in_dim(cache, number, keepdims=False) + x.mean()
            return (x, jax.lax.dynamic_update_index_in_dim(cache, row, number, 0)), None

        return jax.lax.scan(layer, (x, cache), jnp.arange(24))[0]

    program = (
        jax.jit(run, donate_argnums=2).lower(array(8, 1024), array(24, 2048, 1024), array(24, 1024, 1024)).compile()
    )
    once = 2 * (24 * 2048 * 1024 + 2 * 24 * 1024 * 1024)
    assert once < bytes_moved(Program(program.as_text())) < 2.5 * once


PIECES = """
%start (shard: bf16[256,4096]) -> (bf16[256,4096], bf16[4096,4096], s32[2]) {
  %shard = bf16[256,4096]{1,0} parameter(0)
  %whole = bf16[4096,4096]{1,0} all-gather(%shard), channel_id=7, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %started = (bf16[256,4096]{1,0}, bf16[4096,4096]{1,0}, s32[2]{0:S(4)}) custom-call(%whole), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (shard: bf16[256,4096], whole: bf16[4096,4096], flags: s32[2], x: bf16[64,4096]) -> (bf16[64,4096], bf16[256,4096], bf16[4096,4096], bf16[4096,4096], s32[2]) {
  %shard = bf16[256,4096]{1,0} parameter(0)
  %whole = bf16[4096,4096]{1,0} parameter(1)
  %flags = s32[2]{0:S(4)} parameter(2)
  %x = bf16[64,4096]{1,0} parameter(3)
  %y = bf16[64,4096]{1,0} tanh(%x)
  %piece = bf16[4096,4096]{1,0} all-gather(%shard), channel_id=7, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %all = (bf16[64,4096]{1,0}, bf16[256,4096]{1,0}, bf16[4096,4096]{1,0}, bf16[4096,4096]{1,0}, s32[2]{0:S(4)}) tuple(%y, %shard, %whole, %piece, %flags)
}

%done (shard: bf16[256,4096], whole: bf16[4096,4096], flags: s32[2]) -> bf16[4096,4096] {
  %shard = bf16[256,4096]{1,0} parameter(0)
  %whole = bf16[4096,4096]{1,0} parameter(1)
  %flags = s32[2]{0:S(4)} parameter(2)
  %piece = bf16[4096,4096]{1,0} all-gather(%shard), channel_id=7, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %finished = bf16[4096,4096]{1,0} custom-call(%shard, %whole, %piece, %flags), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (shard: bf16[256,4096], x: bf16[64,4096]) -> (bf16[64,4096], bf16[4096,4096]) {
  %shard = bf16[256,4096]{1,0} parameter(0)
  %x = bf16[64,4096]{1,0} parameter(1)
  %a = (bf16[256,4096]{1,0}, bf16[4096,4096]{1,0}, s32[2]{0:S(4)}) fusion(%shard), kind=kCustom, calls=%start
  %a0 = bf16[256,4096]{1,0} get-tuple-element(%a), index=0
  %a1 = bf16[4096,4096]{1,0} get-tuple-element(%a), index=1
  %a2 = s32[2]{0:S(4)} get-tuple-element(%a), index=2
  %b = (bf16[64,4096]{1,0}, bf16[256,4096]{1,0}, bf16[4096,4096]{1,0}, bf16[4096,4096]{1,0}, s32[2]{0:S(4)}) fusion(%a0, %a1, %a2, %x), kind=kOutput, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {}), {3}: (1, {}), {4}: (2, {})}, calls=%meanwhile
  %y = bf16[64,4096]{1,0} get-tuple-element(%b), index=0
  %b1 = bf16[256,4096]{1,0} get-tuple-element(%b), index=1
  %b3 = bf16[4096,4096]{1,0} get-tuple-element(%b), index=3
  %b4 = s32[2]{0:S(4)} get-tuple-element(%b), index=4
  %c = bf16[4096,4096]{1,0} fusion(%b1, %b3, %b4), kind=kCustom, calls=%done
  ROOT %out = (bf16[64,4096]{1,0}, bf16[4096,4096]{1,0}) tuple(%y, %c)
}
"""


def test_a_collective_in_pieces_is_read_and_written_once():
    """The TPU compiler hands a gather that is under way through fusions that compute something else; the text is in its form."""
    shard, whole, x = 256 * 4096 * 2, 4096 * 4096 * 2, 64 * 4096 * 2
    assert bytes_moved(Program(PIECES)) == (shard + whole) + 2 * x


def test_axes_of_a_slice_may_be_split():
    for model in (1, 2, 8):
        mesh = parallel.make_mesh(slices=2, model=model, devices=devices_of(parse_topology("v5e:4x4*2")))
        assert dict(mesh.shape) == {"slice": 2, "data": 16 // model, "model": model}
        assert [{device.slice_index for device in each.flat} for each in mesh.devices] == [{0}, {1}]


def test_collectives_of_a_loop_on_two_slices_are_counted_with_their_slices():
    mesh = parallel.make_mesh(slices=2, devices=devices_of(parse_topology("v5e:2x4*2")))
    place = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    stack = jax.ShapeDtypeStruct((24, 512, 512), jnp.float32, sharding=place(None, "data"))
    x = jax.ShapeDtypeStruct((16, 512), jnp.float32, sharding=place(("slice", "data")))
    head = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=place())
    scan = lambda x, stack: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]
    grad = jax.grad(lambda head, x: jnp.square(x @ head).sum())
    run = lambda x, stack, head: grad(head, scan(x, stack))
    sent = collectives(Program(jax.jit(run).lower(x, stack, head).compile().as_text()), 16, 2)
    across = [each for each in sent if each.slices == 2]
    assert [(each.kind, each.nbytes * 8) for each in across] == [("all-reduce", 512 * 256 * 4)]  # an eighth per chip
    sent = [each for each in sent if each.nbytes > 512 * 256 * 4 or each.kind == "collective-permute"]
    within = [each for each in sent if each.kind in ("all-gather", "collective-permute")]
    assert sum(each.nbytes * each.times for each in within) == pytest.approx(24 * 512 * 512 * 4, rel=0.15)
    assert {each.slices for each in within} == {1}


def test_planned_bytes_equal_those_of_a_run():
    setup = Setup(AdaptedModel(tiny_pali(), AdaLinkAdapter(rank=4)), ("adapter/.*", "backbone/.*"))
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    optimizer = optimizers.adamw(optimizers.constant(0.1), clip_norm=1.0)
    with parallel.use_mesh(mesh, rules):
        params = load_parameters(setup, mesh, rules)
        state, frozen = abstract.abstract_state(setup.model, setup.trainable, Storage(), optimizer, mesh, rules)
    real = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert abstract.bytes_per_device(state.trainable) == real(params.trainable)
    assert abstract.bytes_per_device(state.opt_state) == real(optimizer.init(params.trainable))
    assert frozen == {}


def pack_flags(method):
    bindings = {
        "INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_raw", "MODEL_DIR": "unused", "TRAIN_STEPS": 100, "EVAL_PERIOD": 50,
        "MIXTURE_OR_TASK_NAME": "digits_reverse",
    }  # fmt: skip
    files = ("runs/pack", "models/pali_nano", f"adapters/{method}", "tasks/digits")
    return [f"--gin_file=gin/{name}.gin" for name in files] + [f"--gin.{k}={v!r}" for k, v in bindings.items()]


@pytest.mark.parametrize("method, ranks", [("adalink", (2, 4)), ("full", None)])
def test_planned_arrays_of_a_pack_equal_those_of_a_run(method, ranks):
    from adalink_jax import configuration

    register()
    configuration.load(configuration.parse_flags(pack_flags(method))[0])
    members = grid((0.1,), (0, 1), ranks)
    setup, optimizer = Setup(), optimizers.adamw(optimizers.constant(1.0), clip_norm=1.0)
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        pack = load_pack(setup, members, mesh, rules)
        model, state, what, frozen = abstract_pack(setup, members, optimizer, mesh, rules)
    alike = lambda x: (x.shape, np.dtype(x.dtype))
    same = lambda planned, real: jax.tree.map(alike, planned) == jax.tree.map(alike, real)
    assert model.adapter == pack.model.adapter
    assert same(state.trainable, pack.trainable) and same(frozen, pack.params.frozen) and same(what, pack.members)
    assert same(state.opt_state, jax.vmap(optimizer.init)(pack.trainable))


def test_a_moment_has_its_parameter_s_sharding():
    mesh = parallel.make_mesh(devices=devices_of(parse_topology("v5e:2x4")))
    rules = parallel.logical_axis_rules(fsdp=True)
    optimizer = optimizers.grouped(optimizers.adamw(0.1, clip_norm=1.0), {"backbone/vision/.*": optimizers.adamw(0.2)})
    with parallel.use_mesh(mesh, rules):
        state, _ = abstract.abstract_state(
            AdaptedModel(tiny_pali()), ("backbone/.*",), Storage(), optimizer, mesh, rules
        )
    split = lambda tree: sum(x.sharding.shard_shape(x.shape) != x.shape for x in jax.tree.leaves(tree))
    assert split(state.opt_state) == 2 * split(state.trainable) > 0


@pytest.mark.parametrize("text, words", [
    ("v5e", "CHIP:SHAPE"), ("v5litepod-16", "CHIP:SHAPE"), ("v7:2x2", "chips: v4, v5e"),
    ("v5e:16x32", "no slice v5e:16x32; there are 1x1, 2x2"), ("h100:2x2", "must be h100:N"), ("v5p:2x2x1*0", "no slice"),
])  # fmt: skip
def test_an_unknown_topology_is_refused_with_the_known_ones(text, words):
    with pytest.raises(UserError, match=words):
        parse_topology(text)


@pytest.mark.parametrize("name", [chip.name for chip in ACCELERATORS.values() if chip.platform == "tpu"])
def test_the_compiler_knows_every_slice_of_the_table(name):
    for shape in ACCELERATORS[name].slices[:6]:
        for slices in ("", "*2"):
            topology = parse_topology(f"{name}:{shape}{slices}")
            assert len(devices_of(topology)) == topology.devices


def test_a_plan_of_the_bundled_model(capsys):
    assert main(["plan", *NANO, "--topology", "v5e:2x4", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    saved = plan["saved"]
    assert saved["encoder"]["layers"] == saved["decoder"]["layers"] == 2
    assert {"projections", "mlp_in"} <= saved["encoder"]["layer"].keys()
    assert saved["encoder"]["bytes"] == pytest.approx(2 * sum(saved["encoder"]["layer"].values()), rel=1e-3)
    assert KEYS <= plan.keys()
    assert plan["fits"] and plan["chips"] == 8 and plan["mesh"] == {"slice": 1, "data": 8, "model": 1}
    assert plan["frozen_bytes"] == 337_536 * 4
    assert plan["trainable_bytes"] == 2 * 2 * 64 * 64 * 4
    assert plan["collectives"]["all-reduce"]["bytes"] == plan["trainable_bytes"] + 8
    assert 0 < plan["estimated_mfu"] <= 1 and plan["compiler"] == "tpu"
    assert plan["frozen_bytes"] < plan["eval_hbm_bytes"] < plan["hbm_limit_bytes"]


def test_a_chip_of_tpu7x_is_two_devices(capsys):
    flags = [*NANO, "--topology", "tpu7x:2x2x1", "--quick", "--json"]
    assert main(["plan", *flags]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["chips"] == 4 and plan["mesh"] == {"slice": 1, "data": 8, "model": 1}
    chip = ACCELERATORS["tpu7x"]
    assert plan["hbm_limit_bytes"] == chip.memory < 96 * 2**30
    assert plan["estimated_compute_seconds"] == pytest.approx(plan["flops"] / 8 / (2307e12 / 2))
    assert plan["estimated_chip_hours"] == pytest.approx(4 * plan["estimated_job_hours"])


@pytest.mark.slow
def test_the_network_s_bandwidth_can_be_given(capsys):
    seconds = []
    for options in ([], ["--network_bandwidth", "0.625"]):  # a tenth of the vendor's
        flags = [*NANO, "--gin_file=gin/meshes/multislice.gin", "--gin.SLICES=2", "--topology", "tpu7x:2x2x1*2"]
        assert main(["plan", *flags, "--quick", "--json", *options]) == 0
        seconds.append(json.loads(capsys.readouterr().out)["estimated_collective_seconds"])
    assert 1 < seconds[1] / seconds[0] < 10.001
    assert main(["plan", *NANO, "--topology", "cpu:8", "--network_bandwidth", "1"]) == 2


@pytest.mark.slow
def test_a_plan_of_a_pack_scales_with_its_members(capsys):
    plans, options = [], ["--topology", "v5e:2x2", "--quick", "--json"]
    for seeds in ("(0,)", "(0,1,2)"):
        assert main(["plan", *pack_flags("adalink"), f"--gin.SEEDS={seeds}", *options]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    one, three = plans
    assert (one["members"], three["members"]) == (1, 3)
    for name in ("model_flops", "trainable_bytes", "optimizer_bytes"):
        assert three[name] == pytest.approx(3 * one[name], rel=0.01), name
    assert three["frozen_bytes"] == one["frozen_bytes"]
    assert one["temp_bytes"] < three["temp_bytes"] and one["eval_hbm_bytes"] < three["eval_hbm_bytes"]


@pytest.mark.slow
def test_the_decoding_of_an_evaluation_is_planned():
    """Its cache grows with the tokens of an output; the optimizer state stays on the chip."""
    flags = [
        "plan",
        *NANO,
        "--gin.BATCH_SIZE=512",
        "--gin.TRAINABLE=('adapter/.*', 'backbone/.*')",
        "--topology",
        "cpu:8",
    ]
    lengths = [f"--gin.TASK_FEATURE_LENGTHS={{'inputs': 8, 'targets': {targets}}}" for targets in (32, 544)]
    commands = [[*flags, each, "--json"] for each in lengths]
    program = f"from adalink_jax.cli.main import main\nfor command in {commands!r}:\n    assert main(command) == 0"
    env = {**os.environ, "PYTHONPATH": os.path.dirname(adalink_jax.__path__[0])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    few, many = map(json.loads, done.stdout.splitlines())
    cache = 2 * 2 * 512 // 8 * (544 - 32) * 64 * 4  # keys and values of two layers, 64 rows per device, float32
    assert cache < many["eval_hbm_bytes"] - few["eval_hbm_bytes"] < 4 * cache
    parameters = few["trainable_bytes"] + few["optimizer_bytes"]
    assert parameters < few["eval_hbm_bytes"] < parameters + 2 * cache


@pytest.mark.slow
def test_a_job_whose_evaluation_does_not_fit_does_not_fit(capsys):
    """With many microbatches the step needs little memory, but an evaluation decodes the whole batch."""
    lengths = "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 512}"
    small = ["--gin_file=gin/models/t5_1_1_small.gin", "--gin_file=gin/adapters/adalink.gin", lengths]
    flags = ["plan", *small, "--gin.BATCH_SIZE=2048", "--gin.MICROBATCHES=256", "--topology", "v5e:1x1"]
    assert main([*flags, "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert plan["hbm_bytes"] < plan["hbm_limit_bytes"] < plan["eval_hbm_bytes"] and not plan["fits"]
    assert any("an evaluation decodes a whole batch" in remedy for remedy in plan["remedies"])


@pytest.mark.slow
def test_a_quick_plan_has_the_counts_of_a_plan(capsys):
    plans, level = [], jax.config.jax_optimization_level
    try:
        for flags in ([], ["--quick"]):
            assert main(["plan", *NANO, "--topology", "v5e:2x4", "--json", *flags]) == 0
            plans.append(json.loads(capsys.readouterr().out))
            assert jax.config.jax_optimization_level == ("O0" if flags else level)
    finally:
        jax.config.update("jax_optimization_level", level)
    usual, quick = plans
    assert quick["quick"] and not usual["quick"]
    same = ("fits", "frozen_bytes", "trainable_bytes", "optimizer_bytes", "flops", "model_flops")
    assert all(quick[name] == usual[name] for name in same)
    assert quick["collectives"]["all-reduce"]["bytes"] == usual["collectives"]["all-reduce"]["bytes"]


@pytest.mark.slow
def test_weights_of_a_decoder_are_gathered_once_or_for_each_token(capsys):
    """Under FSDP. With them sharded, every token gathers all matrices of the decoder, bfloat16, and the activations are small."""
    model = [
        "--gin_file=gin/models/t5_1_1_small.gin",
        "--gin_file=gin/adapters/adalink.gin",
        "--gin_file=gin/meshes/fsdp.gin",
    ]
    flags = [
        "plan",
        *model,
        "--gin.FROZEN_DTYPE='bfloat16'",
        "--gin.BATCH_SIZE=8",
        "--topology",
        "v5e:2x2",
        "--quick",
        "--json",
    ]
    plans = {}
    for kind in ("sharded", "gathered", "auto"):
        assert main([*flags, f"--gin.DECODER_WEIGHTS='{kind}'"]) == 0
        plans[kind] = json.loads(capsys.readouterr().out)
    # Of attention to the encoder only the query's and the output's: its keys and values are computed once.
    matrices = 2 * (8 * (6 * 512 * 384 + 3 * 512 * 1024) + 32128 * 512)
    assert matrices < plans["sharded"]["token_collective_bytes"] < 1.1 * matrices
    assert plans["gathered"]["token_collective_bytes"] < 0.01 * matrices
    assert plans["auto"]["eval_collectives"] == plans["gathered"]["eval_collectives"]
    seconds = lambda kind: plans[kind]["estimated_evaluation_seconds"]
    assert seconds("gathered") < 0.5 * seconds("sharded")


def test_a_mesh_splits_an_axis_of_the_slice_if_it_must():
    """No product of whole axes of 16x16 is 128 x 2."""
    mesh = parallel.make_mesh(model=2, devices=devices_of(parse_topology("v6e:16x16")))
    assert dict(mesh.shape) == {"slice": 1, "data": 128, "model": 2}


def test_a_plan_takes_the_flags_of_train(capsys, tmp_path):
    flags = ["--gin_file=gin/runs/quickstart.gin", f"--gin.MODEL_DIR='{tmp_path}'", "--gin.MICROBATCHES=2"]
    flags += ["--gin.train_pack.metric='accuracy'"]  # files of tasks set it; it does not make this a pack
    assert main(["plan", *flags, "--gin.RANK=8", "--topology", "v5e:2x2", "--quick"]) == 0
    shown = " ".join(capsys.readouterr().out.split())  # a terminal breaks lines
    assert "needed in evaluations" in shown and "2 microbatches" in shown and "It fits" in shown and "128 rows" in shown
    assert not list(tmp_path.iterdir())
    assert main(["plan", *NANO, "--gin.TRIAN_STEPS=9", "--topology", "v5e:2x2"]) == 2
    assert "TRAIN_STEPS" in capsys.readouterr().err


def test_a_plan_that_does_not_fit_is_printed_with_remedies(capsys):
    flags = ["--gin_file=gin/models/t5_1_1_xxl.gin", "--gin_file=gin/adapters/adalink.gin", "--topology", "v5e:4x4"]
    assert main(["plan", *flags]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    remedies = ("fsdp.gin: 44.5 GB", "FROZEN_DTYPE", "REMAT", "MICROBATCHES=2 (up to 8)", "v5e:4x8")
    for words in ("does not fit", "GB too much", *remedies):
        assert words in shown, words


@pytest.mark.slow
def test_a_search_finds_settings_that_fit(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lengths = "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 128}"
    big = ["--gin.BATCH_SIZE=512", lengths, "--gin.FROZEN_DTYPE='bfloat16'", "--topology", "v5e:1x1"]
    flags = ["--gin_file=gin/models/t5_1_1_small.gin", "--gin_file=gin/adapters/adalink.gin", *big]
    assert main(["plan", *flags, "--search", "--json", "--quick"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not plan["fits"]
    best = min((each for each in plan["search"] if each["fits"]), key=lambda each: each["estimated_step_seconds"])
    assert best["hbm_bytes"] <= best["hbm_limit_bytes"] < plan["hbm_bytes"]
    assert best["topology"] == "v5e:1x1" and {"REMAT", "MICROBATCHES"} & best["settings"].keys()
