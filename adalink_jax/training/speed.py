"""How fast a run trains: what each logged step measured, where a start's time went until its first step, and the run's goodput."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from adalink_jax import timings
from adalink_jax.files.json_lines import append_json, read_json_lines
from adalink_jax.parallel.accelerators import accelerator_of

STARTS = "starts.jsonl"
_KINDS = {
    "parameters": "base",
    "restore": "restore",
    "evaluation": "evaluation",
    "baselines": "evaluation",
    "batch": "first batch",
    "step": "first step",
}


def measured(seconds: float, metrics: Mapping[str, Any], step_flops: int | None) -> dict[str, float]:
    """What a step's clock says, by tag; nothing here waits for a device.

    Args:
      seconds: of the step, with its wait for data.
      metrics: of the step; `tokens` are those of the loss, over all devices.
      step_flops: the step's model FLOPs on all devices (`training.flops`).

    Returns:
      `timing/step_seconds`; `timing/target_tokens_per_second`; `timing/mfu`, model FLOPs over the peak FLOPs of the devices, for
      accelerators that `parallel.accelerators` knows; `timing/memory_high_water`, bytes of this process's fullest device, where
      it counts them.
    """
    values = {"timing/step_seconds": seconds, "timing/target_tokens_per_second": metrics["tokens"] / seconds}
    chip = accelerator_of(jax.devices()[0].device_kind)
    if chip is not None and step_flops:
        values["timing/mfu"] = step_flops / seconds / (jax.device_count() * chip.peak_flops)
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    if any(peaks):
        values["timing/memory_high_water"] = float(max(peak or 0 for peak in peaks))
    return values


class RunStart:
    """The time from a start of a run to the end of its first step, by phase. Create it when the run begins."""

    _process_begins = True  # the first run of a process begins with the process

    def __init__(self) -> None:
        whole = type(self)._process_begins
        type(self)._process_begins = False
        self._begin = timings.process_begin() if whole else time.perf_counter()
        self._before = {} if whole else timings.exclusive()

    def phases(self) -> dict[str, float]:
        """Seconds so far: `start` (imports, configuration, data, the rest), `base`, `restore`, `evaluation` (before training), `compile`
        (tracing, lowering, compiling or reading the compilation cache), `first batch`, `first step`."""
        seconds: dict[str, float] = dict.fromkeys(
            ("start", "base", "restore", "evaluation", "compile", "first batch", "first step"), 0.0
        )
        for path, spent in timings.exclusive().items():
            compiles = path[-1] in timings.COMPILING
            kind = "compile" if compiles else next((_KINDS[name] for name in path if name in _KINDS), "start")
            seconds[kind] += spent - self._before.get(path, 0.0)
        whole = time.perf_counter() - self._begin
        seconds["start"] += max(0.0, whole - sum(seconds.values()))
        return {name: round(spent, 3) for name, spent in seconds.items()}

    def record(self, folder: epath.Path, first_step: int) -> str:
        """Adds a line to `starts.jsonl`, and returns a sentence for people. Called after the first step, by process 0."""
        phases, whole = self.phases(), time.perf_counter() - self._begin
        row = {"step": first_step, "began": round(time.time() - whole, 3), "time_to_first_step": round(whole, 3)}
        append_json(folder / STARTS, row | {"phases": phases})
        parts = ", ".join(f"{name} {spent:.1f}" for name, spent in phases.items() if spent >= 0.05)
        return f"time to first step: {whole:.1f} s ({parts})"


def goodput(folder: epath.Path, steps: int, step_seconds: Sequence[float]) -> dict[str, float]:
    """The share of a run's wall time, since its first start and with the time between starts, that its steps need.

    Args:
      folder: the run's.
      steps: made in all starts, each counted once.
      step_seconds: of the steps that this process measured; the others are taken to be as long as their median.

    Returns:
      `goodput`, `wall_seconds`, `restarts`, and this process's `checkpoint_seconds` and `evaluation_seconds`; {} for a run whose starts
      were not recorded.
    """
    starts = [row["began"] for row in read_json_lines(folder / STARTS) if "began" in row]
    if not starts or not step_seconds:
        return {}
    wall = max(time.time() - min(starts), 1e-9)
    spent = dict.fromkeys(("checkpoint", "evaluation"), 0.0)
    for path, entry in timings.entries().items():
        if path[-1] in spent:
            spent[path[-1]] += entry.seconds
    needed = steps * sorted(step_seconds)[len(step_seconds) // 2]
    return {
        "goodput": round(min(1.0, needed / wall), 4),
        "wall_seconds": round(wall, 1),
        "restarts": len(starts) - 1,
        **{f"{name}_seconds": round(seconds, 1) for name, seconds in spent.items()},
    }
