"""Writes a run's metrics to TensorBoard events and to `metrics.jsonl`, without TensorFlow."""

import json
import socket
import struct
import time
from typing import Any

from etils import epath
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  generated
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  generated
from tensorboard.summary.writer.record_writer import RecordWriter

from adalink_jax import parallel
from adalink_jax.files.growing_file import GrowingFile
from adalink_jax.files.json_lines import append_json, read_json_lines
from adalink_jax.files.whole_file import write_text


class MetricWriter:
    """Appends to `MODEL_DIR/metrics.jsonl` and to TensorBoard events in `MODEL_DIR/tensorboard`.

    Only process 0 writes; all processes know the rows.

    Args:
      model_dir: the run's folder.
      resumed_at: rows of later steps, written before a run was killed, are removed from `metrics.jsonl`; None keeps all.
    """

    def __init__(self, model_dir: str | epath.Path, resumed_at: int | None):
        self._folder, self._path = epath.Path(model_dir), epath.Path(model_dir) / "metrics.jsonl"
        self._rows = parallel.once(self._kept_rows, resumed_at)
        self._writes = parallel.is_first()
        if not self._writes:
            return
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        (self._folder / "tensorboard").mkdir(parents=True, exist_ok=True)
        self._events = GrowingFile(self._folder / "tensorboard" / name)
        self._records = RecordWriter(self._events)
        self._add_event(file_version="brain.Event:2")
        if resumed_at:  # makes TensorBoard drop later steps that were written before
            self._add_event(step=resumed_at + 1, session_log=SessionLog(status=SessionLog.START))

    def _kept_rows(self, resumed_at: int | None) -> list[dict]:
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_json_lines(self._path) if resumed_at is None or row["step"] <= resumed_at]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not self._path.exists() or self._path.read_text() != text:
            write_text(self._path, text)
        return rows

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes `values`, by tag, for `step`; those that were written before a kill are not repeated."""
        values = {tag: float(value) for tag, value in values.items() if not self.has(step, tag)}
        if not values:
            return
        self._rows.append({"step": step, **values})
        if not self._writes:
            return
        append_json(self._path, self._rows[-1])
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._add_event(step=step, summary=summary)

    def write_image(self, step: int, tag: str, png: bytes) -> None:
        """Writes a picture for TensorBoard."""
        if self._writes:
            width, height = struct.unpack(">II", png[16:24])  # of the PNG's header
            image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
            self._add_event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def _add_event(self, **fields: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._events.flush()

    def has(self, step: int, tag: str) -> bool:
        """Whether `tag` was written for `step`."""
        return any(tag in row and row["step"] == step for row in self._rows)

    def values(self, step: int, prefix: str) -> dict[str, float]:
        """The values written for `step` under tags that begin with `prefix`, by the rest of the tag."""
        values = {tag: value for row in self._rows if row["step"] == step for tag, value in row.items()}
        return {tag.removeprefix(prefix): value for tag, value in values.items() if tag.startswith(prefix)}
