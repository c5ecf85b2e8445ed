"""Jobs on other machines: `adalink launch` writes and submits them, queries their status and cancels them.

A `Job` is a command and the chips that it runs on. Each launcher is a module (`local`, `slurm`, `tpu`, `gke`, `ray`) with its settings, which
gin configures, and a pure function `render(job, settings, staged)` -> `Rendered`: the job's files, and the commands that submit it, query
its status and cancel it. Only `submit`, `supervisor`, `ray_tasks` and `control` run commands; only `record` and `submit` write files. The templates
are in the folder `launch/`.
"""

from adalink_jax.launching.gke import Gke
from adalink_jax.launching.job import Job, Rendered
from adalink_jax.launching.local import Local
from adalink_jax.launching.ray import Ray
from adalink_jax.launching.slurm import Slurm
from adalink_jax.launching.tpu import Tpu

Settings = Gke | Local | Ray | Slurm | Tpu

__all__ = ["Gke", "Job", "Local", "Ray", "Rendered", "Settings", "Slurm", "Tpu"]
