"""TensorBoard events in `MODEL_DIR/tensorboard`, written without TensorFlow."""

import socket
import struct
import time
from typing import Any

from etils import epath
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  generated
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  generated
from tensorboard.summary.writer.record_writer import RecordWriter

from adalink_jax.data.images import read_image
from adalink_jax.files.growing_file import GrowingFile
from adalink_jax.training.trackers.tracker import TENSORBOARD, Opened, Row, RunFacts


class Tracker:
    """See `tracker.Tracker`. A process that resumes the run makes TensorBoard drop the steps that it repeats."""

    def open(self, run: RunFacts, known: str | None, resumed_at: int | None) -> Opened:
        folder = run.folder / TENSORBOARD
        folder.mkdir(parents=True, exist_ok=True)
        first_step = 0 if resumed_at is None or not any(folder.iterdir()) else resumed_at
        self._events = GrowingFile(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}")
        self._records = RecordWriter(self._events)
        self._add_event(file_version="brain.Event:2")
        if resumed_at is not None:  # this step is given again, as a kill may have cut it short
            self._add_event(step=first_step, session_log=SessionLog(status=SessionLog.START))
        return Opened("", first_step)

    def write(self, row: Row) -> None:
        if row.values:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in row.values.items()]
            self._add_event(step=row.step, summary=Summary(value=values))
        for tag, path in row.pictures.items():
            self._add_picture(row.step, tag, path)

    def _add_picture(self, step: int, tag: str, path: epath.Path) -> None:
        png = read_image(str(path))
        if len(png) < 24:  # cut short by a kill of version 0.1.0, which wrote it in place
            return
        width, height = struct.unpack(">ii", png[16:24])  # of the PNG's header
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
        self._add_event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def _add_event(self, **fields: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._events.flush()

    def close(self, finished: bool, adapter: epath.Path | None) -> None:
        """Nothing to do: each event is flushed, and adapters have no place in TensorBoard."""
