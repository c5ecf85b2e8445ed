"""Metrics of a run, written twice: TensorBoard events and `metrics.jsonl`. TensorFlow is not needed."""

import json
import time

from etils import epath
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from adalink_jax import parallel


class MetricWriter:
    """Appends to `MODEL_DIR/metrics.jsonl` and to TensorBoard events in `MODEL_DIR/tensorboard`; use it as a context.

    Only the first process writes; all know which rows there are.

    Args:
      model_dir: the run's folder.
      resumed_at: rows of later steps, written before a run was killed, are dropped from `metrics.jsonl`.
    """

    def __init__(self, model_dir: str, resumed_at: int):
        folder = epath.Path(model_dir)
        self._path, self._events = folder / "metrics.jsonl", None
        self._rows = parallel.once(self._kept_rows, resumed_at)
        if not parallel.is_first():
            return
        self._events = EventFileWriter(str(folder / "tensorboard"))
        if resumed_at:  # TensorBoard then drops what was written of later steps
            start = Event(wall_time=time.time(), step=resumed_at + 1, session_log=SessionLog(status=SessionLog.START))
            self._events.add_event(start)

    def _kept_rows(self, resumed_at: int) -> list[str]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = self._path.read_text().splitlines() if self._path.exists() else []
        rows = [row for row in rows if _step(row) <= resumed_at]
        self._path.write_text("".join(row + "\n" for row in rows))
        return rows

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes `values`, by tag, for `step`."""
        values = {tag: float(value) for tag, value in values.items()}
        self._rows.append(json.dumps({"step": step, **values}))
        if self._events is None:
            return
        with self._path.open("a") as file:
            file.write(self._rows[-1] + "\n")
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def has(self, step: int, tag: str) -> bool:
        """Whether `tag` was written for `step`."""
        return any(tag in row and json.loads(row)["step"] == step for row in self._rows)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._events is not None:
            self._events.close()


def _step(row: str) -> float:
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError):  # a row that was cut short when the run was killed
        return float("inf")
