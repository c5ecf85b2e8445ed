"""trackio. TRACKIO_PROJECT is the project; TRACKIO_DIR, TRACKIO_SPACE_ID and its other environment variables say where it is."""

import os
import uuid

import trackio  # pyright: ignore[reportMissingImports]  # optional
from etils import epath

from adalink_jax.training.trackers.tracker import PROJECT, Opened, Row, RunFacts, image_of, local_files


class Tracker:
    """See `tracker.Tracker`. trackio writes in the background, and a kill loses the last half second, which is given again."""

    def open(self, run: RunFacts, known: str | None, resumed_at: int | None) -> Opened:
        name = known or f"{run.folder.name}-{uuid.uuid4().hex[:6]}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        config = {**run.macros, "config.gin": run.config}
        self._run = trackio.init(project=project, name=name, resume="allow", config=config, embed=False)
        return Opened(name, self._run._next_step)  # one after the last step that trackio has

    def write(self, row: Row) -> None:
        pictures = {tag: trackio.Image(image_of(path)) for tag, path in row.pictures.items()}
        self._run.log(row.values | pictures, step=row.step)

    def close(self, finished: bool, adapter: epath.Path | None) -> None:
        if adapter is not None:
            artifact = trackio.Artifact(f"adapter-{self._run.name}", type="model")
            with local_files(adapter) as files:
                for file in files:
                    artifact.add_file(os.fspath(file))
                self._run.log_artifact(artifact)
        self._run.finish()
