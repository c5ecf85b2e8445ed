"""Google Kubernetes Engine: one JobSet, with one Job per TPU slice (or one for all GPU hosts) and one pod per host.

All hosts start, end and restart together: if a pod ends with status 75 or its node is taken away, all pods are recreated and
resume from the newest checkpoint. An exit status that means that the program itself failed ends the JobSet.
The fields of the manifest are those of JobSet's v1alpha2 (kubernetes-sigs/jobset, api/jobset/v1alpha2) and of Kubernetes' Jobs and Pods;
tests/data/jobset_schema.json has them.
"""

import dataclasses
import os
from typing import Any

import gin

from adalink_jax.errors import UserError
from adalink_jax.launching import budget, job_templates
from adalink_jax.launching.alphabets import (
    Amount,
    CountOrZero,
    Env,
    Name,
    SecretKey,
    Status,
    Text,
    Variable,
    check_settings,
)
from adalink_jax.launching.gke_networks import NETWORKS, Network
from adalink_jax.launching.job import (
    Commands,
    Job,
    Rendered,
    check_label,
    check_processes,
    check_shared_model_dir,
    check_under_current_folder,
)
from adalink_jax.launching.variables import GPU_MEMORY, STACK_TRACES, check_variables
from adalink_jax.parallel.accelerators import Topology

MANIFEST = "jobset.yaml"
REPLICATED = "hosts"  # name of the JobSet's one replicated job
PORT = 8476
TRACES = "/stack_traces"  # folder of the job's stack traces
_STATE = '{.metadata.name} {.status.conditions[?(@.status=="True")].type}'  # prints the name even without conditions
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
      node_selector: more labels that the nodes must have.
      queue: Kueue queue; None without Kueue.
      priority: Kubernetes priority class; None for the cluster's default.
      ttl_seconds: seconds after its end at which the cluster deletes the job, and its logs; None keeps it.
      service_account: Kubernetes service account with access to the buckets; None for the namespace's default.
      max_restarts: the most restarts of the job.
      end_statuses: exit statuses that end the job; others restart it.
      host_network: use the hosts' network, which is faster between TPU slices.
      networks: names of the cluster's networks for GPU hosts, in the order of the interfaces; None for those that Google documents for the
        machine, () for the pods' usual network.
      stack_traces: print the job's stack traces every five minutes, in a container `stack-traces` beside it.
      setup: shell lines before the command.
      grace_seconds: seconds to save after SIGTERM; a Spot node grants less.
      env: environment variables of the processes.
      secrets: variable -> SECRET/KEY, a secret of Kubernetes in the namespace.
      max_chip_hours, price: see `budget.Priced`.

    Raises:
      UserError: for other values.
    """

    topology: str
    context: Name
    image: Name
    namespace: Name = "default"
    accelerator: Name | None = None
    spot: bool = False
    node_selector: dict[Name, Text] = dataclasses.field(default_factory=dict)
    queue: Name | None = None
    priority: Name | None = None
    ttl_seconds: CountOrZero | None = None
    service_account: Name | None = None
    max_restarts: CountOrZero = 10
    # A traceback, bad input, a loss that is not finite, Ctrl-C: a restart would not help.
    end_statuses: tuple[Status, ...] = (1, 2, 3, 130)
    host_network: bool = False
    networks: tuple[Name, ...] | None = None
    stack_traces: bool = False
    setup: tuple[Text, ...] = ()
    grace_seconds: CountOrZero = 120
    env: Env = dataclasses.field(default_factory=dict)
    secrets: dict[Variable, SecretKey] = dataclasses.field(default_factory=dict)
    max_chip_hours: Amount | None = None
    price: Amount | None = None

    def __post_init__(self):
        check_settings(self)
        check_variables("gke", self.env, self.secrets)
        if 75 in self.end_statuses:
            raise UserError("END_STATUSES has 75, with which a job ends that was stopped and has saved; leave it out.")


def render(job: Job, settings: Gke, staged: dict[str, str]) -> Rendered:
    """Renders the manifest of a job.

    Args:
      job: what runs.
      settings: of the cluster.
      staged: path -> text of the job's own files, which a ConfigMap holds.

    Raises:
      UserError: for CPUs, a MODEL_DIR outside a bucket, a name that is too long, files that are too large or outside the current folder,
        and HOST_NETWORK with the GPU hosts' own networks.
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
    words = job_templates.after_setup(settings.setup, job.words(topology.hosts, *coordination))
    words = [word if word in coordination else literal(word) for word in words]
    accelerator = settings.accelerator or NODES[topology.accelerator.name]
    names, network = _networks(settings, accelerator, topology.hosts)
    variables = ({} if tpu else GPU_MEMORY) | (network.env if network else {}) | settings.env
    if settings.stack_traces:
        variables |= {STACK_TRACES: f"{TRACES}/stacks.txt"}
    resource = "google.com/tpu" if tpu else "nvidia.com/gpu"
    values = {
        "job": job,
        "settings": settings,
        "replicated": REPLICATED,
        "slices": topology.num_slices,
        "hosts": hosts,
        "resource": resource,
        "seconds": budget.attempt_seconds(job, settings, 1 + settings.max_restarts),
        "chips": topology.chips_per_host,
        "tpu": tpu,
        "annotations": list(network.with_interfaces(names).items()) if network else [],
        "nodes": _nodes(topology, settings, accelerator),
        "tolerations": _tolerations(topology, settings, resource, network),
        "beside": _beside(settings, network),
        "words": words,
        "env": [(name, literal(text)) for name, text in variables.items()],
        "secrets": [(name, *reference.split("/")) for name, reference in settings.secrets.items()],
        "host_paths": list(network.host_paths.items()) if network else [],
        "mounts": list(network.mounts.items()) if network else [],
        "traces": TRACES if settings.stack_traces else None,
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
        logs=(
            *kubectl,
            "logs",
            selector,
            "--container=adalink",
            "--prefix",
            "--tail=1000",
            f"--max-log-requests={topology.hosts}",
        ),
        cancel=(*kubectl, "delete", f"jobset/{name}", f"configmap/{name}", "--ignore-not-found"),
        state=((*kubectl, "get", "jobset", name, f"--output=jsonpath={_STATE}"),),
        ends={"Completed": True, "Failed": False},
    )


