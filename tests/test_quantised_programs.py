"""Compiled programs with a quantised base: bytes of arguments and temporaries, and what FSDP gathers."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from adalink_jax import T5, AdaLinkAdapter, AdaptedModel, T5Config, parallel
from adalink_jax.models.decoding import Sampling
from adalink_jax.models.quantised import CODE_DTYPES, Quantised, Storage
from adalink_jax.parallel.accelerators import parse_topology
from adalink_jax.planning.plan import devices_of
from adalink_jax.training import abstract, optimizers
from adalink_jax.training.evaluation import make_generate
from adalink_jax.training.step import make_train_step

SIZES = {"vocab_size": 640, "emb_dim": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 2048}
DEPTH = 6
ROWS, INPUTS, TARGETS = 16, 64, 32
# A layer of these is larger than the fast memory of a v5e chip, 128 MiB, which is part of a program's peak.
LARGE = {
    "emb_dim": 2048,
    "num_heads": 16,
    "head_dim": 128,
    "mlp_dim": 8192,
    "num_encoder_layers": 3,
    "num_decoder_layers": 3,
}


def layer(emb_dim=SIZES["emb_dim"], mlp_dim=SIZES["mlp_dim"], **_):
    """Values of the kernels of one layer of the decoder: two attentions, and a gated MLP."""
    return 8 * emb_dim**2 + 3 * emb_dim * mlp_dim


XLA_NAMES = {"int8": "s8", "fp8": "f8e4m3fn", "int4": "s4", "nf4": "u4"}


def programs(topology, dtype, which=("step", "decoding"), fsdp=False, quick=False, matmul=None, **settings):
    """The compiled step and decoding of a T5 on `topology`, in bfloat16, and the frozen leaves."""
    depth = {"num_encoder_layers": DEPTH, "num_decoder_layers": DEPTH}
    backbone = T5(T5Config(**{**SIZES, **depth, "dtype": "bfloat16", "scan_layers": True, **settings}))
    model, optimizer = AdaptedModel(backbone, AdaLinkAdapter(rank=8)), optimizers.adamw(1e-3)
    mesh, rules = (
        parallel.make_mesh(devices=devices_of(parse_topology(topology))),
        parallel.logical_axis_rules(fsdp=fsdp),
    )
    level = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O0" if quick else level)
    with parallel.use_mesh(mesh, rules):
        storage = Storage(dtype, activations="bfloat16", matmul=matmul)
        state, frozen = abstract.abstract_state(model, ("adapter/.*",), storage, optimizer, mesh, rules)
        place = parallel.batch_sharding(mesh)
        shapes = backbone.abstract_batch(ROWS, INPUTS, TARGETS)
        batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in shapes.items()}
        step = jax.jit(make_train_step(model, optimizer), donate_argnums=0)
        decode = jax.jit(make_generate(model, TARGETS, Sampling()))
        ids = {"sampling_ids": jax.ShapeDtypeStruct((ROWS, 3), jnp.int32, sharding=place)}
        lower = {
            "step": lambda: step.lower(state, frozen, batch),
            "decoding": lambda: decode.lower(state.trainable, frozen, batch | ids),
        }
        try:
            return *(lower[name]().compile() for name in which), frozen
        finally:
            jax.config.update("jax_optimization_level", level)


def temporaries(program):
    """Bytes of a program's temporaries; on a TPU the peak less what its arguments and results hold."""
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes, memory.peak_memory_in_bytes - held


@pytest.fixture(autouse=True)
def no_cache():
    """Programs for machines that are not here are not stored."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


@pytest.mark.parametrize(
    "dtype, matmul",
    [
        ("int8", None),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in (("int8", "int8"), ("fp8", None), ("int4", None), ("nf4", None))
        ),
    ],
)
def test_fsdp_gathers_codes(dtype, matmul):
    depth = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    *compiled, frozen = programs("v5e:2x2", dtype, fsdp=True, quick=True, matmul=matmul, **depth)
    for program in compiled:
        gathers = re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather\(", program.as_text())
        kernels = {dims for name, leaf in frozen.items() if name.endswith("kernel") for dims in [leaf.shape[-2:]]}
        kinds = {kind for kind, dims in gathers if tuple(map(int, dims.split(",")))[-2:] in kernels}
        assert kinds == {XLA_NAMES[dtype]}


@pytest.mark.parametrize("dtype", ["int4", *(pytest.param(x, marks=pytest.mark.slow) for x in ("int8", "fp8", "nf4"))])
def test_arguments_have_the_bits_that_the_dtype_names(dtype):
    """In the program, not by `.nbytes`, which counts a byte for each value of four bits."""
    (step, frozen), (plain, plain_frozen) = (programs("cpu:1", x, ["step"], quick=True) for x in (dtype, "bfloat16"))
    kernels = sum(leaf.size for leaf in frozen.values() if isinstance(leaf, Quantised))
    exact = sum(leaf.size for leaf in frozen.values() if not isinstance(leaf, Quantised))
    scales = kernels / 64 if dtype in ("int4", "nf4") else sum(
        leaf.size / leaf.shape[-2] for leaf in frozen.values() if isinstance(leaf, Quantised)
    )  # fmt: skip
    bits = {"int8": 8, "fp8": 8, "int4": 4, "nf4": 4}[dtype]
    expected = kernels * bits / 8 + 2 * scales + 2 * exact
    others = plain.memory_analysis().argument_size_in_bytes - 2 * sum(leaf.size for leaf in plain_frozen.values())
    stored = step.memory_analysis().argument_size_in_bytes - others
    assert kernels > 10e6 and stored == pytest.approx(expected, rel=0.02)
    assert abstract.bytes_per_device(frozen) == pytest.approx(expected, rel=0.001)


@functools.cache
def needed(topology, dtype, which, **settings):
    """Bytes of temporaries of one program; bfloat16's are compared with several."""
    program, _ = programs(topology, dtype, [which], **settings)
    return temporaries(program)[topology.startswith("v")]


def check_temporaries(topology, dtype, which, **settings):
    """That a program needs no more temporaries than in bfloat16, up to the values of one layer."""
    plain = needed(topology, "bfloat16", which, **settings)
    more = needed(topology, dtype, which, **settings) - plain
    print(f"{topology} {dtype} {settings} {which}: {more / 2**20:.1f} MiB more than {plain / 2**20:.1f}")
    bytes_per_value = 2 if topology.startswith("v") else 4  # CPUs compute in float32
    assert more <= bytes_per_value * layer(**settings), (more, plain)


def test_a_scanned_program_has_at_most_one_layer_dequantised():
    for which in ("step", "decoding"):
        check_temporaries("cpu:1", "int8", which)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", CODE_DTYPES)
@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("remat", ["none", "frozen", "full"])
def test_temporaries_of_a_step_on_a_tpu(dtype, scan_layers, remat):
    check_temporaries("v5e:1x1", dtype, "step", scan_layers=scan_layers, remat=remat, **LARGE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", CODE_DTYPES)
@pytest.mark.parametrize("scan_layers", [True, False])
def test_temporaries_of_decoding_on_a_tpu(dtype, scan_layers):
    check_temporaries("v5e:1x1", dtype, "decoding", scan_layers=scan_layers, **LARGE)
