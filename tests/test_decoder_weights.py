"""Evaluation under FSDP decodes with the decoder's weights gathered once, on four virtual devices in a separate process."""

import os
import subprocess
import sys

import jax
import pytest
from helpers import with_devices

from adalink_jax.parallel.accelerators import ACCELERATORS, accelerator_of, standing_for

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import dataclasses

import gin
import jax
import numpy as np
from helpers import random_batch, tiny_t5

from adalink_jax import T5, AdaLinkAdapter, AdaptedModel, parallel
from adalink_jax.models.decoding import Sampling
from adalink_jax.parallel.accelerators import ACCELERATORS, standing_for
from adalink_jax.planning.collectives import collectives
from adalink_jax.planning.hlo import Program
from adalink_jax.training import setup
from adalink_jax.training.evaluation import make_generate

model = AdaptedModel(T5(tiny_t5(scan_layers=True)), AdaLinkAdapter(rank=4))
batch = random_batch(model.backbone, 4, 6, 4, seed=0)
batch = {"encoder_input_tokens": batch["encoder_input_tokens"], "sampling_ids": np.zeros((4, 3), np.int32)}
config = setup.Setup(model, trainable=("adapter/.*", "backbone/.*"))


def evaluate(kind):
    mesh, rules = parallel.make_mesh(4), parallel.logical_axis_rules(fsdp=True)
    gin.bind_parameter("decoder_weights.kind", kind)
    with parallel.use_mesh(mesh, rules):
        params = setup.load_parameters(config, mesh, rules)
        arguments = params.trainable, params.frozen, parallel.put_batch(batch, mesh)
        program = jax.jit(make_generate(model, 4, Sampling())).lower(*arguments).compile()
        each_token = [
            sum(one.times * one.nbytes for one in collectives(Program(program.as_text(), trips), 4)) for trips in (0, 1)
        ]
        return np.asarray(parallel.settle(program(*arguments))), each_token[1] - each_token[0]


(ids, bytes_sharded), (ids_gathered, bytes_gathered), (_, bytes_auto) = map(evaluate, ("sharded", "gathered", "auto"))
np.testing.assert_array_equal(ids_gathered, ids)
assert bytes_auto == bytes_gathered < 0.1 * bytes_sharded, (bytes_sharded, bytes_gathered, bytes_auto)
with standing_for(dataclasses.replace(ACCELERATORS["h100"], memory=2**16)):  # as in a plan for GPUs that are not here
    assert evaluate("auto")[1] == bytes_sharded
print("equal")
"""


def test_outputs_are_equal_and_no_weight_is_gathered_for_a_token():
    env = with_devices(4)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, os.path.dirname(__file__)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "equal\n"


@pytest.mark.parametrize("kind, name", [
    ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("NVIDIA A100-SXM4-80GB", "a100"),
    ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA B200", "b200"), ("TPU7x", "tpu7x"), ("NVIDIA GB200", "gb200"),
])  # fmt: skip
def test_a_device_s_kind_names_its_chip(kind, name):
    assert accelerator_of(kind) is ACCELERATORS[name]


def test_a_cpu_is_no_chip_of_the_table_unless_it_stands_for_one():
    """In the plan of a job for GPUs that are not here, what depends on the chip's memory is as it is there."""
    kind = jax.devices()[0].device_kind
    with standing_for(ACCELERATORS["h100"]):
        assert accelerator_of(kind) is ACCELERATORS["h100"] and accelerator_of("TPU v4") is ACCELERATORS["v4"]
    assert accelerator_of(kind) is None