def _networks(settings: Gke, accelerator: str, hosts: int) -> tuple[tuple[str, ...], Network | None]:
    """The networks of hosts of GPUs, which one host does not need."""
    network = NETWORKS.get(accelerator) if hosts > 1 else None
    names = network.names if network and settings.networks is None else settings.networks or ()
    if not network or not names:
        if names:
            raise UserError(f"NETWORKS is set, but {hosts} hosts with {accelerator} have no networks of their own.")
        return (), None
    if settings.host_network:
        raise UserError(f"HOST_NETWORK excludes the networks of {accelerator}; leave it out, or set NETWORKS = ().")
    return names, network


def _nodes(topology: Topology, settings: Gke, accelerator: str) -> list[tuple[str, str]]:
    """The labels of the nodes that may run the job."""
    if topology.platform == "tpu":
        labels = {"gke-tpu-accelerator": accelerator, "gke-tpu-topology": topology.shape}
    else:
        labels = {"gke-accelerator": accelerator}
    labels |= {"gke-spot": "true"} if settings.spot else {}
    return [*((f"cloud.google.com/{name}", value) for name, value in labels.items()), *settings.node_selector.items()]


def _tolerations(topology: Topology, settings: Gke, resource: str, network: Network | None) -> list[dict[str, str]]:
    equal = lambda key, value: {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
    out = [{"key": resource, "operator": "Exists"}]
    if settings.spot:
        out.append(equal("cloud.google.com/gke-spot", "true"))
    if network:
        out.append(equal("user-workload", "true"))
    if topology.accelerator and topology.accelerator.name == "gb200":  # its hosts have Arm processors
        out.append(equal("kubernetes.io/arch", "arm64"))
    return out


def _beside(settings: Gke, network: Network | None) -> list[dict[str, Any]]:
    """Containers that run beside the job, as in a manifest; since they restart, they do not keep a pod alive."""
    out = [network.daemon] if network and network.daemon else []
    if settings.stack_traces:
        out.append({
            "name": "stack-traces",
            "image": settings.image,
            "restartPolicy": "Always",
            "command": ["tail", "--follow=name", "--retry", "--lines=+1", f"{TRACES}/stacks.txt"],
            "volumeMounts": [{"name": "stack-traces", "mountPath": TRACES}],
        })  # fmt: skip
    return out


def _kubectl(settings: Gke) -> tuple[str, ...]:
    return ("kubectl", f"--context={settings.context}", f"--namespace={settings.namespace}")
