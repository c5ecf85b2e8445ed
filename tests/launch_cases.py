"""Shared by the tests of launching: commands for each launcher, and fakes of the programs that submit."""

import os
import pathlib
import shlex
import stat

from adalink_jax.cli.main import main

TRAIN = [
    "train",
    "--gin_file=gin/runs/quickstart.gin",
    "--gin_file=mine.gin",
    "--gin.MODEL_DIR='gs://bucket/runs/digits_reverse'",
]
SWEEP = ["check-method", "my_method.Mine"]  # stands for a command that reads ADALINK_ARRAY_INDEX
PROJECT = ["--gin.PROJECT='my-project'", "--gin.ZONE='us-west4-a'", "--gin.WHEEL='wheel.whl'"]
CLUSTER = ["--gin.CONTEXT='gke_my-project_us-west4_my-cluster'", "--gin.IMAGE='registry/adalink:1'"]
topology = lambda text: f"--gin.TOPOLOGY={text!r}"

# Name of a golden file -> launcher, its options, the command.
CASES = {
    "slurm_two_nodes": ("slurm", [topology("h100:16"), "--gin.PARTITION='gpu'", "--gin.ACCOUNT='us'"], TRAIN),
    "slurm_container": (
        "slurm",
        [
            topology("a100:4"),
            "--gin.GPUS_PER_NODE=4",
            "--gin.CPUS_PER_PROCESS=8",
            "--gin.QOS='long'",
            "--gin.MODULES=('cuda/12.8',)",
            "--gin.SETUP=('source .venv/bin/activate',)",
            "--gin.CONTAINER_IMAGE='docker://registry#adalink:1'",
            "--gin.CONTAINER_MOUNTS=('/data:/data', '/scratch:/scratch')",
            "--gin.SBATCH=('--mem=0',)",
            "--gin.SECRETS={'WANDB_API_KEY': 'secrets/wandb'}",
            "--gin.MAX_CHIP_HOURS=84",
        ],
        TRAIN,
    ),
    "slurm_array": ("slurm", [topology("h100:8"), "--array", "4", "--name", "sweep"], SWEEP),
    "slurm_cpu": ("slurm", [topology("cpu:2")], TRAIN),
    "tpu_slice": ("tpu", [topology("v5e:4x8"), *PROJECT, "--gin.SPOT=True"], TRAIN),
    "tpu_two_slices": (
        "tpu",
        [
            topology("v4:2x2x4*2"),
            *PROJECT,
            "--gin.RESERVED=True",
            "--gin.CREATE_FLAGS=('--internal-ips',)",
            "--gin.MAX_CHIP_HOURS=100",
        ],
        TRAIN,
    ),
    "tpu_one_host": (
        "tpu",
        [topology("v5e:2x4"), *PROJECT, "--gin.CONSTRAINTS='versions.txt'", "--gin.SETUP=('date',)"],
        [*TRAIN[:3], "--gin.MODEL_DIR='runs/digits_reverse'"],
    ),
    "tpu_existing": (
        "tpu",
        [
            topology("v6e:4x4"),
            *PROJECT,
            "--tpu",
            "my-slice",
            "--gin.SSH_FLAGS=('--tunnel-through-iap',)",
            "--gin.EXTRAS=('hf',)",
            "--gin.SECRETS={'HF_TOKEN': 'hub'}",
        ],
        TRAIN,
    ),
    "tpu_per_host": ("tpu", [topology("v5e:4x4"), *PROJECT, "--per_host", "--array", "6", "--name", "sweep"], SWEEP),
    "gke_two_slices": ("gke", [topology("v5e:4x8*2"), *CLUSTER, "--gin.SPOT=True"], TRAIN),
    "gke_gpus": ("gke", [topology("h100:16"), *CLUSTER, "--gin.QUEUE='team'", "--gin.SERVICE_ACCOUNT='me'"], TRAIN),
    "gke_options": (
        "gke",
        [
            topology("tpu7x:2x2x2*2"),
            *CLUSTER,
            "--gin.NODE_SELECTOR={'cloud.google.com/gke-nodepool': 'mine'}",
            "--gin.PRIORITY='high'",
            "--gin.TTL_SECONDS=3600",
            "--gin.END_STATUSES=(2, 3)",
            "--gin.HOST_NETWORK=True",
            "--gin.STACK_TRACES=True",
            "--gin.SETUP=('echo $HOME $(date)',)",
            "--gin.ENV={'A': 'b'}",
            "--gin.SECRETS={'HF_TOKEN': 'hub/token'}",
            "--gin.MAX_CHIP_HOURS=176",
        ],
        TRAIN,
    ),
    "gke_a3_mega": (
        "gke",
        [topology("h100:16"), *CLUSTER, "--gin.ACCELERATOR='nvidia-h100-mega-80gb'"],
        TRAIN,
    ),
    "gke_one_host": ("gke", [topology("v6e:2x4"), *CLUSTER], TRAIN),
}

# Each accelerator that the other cases lack, on two hosts.
for chip, shape in (("v4", "2x2x2"), ("v5p", "2x2x2"), ("a100", "16"), ("h200", "16"), ("b200", "16"), ("gb200", "8")):
    CASES[f"gke_{chip}"] = ("gke", [topology(f"{chip}:{shape}"), *CLUSTER], TRAIN)
    if "x" not in shape:
        CASES[f"slurm_{chip}"] = ("slurm", [topology(f"{chip}:{shape}")], TRAIN)
CASES["tpu_v5p"] = ("tpu", [topology("v5p:2x2x2"), *PROJECT], TRAIN)

MINE = "import few.tasks\ninclude 'more.gin'\n\nTRAIN_STEPS = 20\n"
FILES = {
    "mine.gin": MINE,
    "more.gin": "DatasetConfig.mixture_or_task_module = 'other_tasks'\n",
    "few/__init__.py": "",
    "few/tasks.py": "import helper\nimport numpy\n",
    "helper.py": "VALUE = 1\n",
    "other_tasks.py": "",
    "unused.py": "",
    "wheel.whl": "",
    "versions.txt": "",
}
STAGED = {"mine.gin", "more.gin", "few/__init__.py", "few/tasks.py", "helper.py", "other_tasks.py"}


def make_files(folder: pathlib.Path) -> None:
    """The files of a user's own folder."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def fake(folder: pathlib.Path, name: str, body: str) -> pathlib.Path:
    """A program that appends its arguments to `FOLDER/NAME.calls` as a line, and then runs `body`, in Bash."""
    folder.mkdir(exist_ok=True)
    calls = folder / f"{name}.calls"
    calls.touch()
    program = folder / name
    program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >>{shlex.quote(str(calls))}\n{body}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return calls


def path_with(folder: pathlib.Path) -> str:
    """PATH with the fakes first."""
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def launch(case: str, *options: str) -> int:
    launcher, options_of_case, command = CASES[case]
    return main(["launch", launcher, *options_of_case, *options, "--", *command])


def folder_of(case: str) -> pathlib.Path:
    return pathlib.Path("runs/launch", "sweep" if CASES[case][2] is SWEEP else "digits-reverse")
