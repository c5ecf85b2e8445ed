"""A sweep of 24 runs, with a file of steps in place of training: `python sweep_program.py FOLDER` runs it.

With a run's name after the folder, this is the process of that run. CHIP_HOURS limits the sweep, on 3,600 chips: to as many seconds.
"""

import os
import pathlib
import sys
import time

from rich.console import Console

from adalink_jax.experiments.sweeps.board import Board
from adalink_jax.experiments.sweeps.run_folder import RunFolder, Taken
from adalink_jax.experiments.sweeps.runner import Runner, follow
from adalink_jax.experiments.sweeps.spending import Spending
from adalink_jax.files.whole_file import write_json

RUNS, STEPS = 24, 3


def work(run: RunFolder, parent: str) -> int:
    follow(int(parent))
    try:
        with run.held():
            if run.finished():
                return 0
            run.begin()
            steps = run.path / "steps.txt"
            for step in range(len(steps.read_text()) if steps.exists() else 0, STEPS):
                time.sleep(float(os.environ.get("STEP_SECONDS", "0.1")))
                with open(steps, "a", encoding="utf-8") as file:
                    file.write(str(step))
            write_json(run.path / "summary.json", {"steps": STEPS})
            run.end(0)
    except Taken as e:
        return e.status
    return 0


def main(folder: str, name: str = "", parent: str = "") -> int:
    names = [f"run_{number}" for number in range(RUNS)]
    runs = {each: RunFolder(f"{folder}/{each}", {}, {}, STEPS) for each in names}
    if name:
        return work(runs[name], parent)
    command = lambda each: [sys.executable, str(pathlib.Path(__file__).resolve()), folder, each, str(os.getpid())]
    most = os.environ.get("CHIP_HOURS")
    spending = Spending(f"{folder}/.chip_hours", 3600, float(most)) if most else None
    runner = Runner(runs, command, 4, Board(len(runs), 4, Console()), spending)
    runner.run()
    return 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
