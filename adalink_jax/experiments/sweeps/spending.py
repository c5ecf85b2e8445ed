"""The chip-hours that a sweep has used, and the most that it may use.

Every process that runs the sweep keeps a file of its own in the sweep's folder; together they are what was spent, whatever was killed.
"""

import os
import socket
import time

from adalink_jax.files.places import path_of
from adalink_jax.files.typed_json import Form, read_state
from adalink_jax.files.whole_file import write_json

WRITE_SECONDS = 30.0  # what a killed process used since its last writing is not counted


class _Spent(Form):
    """What a process has used."""

    chip_hours: float


class Spending:
    """Counts the time of this process on all chips of its machine.

    Args:
      folder: where the processes of the sweep keep their files.
      chips: of this machine.
      most: chip-hours that all processes together may use.
    """

    def __init__(self, folder: str, chips: int, most: float):
        self._folder, self._chips, self._most = path_of(folder), chips, most
        self._started = self._written = time.monotonic()
        self._file = self._folder / f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.json"
        self._before = self._of_others()

    def _of_others(self) -> float:
        files = self._folder.glob("*.json") if self._folder.exists() else ()
        states = (read_state(file, _Spent) for file in files if file != self._file)
        return sum(state["chip_hours"] for state in states if state)

    @property
    def chip_hours(self) -> float:
        """What was used: by other processes until they last wrote it, and by this one until now."""
        return self._before + (time.monotonic() - self._started) * self._chips / 3600

    def over(self) -> bool:
        """Whether all is used."""
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.write()
            self._before = self._of_others()
        return self.chip_hours >= self._most

    def write(self) -> None:
        """Writes what this process has used."""
        self._written = time.monotonic()
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {"chip_hours": self.chip_hours - self._before})

    def words(self) -> str:
        """Says that all is used, and the remedy."""
        return (
            f"The sweep has used {self.chip_hours:,.3g} of Sweep.max_chip_hours = {self._most:g}; its runs have saved. Raise it and "
            "rerun the same command to resume."
        )
