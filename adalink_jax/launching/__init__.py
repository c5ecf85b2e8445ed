"""Jobs on other machines: what `adalink launch` writes, submits and asks for.

A `Job` says what runs, and on which chips. One module for each kind of machine (`local`, `slurm`, `tpu`, `gke`) has the settings
that gin gives it, and a pure function `render(job, settings, staged)` -> `Rendered`: files, and the commands that submit them, ask
for their state, and stop them. Only `submit`, `supervisor` and `control` run commands; only `record` and `submit` write files.
The templates are in the folder `launch/`.
"""

from adalink_jax.launching.gke import Gke
from adalink_jax.launching.job import Job, Rendered
from adalink_jax.launching.local import Local
from adalink_jax.launching.slurm import Slurm
from adalink_jax.launching.tpu import Tpu

__all__ = ["Gke", "Job", "Local", "Rendered", "Slurm", "Tpu"]
