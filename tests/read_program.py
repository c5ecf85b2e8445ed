"""Run by test_read_once.py in each process of a job: loads a base on meshes, and prints what this process read of its file.

python read_program.py PORT PROCESSES INDEX DEVICES BASE CASE...      CASE: DATAxMODEL[,fsdp][,scanned][,bfloat16][,fails][,saved[,full]]

Prints one line of JSON per case: `read`, bytes read of the weights' file; `digest`, of the bits of all values; or `error`. In a
case that `fails` the last process cannot read large pieces. A case that is `saved` writes what it loaded to BASE-CASE, and prints `held`, the
most bytes of gathered values at a time; the disk is `full` after some of them.
"""

import hashlib
import json
import sys
import weakref

import jax
import numpy as np
from etils.epath import Path

from adalink_jax import T5, AdaptedModel, T5Config, checkpoints, parallel
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.quantised import Storage
from adalink_jax.training.abstract import abstract_leaves

SIZES = {"vocab_size": 1024, "emb_dim": 64, "num_heads": 8, "head_dim": 16, "mlp_dim": 256, "num_encoder_layers": 2,
         "num_decoder_layers": 2}  # fmt: skip


def model(scanned: bool) -> AdaptedModel:
    """The model whose base is read."""
    return AdaptedModel(T5(T5Config(**SIZES, scan_layers=scanned)))


def digest_of(leaves: dict) -> str:
    """Returns a digest of the bits of named arrays."""
    digest = hashlib.sha256()
    for name in sorted(leaves):
        digest.update(name.encode() + np.ascontiguousarray(leaves[name]).tobytes())
    return digest.hexdigest()


class Counted:
    """A file that counts what is read of it, and what is written to it if the disk is full."""

    total, fails, full = 0, False, False

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def read(self, *size):
        values = self._file.read(*size)
        if Counted.fails and len(values) > 2**15:
            raise OSError("The disk is gone.")
        Counted.total += len(values)
        return values

    def write(self, values):
        if Counted.full and self._file.tell() > 2**20:
            raise OSError("The disk is full.")
        return self._file.write(values)


def count_files() -> None:
    """Makes every file of weights that is opened from here on count what is read."""
    kind = type(Path("."))
    plain = kind.open

    def counted(self, *arguments, **options):
        file = plain(self, *arguments, **options)
        return Counted(file) if self.suffix == ".safetensors" else file

    kind.open = counted


def load(base: str, case: str) -> dict:
    """Loads `base` for `case`."""
    shape, *options = case.split(",")
    data, columns = map(int, shape.split("x"))
    mesh, rules = parallel.make_mesh(data, columns), parallel.logical_axis_rules(fsdp="fsdp" in options)
    dtype = "bfloat16" if "bfloat16" in options else "float32"
    Counted.total = 0
    Counted.fails = "fails" in options and jax.process_index() == jax.process_count() - 1
    with parallel.use_mesh(mesh, rules):
        leaves = Storage(dtype).stored(abstract_leaves(model("scanned" in options), mesh, rules), ())
        wanted = paths.unflatten(leaves)["backbone"]
        try:
            loaded = checkpoints.load_base(base, wanted).params
        except (OSError, UserError) as e:
            return {"case": case, "error": str(e)}
        read = Counted.total
        held = None
        if "saved" in options:
            try:
                held = save(f"{base}-{case}", loaded, "full" in options)
            except (OSError, UserError) as e:
                return {"case": case, "error": str(e)}
        values = paths.unscan(parallel.to_host(paths.flatten(loaded)))
    return {"case": case, "read": read, "digest": digest_of(values), "held": held}


def save(folder: str, params: dict, is_full: bool) -> int:
    """Saves `params`; returns the most bytes of gathered values that were held at a time."""
    gather, held, most = parallel.to_first, [], 0

    def watched(x):
        nonlocal most
        values = gather(x)
        if values is not None:
            held.append(weakref.ref(values))
            most = max(most, sum(array.nbytes for alive in held if (array := alive()) is not None))
        return values

    parallel.to_first = watched
    Counted.full = is_full
    try:
        checkpoints.save_base(folder, params, "saved", {})
    finally:
        parallel.to_first, Counted.full = gather, False
    return most


def main() -> None:
    """Runs the cases."""
    port, count, index, devices, base, *cases = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    if int(count) > 1:
        parallel.initialize(False, f"localhost:{port}", int(count), int(index))
    count_files()
    for case in cases:
        print(json.dumps(load(base, case)), flush=True)


if __name__ == "__main__":
    main()
