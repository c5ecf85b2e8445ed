"""Google Kubernetes Engine: one JobSet. A job of it for each slice or for all GPU hosts, a pod for each host.

The hosts of one slice start, end and start again together: a pod that ends with status 75, or whose node is taken away, has all of
them made again, and they go on from the newest checkpoint. A status that says that the program itself failed ends the JobSet.
"""

import dataclasses
import os

import gin

from adalink_jax.errors import UserError
from adalink_jax.launching import job_templates
from adalink_jax.launching.job import Job, Rendered, check_label, check_processes, shared_model_dir

MANIFEST = "jobset.yaml"
REPLICATED = "hosts"  # the name of the JobSet's one kind of job
PORT = 8476
FAILED = (1, 2, 3, 130)  # a traceback, bad input, a loss that is not finite, Ctrl-C: again would be the same
_CONFIG_MAP_BYTES = 2**20
# The table's chip -> how GKE labels its nodes, and where the label of a slice's shape is.
NODES = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Gke:
    """Settings of a cluster and of a job on it.

    Attributes:
      topology: `v5e:4x8`, `v5e:16x16*2` for two slices, `h100:16`: what the node pools are made of.
      context: of kubectl, such as `gke_PROJECT_ZONE_CLUSTER`; never the one that happens to be current.
      namespace: of Kubernetes.
      image: with this package installed, and the `adalink` command on its PATH.
      accelerator: value of the nodes' accelerator label; None for the chip's usual one.
      spot: tolerate and choose Spot nodes.
      queue: a queue of Kueue; None where there is none.
      service_account: of Kubernetes, one that may use the buckets; None for the namespace's.
      max_restarts: how often the job is started again.
      grace_seconds: that it has to save after SIGTERM; a Spot node leaves less.
    """

    topology: str
    context: str
    image: str
    namespace: str = "default"
    accelerator: str | None = None
    spot: bool = False
    queue: str | None = None
    service_account: str | None = None
    max_restarts: int = 10
    grace_seconds: int = 120


def render(job: Job, settings: Gke, staged: dict[str, str]) -> Rendered:
    """The manifest of a job.

    Raises:
      UserError: for CPUs, a MODEL_DIR that is no bucket's, names that get too long, files that are too large or lie elsewhere.
    """
    topology = job.topology
    if topology.accelerator is None:
        raise UserError(f"TOPOLOGY is {topology.text!r}, but must have TPUs or GPUs, such as 'v5e:4x8' or 'h100:8'.")
    shared_model_dir(job, "as the disk of a pod is gone with it")
    _check_files(staged)
    hosts = topology.hosts // topology.num_slices
    last = f"{job.name}-{REPLICATED}-{topology.num_slices - 1}-{hosts - 1}"
    check_label(job.name, f"{last}-xxxxx")  # a pod's name has five letters more
    check_processes(job, topology.hosts)
    tpu = topology.platform == "tpu"
    # GPU hosts find each other by the name that a JobSet gives its first pod; TPU hosts are told by GKE.
    meeting = () if tpu else (
        f"--coordinator_address={job.name}-{REPLICATED}-0-0.{job.name}:{PORT}",
        f"--process_count={hosts}",
        "--process_index=$(JOB_COMPLETION_INDEX)",
    )  # fmt: skip
    words = [word if word in meeting else word.replace("$(", "$$(") for word in job.words(topology.hosts, *meeting)]
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
        "failed": FAILED,
        "staged": {f"file-{i}": (name, staged[name]) for i, name in enumerate(sorted(staged))},
    }
    kubectl = ("kubectl", f"--context={settings.context}", f"--namespace={settings.namespace}")
    path = os.path.join(job.folder, MANIFEST)
    selector = f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}"
    return Rendered(
        files={MANIFEST: job_templates.fill("gke.yaml.jinja", **values)},
        main=MANIFEST,
        submit=(*kubectl, "create", f"--filename={path}"),
        status=((*kubectl, "get", "jobsets,pods", selector, "--output=wide"), (*kubectl, "get", "jobset", job.name)),
        logs=(*kubectl, "logs", selector, "--prefix", "--tail=1000", f"--max-log-requests={topology.hosts}"),
        cancel=(*kubectl, "delete", f"--filename={path}", "--ignore-not-found"),
        resume=f"The cluster itself starts the job again, up to {settings.max_restarts} times. After another end, `adalink launch cancel "
        f"{job.name}` and the same launch command go on from the newest checkpoint in MODEL_DIR.",
    )


def _check_files(staged: dict[str, str]) -> None:
    for name in staged:
        if os.path.isabs(name):
            raise UserError(
                f"{name} must lie under the current folder, to be found in the pods by the same name; copy it here."
            )
    if sum(map(len, staged.values())) > _CONFIG_MAP_BYTES // 2:
        raise UserError(
            "The job's own gin files and modules are too large for a ConfigMap (1 MiB); put them into the image."
        )
