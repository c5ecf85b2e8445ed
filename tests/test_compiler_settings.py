"""Compiler flags: the compilers know them all, the environment wins, and a command sets them before JAX starts."""

import os
import subprocess
import sys

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import adalink_jax
from adalink_jax.cli.main import main
from adalink_jax.errors import UserError
from adalink_jax.parallel import compiler_settings
from adalink_jax.parallel.accelerators import parse_topology
from adalink_jax.parallel.compiler_settings import FLAG_SETS, FlagSet, effective
from adalink_jax.planning.collectives import collectives
from adalink_jax.planning.hlo import Program
from adalink_jax.planning.plan import devices_of

ENV = {**os.environ, "PYTHONPATH": os.path.dirname(adalink_jax.__path__[0])}
SHARDED = [
    "--gin_file=gin/models/pali_nano.gin",
    "--gin_file=gin/adapters/adalink.gin",
    "--gin_file=gin/meshes/fsdp.gin",
]


@pytest.fixture(autouse=True)
def nothing_cached():
    """Programs for chips that are not here can be written to the cache, but not read."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def run(program: str, **env: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENV | env)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def lowered(shape):
    """Two products of rows with sharded matrices, as in an MLP, for a TPU."""
    mesh = jax.sharding.Mesh(np.array(devices_of(parse_topology(shape))), ("data",))
    place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    array = lambda *shape, axes: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place(*axes))
    layers = array(2, 2048, 4096, axes=(None, "data")), array(2, 4096, 2048, axes=(None, None, "data"))
    scan = lambda x, layers: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w[0]) @ w[1], None), x, layers)[0]
    return jax.jit(scan, out_shardings=place("data")).lower(array(65536, 2048, axes=("data",)), layers)


@pytest.mark.parametrize("shape", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_tpu_compiler_knows_every_flag(shape):
    program = lowered(shape)
    for flag_set in FLAG_SETS:
        if flag_set.platform == "tpu":
            program.compile(compiler_options=dict(flag_set.flags))
    with pytest.raises(Exception, match="No such compile option"):
        program.compile(compiler_options={"xla_tpu_no_such_flag": "true"})


def test_xla_knows_every_flag_for_gpus():
    """XLA's CPU build parses those of GPUs too, and ends the process at an unknown one."""
    flags = {
        name: text for flag_set in FLAG_SETS if flag_set.platform == "gpu" for name, text in flag_set.flags.items()
    }
    text = " ".join(f"--{name}={value}" for name, value in flags.items())
    assert run("import jax; print(len(jax.devices()))", XLA_FLAGS=text) == "1\n"
    with pytest.raises(AssertionError, match="Unknown flag"):
        run("import jax; jax.devices()", XLA_FLAGS=f"{text} --xla_gpu_no_such_flag=true")


def test_gathered_weights_are_not_multiplied_shard_by_shard():
    kinds = lambda **options: {
        sent.kind for sent in collectives(Program(lowered("v5e:2x4").compile(**options).as_text() or ""), 8)
    }
    (gathered,) = compiler_settings.compiler_flags(["tpu"])
    assert kinds(compiler_options=dict(gathered.flags)) == {"all-gather"}
    assert "collective-permute" in kinds()


def test_flags_of_the_environment_win():
    flag_set = FlagSet("two", "tpu", {"xla_a": "1", "xla_b": "2"}, "")
    assert effective(flag_set, {}) == {"xla_a": "1", "xla_b": "2"}
    assert effective(flag_set, {"LIBTPU_INIT_ARGS": "--xla_c=3 --xla_a=7"}) == {"xla_b": "2"}
    assert effective(flag_set, {"XLA_FLAGS": "--xla_a=7"}) == flag_set.flags
    assert effective(flag_set, {"LIBTPU_INIT_ARGS": "flags.txt"}) == {}  # a file of flags


@pytest.mark.parametrize("platforms, name, words", [
    (["tpu"], "overlapped", "not for tpu devices; there are 'auto', 'gathered', 'none'"),
    (["cpu"], "gathered", "not for cpu devices; there are 'auto', 'none'"),
])  # fmt: skip
def test_flags_of_another_platform_are_refused(platforms, name, words):
    with pytest.raises(UserError, match=words):
        compiler_settings.compiler_flags(platforms, name)


def test_a_command_sets_the_flags_before_jax_starts(tmp_path):
    """Stand-ins of the flags for a GPU, which is not here: two devices of the CPU show that XLA has read them."""
    program = f"""
import os, sys
from adalink_jax.parallel import compiler_settings
from adalink_jax.cli.main import main
compiler_settings._may_start = lambda platform: platform == "gpu"
devices = compiler_settings.FlagSet("two", "gpu", {{"xla_force_host_platform_device_count": "2"}}, "")
compiler_settings.FLAG_SETS = (devices,)
main(["train", "--gin_file=gin/runs/quickstart.gin", "--gin.MODEL_DIR={str(tmp_path)!r}", "--gin.NUM_DEVICES=3"])
print(os.environ["XLA_FLAGS"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=ENV | {"XLA_FLAGS": "--xla_dump_to="}
    )
    assert "NUM_DEVICES is 3, but the job has 2" in done.stderr
    assert done.stdout == "--xla_dump_to= --xla_force_host_platform_device_count=2\n"


def test_the_platforms_of_jax_decide_which_variables_are_set(monkeypatch):
    environment = {}
    compiler_settings.set_environment(environment)  # JAX_PLATFORMS is cpu
    assert environment == {}
    monkeypatch.setattr(compiler_settings.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    jax.config.update("jax_platforms", "tpu,cpu")
    try:
        compiler_settings.set_environment(environment)
        once = dict(environment)
        compiler_settings.set_environment(environment)
    finally:
        jax.config.update("jax_platforms", "cpu")
    assert environment == once == {"LIBTPU_INIT_ARGS": "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"}


@pytest.mark.slow
def test_a_search_plans_with_all_sets_and_names_the_fastest(capsys):
    assert main(["plan", *SHARDED, "--topology", "v5e:2x2", "--quick", "--search"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "compiler flags gathered --xla_jf_spmd_threshold" in shown  # a narrow terminal breaks the line
    other, fastest = shown.partition("fits: ")[2].split("fastest: ")
    assert "ms per step, " in other and other.strip().endswith("""--gin.COMPILER_FLAGS="'none'\"""")
    assert fastest.startswith("roughly ") and "h with evaluations with --topology v5e:2x2" in fastest


def test_the_choice_is_a_setting(capsys):
    assert main(["plan", *SHARDED, "--gin.COMPILER_FLAGS='gathred'", "--topology", "v5e:2x2"]) == 2
    assert "COMPILER_FLAGS" in capsys.readouterr().err
    gin.clear_config()
