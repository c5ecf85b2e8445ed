"""MLflow. MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and its other environment variables say where runs go."""

import os
import time

from etils import epath
from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]  # optional
from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

from adalink_jax.training.trackers.tracker import Opened, Row, RunFacts, image_of, local_files

LONGEST = 6000  # characters of a parameter
# Else a server that is down holds up the run for minutes.
RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


class Tracker:
    """See `tracker.Tracker`. A parameter keeps the value of the run's first start, as MLflow's cannot change; `config.gin` is the
    newest."""

    def open(self, run: RunFacts, known: str | None, resumed_at: int | None) -> Opened:
        for name, value in RETRIES.items():
            os.environ.setdefault(name, value)
        self._client = MlflowClient()
        if known is None:
            self._id = self._client.create_run(self._experiment(), run_name=run.folder.name).info.run_id
        else:
            self._id = known
            self._client.update_run(known, status="RUNNING")
        data = self._client.get_run(self._id).data
        texts = {name: str(value)[:LONGEST] for name, value in run.macros.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in data.params]
        self._client.log_batch(self._id, params=new)
        self._client.log_text(self._id, run.config, "config.gin")
        steps = (metric.step for tag in data.metrics for metric in self._client.get_metric_history(self._id, tag))
        place = f"run {self._id} at {self._client.tracking_uri}"
        return Opened(self._id, max(steps, default=-1) + 1, place)

    def _experiment(self) -> str:
        """The experiment's id, of MLflow's own variables."""
        if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return experiment_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        experiment = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if experiment is None else experiment.experiment_id

    def write(self, row: Row) -> None:
        for tag, path in row.pictures.items():
            self._client.log_image(self._id, image_of(path), f"{tag}/step_{row.step:06d}.png")
        now = int(time.time() * 1000)
        metrics = [Metric(tag, value, now, row.step) for tag, value in row.values.items()]
        self._client.log_batch(self._id, metrics=metrics)  # the last, as it decides which steps MLflow has

    def close(self, finished: bool, adapter: epath.Path | None) -> None:
        if adapter is not None:
            with local_files(adapter) as files:
                for file in files:
                    self._client.log_artifact(self._id, os.fspath(file), "adapter")
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
