"""How hosts of GPUs reach each other on GKE, by machine family: networks, libraries and devices of the host, and a daemon beside the job.

Source: the decorators of xpk (AI-Hypercomputer/xpk, commit 367c838, src/xpk/core/workload_decorators: tcpx, tcpxo, rdma), which
Google's own clusters use, and the names of networks in its blueprints. No cluster has run these. NCCL's own variables are the image's or
ENV's and SETUP's: on RDMA machines the host brings them (SETUP = ('source /usr/local/gib/scripts/set_nccl_env.sh',)).
"""

import dataclasses
import json
from typing import Any

_LIBRARIES = {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"}


@dataclasses.dataclass(frozen=True)
class Network:
    """What a pod of one machine family needs.

    Attributes:
      names: the cluster's networks, in the order of the pod's interfaces eth0, eth1, ...
      annotations: of the pod, besides its interfaces.
      host_paths: name of a volume -> folder of the host.
      mounts: name of a volume -> folder in the job's container.
      env: variables of the job's container.
      daemon: a container that starts before the job's and runs beside it, as in a manifest; None without one.
    """

    names: tuple[str, ...]
    annotations: dict[str, str]
    host_paths: dict[str, str]
    mounts: dict[str, str]
    env: dict[str, str]
    daemon: dict[str, Any] | None = None

    def with_interfaces(self, names: tuple[str, ...]) -> dict[str, str]:
        """The pod's annotations for networks of these names."""
        interfaces = [{"interfaceName": f"eth{i}", "network": name} for i, name in enumerate(names)]
        return self.annotations | {
            "networking.gke.io/default-interface": "eth0",
            "networking.gke.io/interfaces": json.dumps(interfaces),
        }


def _devices(*more: str) -> str:
    paths = [*(f"nvidia{i}" for i in range(8)), "nvidiactl", "nvidia-uvm", *more]
    return "".join(f"- path: /dev/{path}\n" for path in paths)


def _daemon(
    name: str, image: str, capabilities: list[str], mounts: dict[str, str], **command: list[str]
) -> dict[str, Any]:
    return {
        "name": name,
        "image": f"us-docker.pkg.dev/gce-ai-infra/{image}",
        "imagePullPolicy": "Always",
        "restartPolicy": "Always",  # an init container that restarts runs beside the job, and does not keep its pod alive
        **command,
        "securityContext": {"capabilities": {"add": capabilities}},
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in mounts.items()],
        "env": [{"name": name, "value": value} for name, value in _LIBRARIES.items()],
    }


_SYSTEM = {"sys": "/sys", "proc-sys": "/proc/sys"}
_SYSTEM_MOUNTS = {"sys": "/hostsysfs", "proc-sys": "/hostprocsysfs"}

# A3 High: GPUDirect-TCPX.
_TCPX = Network(
    names=("default", "vpc1", "vpc2", "vpc3", "vpc4"),
    annotations={"devices.gke.io/container.tcpx-daemon": _devices()},
    host_paths={"libraries": "/home/kubernetes/bin/nvidia/lib64", "tcpx-socket": "/run/tcpx", **_SYSTEM},
    mounts={"libraries": "/usr/local/nvidia/lib64", "tcpx-socket": "/tmp"},
    env=_LIBRARIES,
    daemon=_daemon(
        "tcpx-daemon",
        "gpudirect-tcpx/tcpgpudmarxd-dev:v2.0.11",
        ["NET_ADMIN"],
        {"libraries": "/usr/local/nvidia/lib64", "tcpx-socket": "/run/tcpx", **_SYSTEM_MOUNTS},
        command=[
            "/tcpgpudmarxd/build/app/tcpgpudmarxd", "--gpu_nic_preset", "a3vm", "--gpu_shmem_type", "fd", "--uds_path", "/run/tcpx",
            "--setup_param", '"--verbose 128 2 0 "',
        ],
    ),
)  # fmt: skip

# A3 Mega: GPUDirect-TCPXO.
_TCPXO = Network(
    names=("default", *(f"vpc{i}" for i in range(1, 9))),
    annotations={"devices.gke.io/container.tcpxo-daemon": _devices("dmabuf_import_helper")},
    host_paths={"libraries": "/home/kubernetes/bin/nvidia", "aperture-devices": "/dev/aperture_devices", **_SYSTEM},
    mounts={"libraries": "/usr/local/nvidia", "aperture-devices": "/dev/aperture_devices"},
    env={**_LIBRARIES, "NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY": "/dev/aperture_devices"},
    daemon=_daemon(
        "tcpxo-daemon",
        "gpudirect-tcpxo/tcpgpudmarxd-dev:v1.0.12",
        ["NET_ADMIN", "NET_BIND_SERVICE"],
        {"libraries": "/usr/local/nvidia", **_SYSTEM_MOUNTS},
        command=["/bin/sh", "-c"],
        args=[
            "set -ex\nchmod 755 /fts/entrypoint_rxdm_container.sh\n"
            "/fts/entrypoint_rxdm_container.sh --num_hops=2 --num_nics=8 --uid= --alsologtostderr"
        ],
    ),
)


def _rdma(nics: int) -> Network:
    """A3 Ultra, A4 and A4X: RDMA over Ethernet."""
    return Network(
        names=("default", "gvnic-1", *(f"rdma-{i}" for i in range(nics))),
        annotations={},
        host_paths={"libraries": "/home/kubernetes/bin/nvidia", "gib": "/home/kubernetes/bin/gib"},
        mounts={"libraries": "/usr/local/nvidia", "gib": "/usr/local/gib"},
        env=_LIBRARIES,
    )


# Value of the nodes' accelerator label -> its network. Other GPUs use the pod's usual network.
NETWORKS = {
    "nvidia-h100-80gb": _TCPX,
    "nvidia-h100-mega-80gb": _TCPXO,
    "nvidia-h200-141gb": _rdma(8),
    "nvidia-b200": _rdma(8),
    "nvidia-gb200": _rdma(4),
}
