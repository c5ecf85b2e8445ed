"""A base that several processes load: one of them reads each byte of its file, and no bit changes on the way."""

import json
import os
import socket
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from read_program import digest_of, model
from safetensors.numpy import load_file

from adalink_jax import checkpoints, parallel
from adalink_jax.adapters import abstract_params
from adalink_jax.models import paths
from adalink_jax.parallel.accelerators import parse_topology
from adalink_jax.parallel.read_once import reading_layout
from adalink_jax.planning.plan import devices_of

PROGRAM = os.path.join(os.path.dirname(__file__), "read_program.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A native base; one of its leaves has values that arithmetic would change."""
    folder = tmp_path_factory.mktemp("base")
    shapes, rng = paths.flatten(parallel.unbox(abstract_params(model(False)))["backbone"]), np.random.default_rng(0)
    leaves = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in shapes.items()}
    leaves["encoder/layers_0/mlp/wo/kernel"][0, :5] = [-0.0, 1e-40, -1e-40, np.inf, np.nan]
    checkpoints.save_base(str(folder), paths.unflatten(leaves), "tiny", {})
    return folder


def results(base, count, devices, *cases):
    """Case -> what each process printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = lambda i: [sys.executable, PROGRAM, str(port), str(count), str(i), str(devices), str(base), *cases]
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(checkpoints.__path__[0]))}  # this very package
    start = lambda i: subprocess.Popen(command(i), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    processes = [start(i) for i in range(count)]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, [err[-2000:] for _, err in outputs]
    rows = [[json.loads(line) for line in out.splitlines() if line.startswith("{")] for out, _ in outputs]
    return {results[0]["case"]: results for results in zip(*rows)}


def expected_digest(base, case):
    """From the file, by the safetensors package."""
    values = load_file(base / "model.safetensors")
    dtype = ml_dtypes.bfloat16 if "bfloat16" in case else np.float32
    return digest_of({name: x.astype(dtype) for name, x in values.items()})


@pytest.mark.parametrize("count, devices, cases", [
    (2, 1, ["2x1,scanned", "2x1,fsdp,bfloat16,scanned"]),
    pytest.param(2, 1, ["2x1,bfloat16", "1x2", "2x1,fsdp"], marks=pytest.mark.slow),
    # Two processes with two devices each: a copy in each process; split in them, and over them.
    pytest.param(2, 2, ["4x1", "2x2,bfloat16", "1x4", "2x2,fsdp,scanned", "4x1,fsdp"], marks=pytest.mark.slow),
    pytest.param(4, 1, ["4x1,bfloat16", "2x2", "2x2,fsdp", "4x1,fsdp,scanned"], marks=pytest.mark.slow),
])  # fmt: skip
def test_every_byte_is_read_by_one_process_and_no_bit_changes(base, count, devices, cases):
    outputs = results(base, count, devices, *cases)
    file = base / "model.safetensors"
    header = 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]
    for case in cases:
        read = [output["read"] for output in outputs[case]]
        assert sum(read) == file.stat().st_size + (count - 1) * header, case  # all read the header
        assert max(read) < 1.5 / count * file.stat().st_size, case
        assert {output["digest"] for output in outputs[case]} == {expected_digest(base, case)}, case


def test_a_process_that_cannot_read_stops_all_of_them(base):
    (first, last) = results(base, 2, 1, "2x1,scanned,fails")["2x1,scanned,fails"]
    assert last["error"] == "The disk is gone."
    assert first["error"] == "Another process could not read its part of the base; its message says why."


def test_a_base_that_is_split_over_processes_is_written_with_one_leaf_at_a_time(base):
    case, full = "2x1,fsdp,scanned,saved", "2x1,fsdp,saved,full"
    outputs = results(base, 2, 1, case, full)
    first, last = outputs[case]
    saved = base.with_name(f"{base.name}-{case}")
    assert digest_of(load_file(saved / "model.safetensors")) == digest_of(load_file(base / "model.safetensors"))
    stated = lambda folder, key: json.loads((folder / "base_config.json").read_text())[key]
    assert [stated(saved, key) == stated(base, key) for key in ("fingerprint", "digests")] == [True, True]
    assert first["held"] == max(x.nbytes for x in load_file(base / "model.safetensors").values())
    assert last["held"] == 0
    first, last = outputs[full]
    assert first["error"] == "The disk is full." and last["error"] == "The first process stopped: The disk is full."
    assert not base.with_name(f"{base.name}-{full}").exists()


def test_each_slice_reads_for_itself():
    """Two slices of eight chips, two processes each."""
    mesh = parallel.make_mesh(slices=2, model=2, devices=devices_of(parse_topology("v5e:2x4*2")))
    layout = lambda grain, *spec: reading_layout((64, 32), grain, NamedSharding(mesh, PartitionSpec(*spec)))
    assert layout((1, 32)) == ((None, None), ("data", "model"))  # one of eight positions reads, in both slices
    assert layout((1, 32), "model") == (("model", None), ("data",))
    assert layout((1, 32), "data") is None  # each reads its own
    assert layout((1, 32), None, "data") == ((("data",), None), ("model",))  # by whole rows, then exchanged
    assert layout((64, 32), "data") is None  # one piece: both read it
