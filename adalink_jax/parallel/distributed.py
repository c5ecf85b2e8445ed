"""Many processes, one program: how they find each other, what each holds, and how they agree.

Every process runs the same lines with the same values. What depends on one of them (its files, its signals) is known to one
and told to all: `once`, `all_agree` and `Agreement` are the only ways.
"""

import json
from collections.abc import Callable
from typing import TypeVar

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax import preemption
from adalink_jax.errors import UserError
from adalink_jax.parallel.sharding import replicated, settle

T = TypeVar("T")

TIMEOUT_SECONDS = 20  # without a sign of life of a process, or with one that ended too early, until the others end too


def initialize(
    detect: bool = False, coordinator_address: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Joins the processes of a job; does nothing if nothing is asked for. Nothing of JAX may have been computed before.

    Args:
      detect: take what is not given from the cluster: a TPU pod, Slurm, GKE, Open MPI (JAX's own detection).
      coordinator_address: `HOST:PORT` of process 0.
      count: number of processes.
      index: of this process, from 0 on.

    Raises:
      UserError: for settings that are incomplete or wrong, a cluster that is not there, processes that do not come.
    """
    settings = {"--coordinator_address": coordinator_address, "--process_count": count, "--process_index": index}
    missing = [name for name, value in settings.items() if value is None]
    if not detect and len(missing) == len(settings):
        preemption.met()
        return
    if missing and len(missing) < len(settings):
        raise UserError(f"{', '.join(settings)} go together; missing: {', '.join(missing)}.")
    if not missing and not (count > 0 and 0 <= index < count and coordinator_address.rpartition(":")[2].isdigit()):
        raise UserError(
            f"--coordinator_address={coordinator_address} must be HOST:PORT, and --process_index={index} a number from 0 "
            f"up to but not --process_count={count}."
        )
    # A service of JAX would take SIGTERM for itself, from here on, and act on it nowhere.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address,
            count,
            index,
            # Else Slurm's detection would give each process one GPU, whatever it was given.
            cluster_detection_method=None if missing else "deactivate",
            heartbeat_timeout_seconds=TIMEOUT_SECONDS,
            shutdown_timeout_seconds=TIMEOUT_SECONDS,
        )
        preemption.met()
    except (ValueError, RuntimeError) as e:
        why = str(e).split("\n")[0][:200]
        if missing:
            raise UserError(
                f"--multiprocess found no cluster ({why}); give {'=..., '.join(settings)}=... to each process."
            ) from e
        raise UserError(f"Process {index} of {count} did not meet the others at {coordinator_address} ({why}).") from e


def leave() -> None:
    """Ends this process's part in the job, when all have come here. Nothing of JAX may be computed afterwards.

    Without it each would wait for the others while Python ends, for TIMEOUT_SECONDS at most, and the first, which writes and
    prints, comes later than the others.
    """
    if jax.process_count() > 1:
        all_agree(True)
        jax.distributed.shutdown()


@gin.configurable
def expect_devices(num_devices: int | None = None) -> None:
    """Compares the devices that were asked for with those of the job.

    Args:
      num_devices: of all processes together; None compares nothing.

    Raises:
      UserError: if they differ.
    """
    found = jax.device_count()
    if num_devices is not None and num_devices != found:
        raise UserError(
            f"NUM_DEVICES is {num_devices}, but the job has {found}: {jax.process_count()} processes with "
            f"{jax.local_device_count()} {jax.devices()[0].platform} devices in this one; start one process for each "
            f"device (Slurm), or one for each host with all of its devices."
        )


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def once(action: Callable[..., T], *arguments) -> T:
    """What `action(*arguments)` gives in the first process, which alone runs it; all wait, and get it (through JSON).

    Raises:
      UserError: in the others, if it fails in the first.
    """
    if jax.process_count() == 1:
        return action(*arguments)
    told, error = b"", None
    if is_first():
        try:
            told = json.dumps({"value": action(*arguments)}).encode()
        except Exception as e:
            told, error = json.dumps({"error": str(e).split("\n")[0]}).encode(), e
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(told))))
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(told.ljust(size), np.uint8)[:size])
    if error is not None:
        raise error
    told = json.loads(told.tobytes())
    if "error" in told:
        raise UserError(f"The first process stopped: {told['error']}")
    return told["value"]


def all_agree(mine: bool) -> bool:
    """Whether it is so in every process; all ask, and wait for each other."""
    return mine if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(mine)).all())


class Agreement:
    """The largest of a small number that each process has, as all of them know it.

    With one process it is that number. With several it is the number as it was one question ago, and once it is not 0
    it stays: the question is a program in the devices' queue, read when the next one is asked, and holds nothing up. All
    processes must ask equally often.
    """

    def __init__(self):
        self._mesh = Mesh(np.array(jax.devices()), ("device",))
        self._largest = jax.jit(jnp.max, out_shardings=replicated(self._mesh))
        self._known, self._asked = 0, None

    def largest(self, mine: int) -> int:
        """Asks with this process's number, from 0 to 255."""
        if jax.process_count() == 1:
            return mine
        if not self._known:
            place = NamedSharding(self._mesh, PartitionSpec("device"))
            each = jax.make_array_from_callback((self._mesh.size,), place, lambda _: np.array([mine], np.uint8))
            before = self._asked
            with jax.set_mesh(self._mesh):
                self._asked = settle(self._largest(each))
            self._known = 0 if before is None else int(before)
        return self._known
