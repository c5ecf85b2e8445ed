"""Google Kubernetes Engine: one JobSet, with one Job per TPU slice (or one for all GPU hosts) and one pod per host.

All hosts start, end and restart together: if a pod ends with status 75 or its node is taken away, all pods are recreated and
resume from the newest checkpoint. An exit status that means that the program itself failed ends the JobSet.
"""

import dataclasses
import os

import gin

from adalink_jax.errors import UserError
from adalink_jax.launching import job_templates
from adalink_jax.launching.alphabets import CountOrZero, Env, Name, check_settings
from adalink_jax.launching.job import (
    Commands,
    Job,
    Rendered,
    check_label,
    check_processes,
    check_shared_model_dir,
    check_under_current_folder,
)
from adalink_jax.launching.variables import GPU_MEMORY, check_variables
from adalink_jax.parallel.accelerators import Topology

MANIFEST = "jobset.yaml"
REPLICATED = "hosts"  # name of the JobSet's one replicated job
PORT = 8476
FAILED = (1, 2, 3, 130)  # a traceback, bad input, a loss that is not finite, Ctrl-C: a restart would not help
_CONFIG_MAP_BYTES = 2**20
# Accelerator -> value of the accelerator label of GKE's nodes.
NODES = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
    "gb200": "nvidia-gb200",
}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Gke:
    """Settings of a GKE cluster and of a job on it.

    Attributes:
      topology: `v5e:4x8`, `v5e:16x16*2` for two slices, `h100:16`; the node pools must have it.
      context: kubectl context, such as `gke_PROJECT_ZONE_CLUSTER`; the current context is never used.
      image: container image with this package installed and `adalink` on its PATH.
      namespace: Kubernetes namespace.
      accelerator: value of the nodes' accelerator label; None for the usual one of the chip.
      spot: run on Spot nodes.
      queue: Kueue queue; None without Kueue.
      service_account: Kubernetes service account with access to the buckets; None for the namespace's default.
      max_restarts: the most restarts of the job.
      grace_seconds: seconds to save after SIGTERM; a Spot node grants less.
      env: environment variables of the processes.

    Raises:
      UserError: for other values.
    """

    topology: str
    context: Name
    image: Name
    namespace: Name = "default"
    accelerator: Name | None = None
    spot: bool = False
    queue: Name | None = None
    service_account: Name | None = None
    max_restarts: CountOrZero = 10
    grace_seconds: CountOrZero = 120
    env: Env = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_settings(self)
        check_variables("gke", self.env)


def render(job: Job, settings: Gke, staged: dict[str, str]) -> Rendered:
    """Renders the manifest of a job.

    Args:
      job: what runs.
      settings: of the cluster.
      staged: path -> text of the job's own files, which a ConfigMap holds.

    Raises:
      UserError: for CPUs, a MODEL_DIR outside a bucket, a name that is too long, files that are too large or outside the current folder.
    """
    topology = job.topology
    if topology.accelerator is None:
        raise UserError(f"TOPOLOGY is {topology.text!r}, but GKE needs TPUs or GPUs, such as 'v5e:4x8' or 'h100:8'.")
    check_shared_model_dir(job, "since a pod's disk is deleted with the pod")
    check_under_current_folder(staged, "the pods")
    if sum(map(len, staged.values())) > _CONFIG_MAP_BYTES // 2:
        raise UserError(
            "The job's own gin files and modules are too large for a ConfigMap (1 MiB); put them into the image."
        )
    hosts = topology.hosts // topology.num_slices
    last = f"{job.name}-{REPLICATED}-{topology.num_slices - 1}-{hosts - 1}"
    check_label(job.name, f"{last}-xxxxx")  # Kubernetes adds five letters to a pod's name
    check_processes(job, topology.hosts)
    tpu = topology.platform == "tpu"
    # GPU hosts find process 0 by the DNS name of the JobSet's first pod; GKE tells TPU hosts of each other by itself.
    coordination = () if tpu else (
        f"--coordinator_address={job.name}-{REPLICATED}-0-0.{job.name}:{PORT}",
        f"--process_count={hosts}",
        "--process_index=$(JOB_COMPLETION_INDEX)",
    )  # fmt: skip
    literal = lambda text: text.replace("$", "$$")  # Kubernetes expands $(NAME), and $$ to $
    words = [word if word in coordination else literal(word) for word in job.words(topology.hosts, *coordination)]
    values = {
        "job": job,
        "settings": settings,
        "replicated": REPLICATED,
        "slices": topology.num_slices,
        "hosts": hosts,
        "chips": topology.chips_per_host,
        "tpu": tpu,
        "accelerator": settings.accelerator or NODES[topology.accelerator.name],
        "words": words,
        "env": [(name, literal(text)) for name, text in (({} if tpu else GPU_MEMORY) | settings.env).items()],
        "failed": FAILED,
        "staged": {f"file-{i}": (name, staged[name]) for i, name in enumerate(sorted(staged))},
    }
    return Rendered(
        files={MANIFEST: job_templates.fill("gke.yaml.jinja", **values)},
        main=MANIFEST,
        submit=(*_kubectl(settings), "create", f"--filename={os.path.join(job.folder, MANIFEST)}"),
        resume=f"The cluster restarts the job by itself, up to {settings.max_restarts} times. If it ended otherwise, "
        f"`adalink launch cancel {job.name}` and the same launch command resume it from the newest checkpoint in MODEL_DIR.",
    )


def commands(name: str, topology: Topology, settings: Gke, number: str) -> Commands:
    """The commands that control the job of this name."""
    kubectl, selector = _kubectl(settings), f"--selector=jobset.sigs.k8s.io/jobset-name={name}"
    return Commands(
        status=((*kubectl, "get", "jobsets,pods", selector, "--output=wide"), (*kubectl, "get", "jobset", name)),
        logs=(*kubectl, "logs", selector, "--prefix", "--tail=1000", f"--max-log-requests={topology.hosts}"),
        cancel=(*kubectl, "delete", f"jobset/{name}", f"configmap/{name}", "--ignore-not-found"),
    )


def _kubectl(settings: Gke) -> tuple[str, ...]:
    return ("kubectl", f"--context={settings.context}", f"--namespace={settings.namespace}")
