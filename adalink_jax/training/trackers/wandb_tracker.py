"""Weights & Biases. WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and its other environment variables say where runs go."""

import json
import os
import subprocess
import sys
import uuid

import wandb  # pyright: ignore[reportMissingImports]  # optional
from etils import epath

from adalink_jax.files.places import is_remote, path_of
from adalink_jax.training.trackers.tracker import Opened, Row, RunFacts, image_of, local_files


class Tracker:
    """See `tracker.Tracker`. W&B drops steps that go back, so the steps it has are never given again."""

    def open(self, run: RunFacts, known: str | None, resumed_at: int | None) -> Opened:
        folder = None if is_remote(run.folder) or "WANDB_DIR" in os.environ else os.fspath(run.folder)
        self._run = wandb.init(
            id=known or uuid.uuid4().hex[:12],
            resume="allow",
            name=run.folder.name,
            dir=folder,
            reinit="create_new",  # another run of this process continues
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.config.update({**run.macros, "config.gin": run.config}, allow_val_change=True)
        if not self._run.offline:
            return Opened(self._run.id, self._run.step, self._run.url)
        place = f"offline, in {self._run.settings.sync_dir}; `wandb sync` uploads it"
        return Opened(self._run.id, self._first_step_offline(), place)

    def _first_step_offline(self) -> int:
        """The first step that the files of earlier processes lack, of which a kill has cut the ends; read by W&B's own reader."""
        here = path_of(self._run.settings.wandb_dir)
        files = here.glob(f"offline-run-*-{self._run.id}/run-{self._run.id}.wandb")
        first = 0
        for file in files:
            if os.path.dirname(file) == os.path.normpath(self._run.settings.sync_dir):
                continue
            command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", os.fspath(file)]
            for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
                if (record := json.loads(line))["type"] == "history":
                    first = max(first, record["history"]["item"].get("_step", -1) + 1)
        return first

    def write(self, row: Row) -> None:
        pictures = {tag: wandb.Image(image_of(path)) for tag, path in row.pictures.items()}
        self._run.log(row.values | pictures, step=row.step)

    def close(self, finished: bool, adapter: epath.Path | None) -> None:
        if adapter is not None:
            artifact = wandb.Artifact(f"adapter-{self._run.id}", type="model")
            with local_files(adapter) as files:
                for file in files:
                    artifact.add_file(os.fspath(file))
                self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if finished else 1)
