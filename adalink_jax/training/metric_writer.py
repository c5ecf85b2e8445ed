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
from adalink_jax.data.images import read_image
from adalink_jax.files.growing_file import GrowingFile
from adalink_jax.files.json_lines import append_json, read_json_lines
from adalink_jax.files.places import path_of
from adalink_jax.files.run_files import Metrics
from adalink_jax.files.whole_file import write_bytes, write_text

SAMPLES = "samples"


def log_every(total_steps: int) -> int:
    """Steps between logged training metrics where no setting says it: a fortieth of all steps, and at most 50."""
    return max(1, min(50, total_steps // 40))


class MetricWriter:
    """Appends to `MODEL_DIR/metrics.jsonl` and to TensorBoard events in `MODEL_DIR/tensorboard`.

    Only process 0 writes; all processes know the rows.

    Args:
      model_dir: the run's folder.
      resumed_at: rows of later steps, written before a run was killed, are removed from `metrics.jsonl`; None keeps all.
    """

    def __init__(self, model_dir: str | epath.Path, resumed_at: int | None):
        self._folder, self._path = path_of(model_dir), path_of(model_dir) / "metrics.jsonl"
        self._resumed_at = resumed_at
        self._rows = parallel.once(self._kept_rows, resumed_at)
        self._writes = parallel.is_first()
        if not self._writes:
            return
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        (self._folder / "tensorboard").mkdir(parents=True, exist_ok=True)
        self._events = GrowingFile(self._folder / "tensorboard" / name)
        self._records = RecordWriter(self._events)
        self._add_event(file_version="brain.Event:2")
        if (
            resumed_at is not None
        ):  # makes TensorBoard drop this step and later ones; a kill may have cut this one short
            self._add_event(step=resumed_at, session_log=SessionLog(status=SessionLog.START))
            for row in self._rows:
                if row["step"] == resumed_at:
                    self._add_scalars(row)
            for path in (self._folder / SAMPLES).glob(f"step_{resumed_at:06d}_*.png"):
                self._add_image(resumed_at, path)

    def _kept_rows(self, resumed_at: int | None) -> list[dict]:
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_json_lines(self._path, Metrics) if resumed_at is None or row["step"] <= resumed_at]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not self._path.exists() or self._path.read_bytes() != text.encode():
            write_text(self._path, text)
        return rows

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes `values`, by tag, for `step`; a run does not repeat those that it wrote before it was killed."""
        known = () if self._resumed_at is None else [tag for tag in values if self.has(step, tag)]
        values = {tag: float(value) for tag, value in values.items() if tag not in known}
        if not values:
            return
        self._rows.append({"step": step, **values})
        if self._writes:
            append_json(self._path, self._rows[-1])
            self._add_scalars(self._rows[-1])

    def write_picture(self, step: int, split: str, png: bytes, kind: str = SAMPLES) -> None:
        """Writes a contact sheet, or a picture of another kind, to `samples/`, and for TensorBoard as `split/kind`."""
        if self._writes:
            end = "" if kind == SAMPLES else f"_{kind}"
            path = self._folder / SAMPLES / f"step_{step:06d}_{split}{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, png)
            self._add_image(step, path)

    def _add_scalars(self, row: dict[str, float]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in row.items() if tag != "step"]
        self._add_event(step=row["step"], summary=Summary(value=values))

    def _add_image(self, step: int, path: epath.Path) -> None:
        png, (split, *kind) = read_image(str(path)), path.stem.split("_", 3)[2:]
        if len(png) < 24:  # cut short by a kill of version 0.1.0, which wrote it in place
            return
        width, height = struct.unpack(">ii", png[16:24])  # of the PNG's header
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
        self._add_event(
            step=step, summary=Summary(value=[Summary.Value(tag="/".join([split, *(kind or [SAMPLES])]), image=image)])
        )

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
