"""Several processes running one program: how they meet, and how they agree.

Invariant: every process runs the same lines with the same values. A value that only one process knows (its files, its signals)
reaches the others only through `once`, `all_agree` and `Agreement`.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax import preemption
from adalink_jax.errors import Taken, UserError
from adalink_jax.parallel import missing_peer
from adalink_jax.parallel.sharding import replicated, settle
from adalink_jax.typed_values import PositiveInt

T = TypeVar("T")

INITIALIZATION_TIMEOUT = 300  # seconds, JAX's default
HEARTBEAT_TIMEOUT = 100  # seconds, JAX's default; heartbeats are sent by a thread of C++, during compilations too
SHUTDOWN_TIMEOUT = 20  # seconds


def initialize(
    detect: bool = False,
    coordinator_address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    initialization_timeout: int = INITIALIZATION_TIMEOUT,
    heartbeat_timeout: int = HEARTBEAT_TIMEOUT,
) -> None:
    """Joins the processes of a job; does nothing without arguments. Call it before any computation with JAX.

    Args:
      detect: detect the settings from the cluster (TPU pod, Slurm, GKE, Open MPI), as JAX does.
      coordinator_address: `HOST:PORT` of process 0.
      count: number of processes.
      index: index of this process, from 0.
      initialization_timeout: seconds that the processes have to meet; then this one ends with status 75 (`missing_peer`).
      heartbeat_timeout: seconds of silence after which a process counts as lost, and the others end with status 75.

    Raises:
      UserError: for incomplete or wrong settings, an undetected cluster, or processes that do not connect.
    """
    settings = {"--coordinator_address": coordinator_address, "--process_count": count, "--process_index": index}
    missing = [name for name, value in settings.items() if value is None]
    if not detect and len(missing) == len(settings):
        preemption.met()
        return
    if missing and len(missing) < len(settings):
        raise UserError(f"{', '.join(settings)} go together; missing: {', '.join(missing)}.")
    if coordinator_address is not None and count is not None and index is not None:
        if not (0 <= index < count and coordinator_address.rpartition(":")[2].isdigit()):
            raise UserError(
                f"--coordinator_address={coordinator_address} must be HOST:PORT, and --process_index={index} must be at "
                f"least 0 and less than --process_count={count}."
            )
    if min(initialization_timeout, heartbeat_timeout) < 1:
        raise UserError("--initialization_timeout and --heartbeat_timeout are seconds, at least 1.")
    # JAX's preemption service would swallow SIGTERM from here on.
    jax.config.update("jax_enable_preemption_service", False)
    absent = f"a process that did not come within {initialization_timeout} s (--initialization_timeout)"
    try:
        with missing_peer.meeting(absent):
            jax.distributed.initialize(
                coordinator_address,
                count,
                index,
                # Otherwise Slurm's detection would assign each process one GPU, regardless of its allocation.
                cluster_detection_method=None if missing else "deactivate",
                initialization_timeout=initialization_timeout,
                heartbeat_timeout_seconds=heartbeat_timeout,
                shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
            )
        missing_peer.watch(
            f"the loss of another process, which ended or was silent for {heartbeat_timeout} s (--heartbeat_timeout)"
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
    """Leaves the job once all processes have called this. Compute nothing with JAX afterwards.

    Otherwise each would wait for the others while Python exits, for SHUTDOWN_TIMEOUT at most; and process 0, which writes and
    prints, exits later than the others.
    """
    if jax.process_count() > 1:
        all_agree(True)
        jax.distributed.shutdown()
        missing_peer.unwatch()


@contextlib.contextmanager
def ending_without_peer() -> Iterator[None]:
    """While entered, an error by which a collective reports a lost process ends this one too, with status 75 (`missing_peer`)."""
    try:
        yield
    except Exception as e:
        if jax.process_count() == 1 or not missing_peer.is_lost_peer(e):
            raise
        missing_peer.end(f"the loss of another process ({str(e).splitlines()[0][:200]})")


@gin.configurable
def expect_devices(num_devices: PositiveInt | None = None) -> None:
    """Checks the number of the job's devices.

    Args:
      num_devices: expected number, over all processes; None checks nothing.

    Raises:
      UserError: if the numbers differ.
    """
    count = jax.device_count()
    if num_devices is not None and num_devices != count:
        raise UserError(
            f"NUM_DEVICES is {num_devices}, but the job has {count}: {jax.process_count()} processes with "
            f"{jax.local_device_count()} {jax.devices()[0].platform} devices in this one; start one process for each "
            f"device (Slurm), or one for each host with all of its devices."
        )


def is_first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return jax.process_index() == 0


def once(action: Callable[..., T], *arguments: Any) -> T:
    """Runs `action(*arguments)` in process 0 only, and returns its result in all of them (through JSON).

    Raises:
      UserError: in the other processes, if the action fails in process 0; `Taken` if it raises that, so that all end alike.
    """
    if jax.process_count() == 1:
        return action(*arguments)
    message, error = b"", None
    if is_first():
        try:
            message = json.dumps({"value": action(*arguments)}).encode()
        except Exception as e:
            text = str(e).split("\n")[0]
            message, error = json.dumps({"error": text, "taken": isinstance(e, Taken)}).encode(), e
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    message = multihost_utils.broadcast_one_to_all(np.frombuffer(message.ljust(size), np.uint8)[:size])
    if error is not None:
        raise error
    reply = json.loads(message.tobytes())
    if "error" in reply:
        kind = Taken if reply["taken"] else UserError
        raise kind(f"The first process stopped: {reply['error']}")
    return reply["value"]


def all_agree(vote: bool) -> bool:
    """Returns whether `vote` is True in every process; all processes must call it, and wait for each other."""
    return vote if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(vote)).all())


class Agreement:
    """Finds the largest of the small numbers that the processes have, so that all of them know it.

    With one process this is its number. With several it is the largest of the previous call, 0 at the first: a call only enqueues a
    program on the devices, whose result the next call reads, so it blocks nothing. All processes must call it equally often.
    """

    def __init__(self) -> None:
        self._mesh = Mesh(np.array(jax.devices()), ("device",))
        self._largest = jax.jit(jnp.max, out_shardings=replicated(self._mesh))
        self._pending: jax.Array | None = None

    def largest(self, number: int) -> int:
        """Contributes this process's number, from 0 to 255, and returns the largest one known."""
        if jax.process_count() == 1:
            return number
        place = NamedSharding(self._mesh, PartitionSpec("device"))
        value = np.array([number], np.uint8)
        numbers = jax.make_array_from_callback((self._mesh.size,), place, lambda _: value)
        before = self._pending
        with jax.set_mesh(self._mesh):
            self._pending = settle(self._largest(numbers))
        return 0 if before is None else int(before)
