"""Where a run's metrics can be followed while it trains: TensorBoard, Weights & Biases, MLflow, trackio (TRACKERS).

`metrics.jsonl` is the run's own record, and is always written; a tracker is a copy of it. One module per library, each
imported only where TRACKERS names it; `tracker` is what they have in common, and `copies` keeps them equal to the record.
"""

from adalink_jax.training.trackers.copies import Copies
from adalink_jax.training.trackers.tracker import NAMES, TENSORBOARD, RunFacts, TrackerName, import_libraries

__all__ = ["NAMES", "TENSORBOARD", "Copies", "RunFacts", "TrackerName", "import_libraries"]
