"""Writes a run's metrics to `metrics.jsonl` (`files.metric_log`), the run's record, and gives them to its trackers."""

from collections.abc import Callable, Sequence

from etils import epath

from adalink_jax import parallel
from adalink_jax.files.metric_log import MetricLog
from adalink_jax.files.places import path_of, regular_file
from adalink_jax.files.whole_file import write_bytes
from adalink_jax.training import trackers
from adalink_jax.training.trackers.tracker import Row

SAMPLES = "samples"
_OF_TRAINING = ("train/", "timing/")  # a resumed run writes these again; others, of evaluations, are written at once


def log_every(total_steps: int) -> int:
    """Steps between logged training metrics where no setting says it: a fortieth of all steps, and at most 50."""
    return max(1, min(50, total_steps // 40))


class MetricWriter:
    """Appends to `MODEL_DIR/metrics.jsonl`, and gives each step to the trackers once it is complete.

    Only process 0 writes; all processes know the rows.

    Args:
      model_dir: the run's folder.
      resumed_at: rows of later steps, written before a run was killed, are removed from `metrics.jsonl`; None keeps all.
      names: of the trackers, see `trackers.NAMES`.
      facts: of the run, for trackers that show them; None for the folder alone.
      note, warn: print a sentence of the trackers.
    """

    def __init__(
        self,
        model_dir: str | epath.Path,
        resumed_at: int | None,
        names: Sequence[str] = (trackers.TENSORBOARD,),
        facts: trackers.RunFacts | None = None,
        note: Callable[[str], None] = print,
        warn: Callable[[str], None] = print,
    ):
        self._folder = path_of(model_dir)
        self._log = MetricLog(self._folder)
        self._resumed_at = resumed_at
        self._rows = parallel.once(self._log.resume, resumed_at)
        self._copies = None
        if parallel.is_first():
            rows = [] if resumed_at is None else self._with_pictures()
            facts = facts or trackers.RunFacts(self._folder)
            self._copies = trackers.Copies(names, facts, rows, resumed_at, note, warn)

    def _with_pictures(self) -> list[Row]:
        """The rows as trackers take them, with the contact sheets of their steps."""
        rows = [_row(row) for row in self._rows]
        for row in list(rows):
            paths = (self._folder / SAMPLES).glob(f"step_{row.step:06d}_*.png")
            rows.append(Row(row.step, {}, {_tag(path): regular_file(path, "picture") for path in paths}))
        return rows

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes `values`, by tag, for `step`; a run does not repeat those that it wrote before it was killed."""
        known = () if self._resumed_at is None else [tag for tag in values if self.has(step, tag)]
        values = {tag: float(value) for tag, value in values.items() if tag not in known}
        if not values:
            return
        self._rows.append({"step": step, **values})
        if self._copies is not None:
            self._log.append(self._rows[-1])
            if not all(tag.startswith(_OF_TRAINING) for tag in values):
                self._log.flush()
            self._copies.add(Row(step, values))

    def flush(self) -> None:
        """Writes what is not written yet; called before a checkpoint, which is resumed with the rows up to its step."""
        if self._copies is not None:
            self._log.flush()

    def write_picture(self, step: int, split: str, png: bytes, kind: str = SAMPLES) -> None:
        """Writes a contact sheet, or a picture of another kind, to `samples/`, and for the trackers as `split/kind`."""
        if self._copies is not None:
            end = "" if kind == SAMPLES else f"_{kind}"
            path = self._folder / SAMPLES / f"step_{step:06d}_{split}{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, png)
            self.add_picture(step, _tag(path), path)

    def add_picture(self, step: int, tag: str, path: epath.Path) -> None:
        """Gives the trackers a picture that is in the run's folder."""
        if self._copies is not None:
            self._copies.add(Row(step, {}, {tag: path}))

    def reached(self, step: int) -> None:
        """Says that all earlier steps are complete."""
        if self._copies is not None:
            self._copies.reached(step)

    def close(self, finished: bool = True, adapter: epath.Path | None = None) -> None:
        """Ends the run at its trackers.

        Args:
          finished: False for a run that was stopped, whose last step may lack values until it is resumed.
          adapter: the folder of the adapter that the run wrote; None for none.
        """
        try:
            self.flush()
        finally:
            if self._copies is not None:
                self._copies.close(finished, adapter)

    def has(self, step: int, tag: str) -> bool:
        """Whether `tag` was written for `step`."""
        return any(tag in row and row["step"] == step for row in self._rows)

    def values(self, step: int, prefix: str) -> dict[str, float]:
        """The values written for `step` under tags that begin with `prefix`, by the rest of the tag."""
        values = {tag: value for row in self._rows if row["step"] == step for tag, value in row.items()}
        return {tag.removeprefix(prefix): value for tag, value in values.items() if tag.startswith(prefix)}

    def series(self, tag: str) -> list[float]:
        """All values written under a tag, in the order of their steps."""
        return [row[tag] for row in self._rows if row.get(tag) is not None]


def _row(row: dict) -> Row:
    return Row(row["step"], {tag: value for tag, value in row.items() if tag != "step" and value is not None})


def _tag(path: epath.Path) -> str:
    """The tag of a picture in `samples/`, of its file's name: step_STEP_SPLIT.png, or step_STEP_SPLIT_KIND.png."""
    split, *kind = path.stem.split("_", 3)[2:]
    return "/".join([split, *(kind or [SAMPLES])])
