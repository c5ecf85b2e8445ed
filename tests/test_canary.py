"""`adalink launch --canary`: ten steps on one host, and the whole job only if they succeed. The scripts run, with fakes of the clusters' programs."""

import json
import os
import pathlib
import re
import signal

import pytest
from launch_cases import CLUSTER, PROJECT, TRAIN, fake, topology
from shell_payloads import with_fakes

from adalink_jax.cli.main import main
from adalink_jax.launching import control
from adalink_jax.parallel.accelerators import parse_topology

NAME = r"digits-reverse-canary-\d{4}-\d{6}"
ONE_SENTENCE = (
    r"The canary {} {}, so digits-reverse was not submitted; `adalink launch logs runs/launch/{}` prints its output.\n"
)
LAUNCHERS = {
    "tpu": [topology("v5e:4x8"), *PROJECT],
    "slurm": [topology("h100:16")],
    "gke": [topology("v5e:4x8"), *CLUSTER],
}


@pytest.fixture
def cluster(place, monkeypatch):
    """Fakes that run the scripts; `adalink` is one too: in a canary it ends with the status in the file `status`, if there is one."""
    (place / "cluster").mkdir()
    for name, value in with_fakes(place / "cluster").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(control, "WAIT_SECONDS", 0.01)
    fakes, status = place / "cluster" / "fakes", place / "status"
    for path in ("gcloud", "kubectl", "sbatch", "squeue", "sacct", "scancel"):
        (place / "fakes" / path).unlink()
    fake(fakes, "adalink", f'case "$*" in *canary_*) [ ! -e {status} ] || exit "$(cat {status})" ;; esac')
    # A job runs at once, and is PENDING when it is first asked for.
    fake(fakes, "sbatch", f"""
script="${{@: -1}}" id=$(($(ls {place} | grep -c '^slurm_') + 1))
SLURM_JOB_ID=$id bash "$script" >/dev/null 2>&1 && echo COMPLETED >{place}/slurm_$id || echo FAILED >{place}/slurm_$id
echo $id""")  # fmt: skip
    fake(fakes, "squeue", f"""
job=$(grep --only-matching -- '--jobs=[0-9]*' <<<"$*")
file={place}/slurm_${{job#--jobs=}}
if [ -e "$file.asked" ]; then cat "$file"; else touch "$file.asked"; echo PENDING; fi""")  # fmt: skip
    kubectl = f"""
case "$*" in
  *" create "*) ;;
  *jsonpath*) [ -e {place}/asked ] && {{ [ -e {status} ] && echo "$5 Failed" || echo "$5 StartupPolicyCompleted Completed"; }} || echo "$5 "
    touch {place}/asked ;;
esac"""
    fake(fakes, "kubectl", kubectl)
    return fakes


def submissions(cluster, launcher: str) -> list[str]:
    """The names of the jobs that were submitted, in order."""
    if launcher == "tpu":
        calls = (cluster.parent / "calls").read_text().split("\0")
        return [calls[i + 1] for i, word in enumerate(calls) if word == "create"]
    calls = (cluster / {"slurm": "sbatch.calls", "gke": "kubectl.calls"}[launcher]).read_text()
    return re.findall(r"runs/launch/([\w-]+)/(?:job\.sbatch|jobset\.yaml)", calls)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_canary_that_succeeds_is_followed_by_the_job(cluster, capfd, launcher):
    assert main(["launch", launcher, *LAUNCHERS[launcher], "--canary", "--submit", "--no_plan", "--", *TRAIN]) == 0
    first, then = submissions(cluster, launcher)
    assert re.fullmatch(NAME, first) and then == "digits-reverse"
    shown = capfd.readouterr()
    assert f"The canary {first} succeeded.\n" in shown.out and not shown.err
    if launcher == "gke":
        assert f"{first}: submitted\n{first}: StartupPolicyCompleted Completed\n" in shown.out
        return  # nothing here runs a pod
    ran = (cluster / "adalink.calls").read_text().splitlines()
    host, whole = ran if launcher == "tpu" else (ran[0], ran[-1])
    assert "/canary_" in host and "--gin.TRAIN_STEPS=10" in host and "canary" not in whole
    assert ("--multiprocess" in whole) and ("--multiprocess" in host) == (launcher == "slurm")  # of a node's eight GPUs


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_of_a_canary_that_fails_the_job_is_not_submitted(place, cluster, capfd, launcher):
    (place / "status").write_text("3")
    status = main(["launch", launcher, *LAUNCHERS[launcher], "--canary", "--submit", "--no_plan", "--", *TRAIN])
    (name,) = submissions(cluster, launcher)
    ended = {"tpu": "ended with status 3", "slurm": "ended as FAILED", "gke": "ended as Failed"}[launcher]
    assert status == (3 if launcher == "tpu" else 1)
    assert re.fullmatch(ONE_SENTENCE.format(NAME, ended, NAME), capfd.readouterr().err) and re.fullmatch(NAME, name)
    (folder,) = pathlib.Path("runs/launch").glob("*-canary-*")
    assert json.loads((folder / "job.json").read_text(encoding="utf-8"))["submitted"]
    assert not json.loads(pathlib.Path("runs/launch/digits-reverse/job.json").read_text(encoding="utf-8"))["submitted"]


def test_a_canary_that_cannot_be_submitted_or_asked_for_ends_in_one_sentence(place, cluster, capfd):
    options = ["launch", "slurm", *LAUNCHERS["slurm"], "--canary", "--submit", "--no_plan", "--", *TRAIN]
    fake(cluster, "squeue", "echo 'no connection' >&2; exit 1")
    fake(cluster, "sacct", "echo 'no database' >&2; exit 1")
    assert main(options) == 2
    err = capfd.readouterr().err
    assert "is not known (squeue: no connection; sacct: no database)" in err and err.count("\n") == 1
    assert len(submissions(cluster, "slurm")) == 1
    assert (
        "`adalink launch cancel runs/launch/digits-reverse-canary-" in err and "digits-reverse was not submitted" in err
    )
    fake(cluster, "sbatch", "exit 4")
    for path in pathlib.Path("runs/launch").glob("*-canary-*/job.json"):
        path.unlink()  # two canaries in one second
    assert main(options) == 4
    assert capfd.readouterr().err.endswith("could not be submitted (status 4), so digits-reverse was not submitted.\n")


def test_a_canary_outlives_a_pause_of_its_scheduler(place, cluster, capfd):
    fake(cluster, "sacct", "exit 1")
    fake(cluster, "squeue", f"echo >>{place}/looks; [ $(wc -l <{place}/looks) -gt 20 ] && echo COMPLETED")
    assert main(["launch", "slurm", *LAUNCHERS["slurm"], "--canary", "--submit", "--no_plan", "--", *TRAIN]) == 0
    assert len(submissions(cluster, "slurm")) == 2
    assert capfd.readouterr().out.count("It is asked for again.") == 1


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_while_the_slice_of_a_canary_is_deleted_submits_nothing_more(place, cluster, capfd, number, status):
    (cluster / "gcloud").rename(cluster / "cloud")
    signalled = f'case "$*" in *delete*canary*) kill -{int(number)} {os.getpid()}; /bin/sleep 0.5 ;; esac'
    fake(cluster, "gcloud", f'{signalled}\nexec "{cluster}/cloud" "$@"')
    options = ["launch", "tpu", *LAUNCHERS["tpu"], "--canary", "--submit", "--no_plan", "--", *TRAIN]
    assert main(options) == status
    calls = (cluster.parent / "calls").read_text().split("\0")
    created = [calls[i + 1] for i, word in enumerate(calls) if word == "create"]
    assert len(created) == 1 and calls.count("delete") == 1
    assert re.fullmatch(rf"Stopped by {number.name}; {NAME} itself has succeeded.\n", capfd.readouterr().err)


def test_the_whole_job_is_planned_before_its_canary(place, cluster, capfd, monkeypatch):
    python = fake(
        cluster,
        "python",
        """case "$*" in *v5e:4x8*) echo '{"fits": true, "estimated_chip_hours": 1}' ;; *) echo 'error: no' >&2; exit 2 ;; esac""",
    )
    monkeypatch.setattr("sys.executable", str(cluster / "python"))
    assert main(["launch", "gke", *LAUNCHERS["gke"], "--canary", "--submit", "--", *TRAIN]) == 2
    first, then = python.read_text().splitlines()
    assert "--topology v5e:4x8" in first and "--topology v5e:2x2" in then and "--gin.TRAIN_STEPS=10" in then
    assert not submissions(cluster, "gke")
    assert capfd.readouterr().err.endswith("on one host, v5e:2x2; if the job needs several, leave --canary out.\n")


def changed(place, options: list[str], command: list[str]) -> dict[str, str]:
    """The bindings of the canary that is written, the last of each name."""
    assert main(["launch", *options, "--canary", "--", *command]) == 0
    (path,) = pathlib.Path("runs/launch").glob("*-canary-*/job.json")
    held = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    words = [word.removeprefix("--gin.") for word in held["arguments"] if word.startswith("--gin.")]
    return dict(word.split("=", 1) for word in words) | {"topology": held["topology"], "settings": held["settings"]}


@pytest.mark.parametrize("text, alone", [
    ("v5e:16x16*2", "v5e:2x2"), ("v5e:2x4", "v5e:2x4"), ("v5p:4x4x4", "v5p:2x2x1"), ("tpu7x:4x4x4", "tpu7x:2x2x1"), ("h100:16", "h100:8"),
])  # fmt: skip
def test_a_canary_is_ten_steps_on_one_host(place, capsys, text, alone):
    more = ["--gin.BATCH_SIZE=1024", "--gin.NUM_DEVICES=512", "--gin_file=gin/meshes/multislice.gin", "--gin.SLICES=2"]
    found = changed(place, ["gke", topology(text), *CLUSTER, "--gin.MAX_CHIP_HOURS=10000"], [*TRAIN, *more])
    assert found["topology"] == alone
    assert re.fullmatch(r"'gs://bucket/runs/digits_reverse/canary_\d{8}T\d{6}'", found["MODEL_DIR"])
    assert found["TRAIN_STEPS"] == "10" and found["SLICES"] == "1"
    assert int(found["NUM_DEVICES"]) == parse_topology(alone).devices
    hosts = parse_topology(text).hosts
    assert int(found["BATCH_SIZE"]) * hosts == 1024 and found["settings"]["max_chip_hours"] * hosts == 10000
    assert main(["launch", "gke", topology(text), *CLUSTER, "--canary", "--", "eval"]) == 2
    assert "--canary tries a `train` command" in capsys.readouterr().err


def test_the_cluster_keeps_a_canary_until_it_was_asked_for_its_end(place):
    options = ["gke", topology("v6e:2x4"), *CLUSTER]
    for given, kept in ((0, 1800), (7200, 7200)):
        assert changed(place, [*options, f"--gin.TTL_SECONDS={given}"], TRAIN)["settings"]["ttl_seconds"] == kept


def test_a_canary_divides_a_batch_of_a_gin_file(place):
    (place / "mine.gin").write_text("BATCH_SIZE = 256\nWARMUP_STEPS = 867\nTRAIN_STEPS = 17336\n")
    options = ["gke", topology("v5e:4x8"), *CLUSTER]
    found = changed(place, options, TRAIN)
    assert (found["BATCH_SIZE"], found["WARMUP_STEPS"], found["TRAIN_STEPS"]) == ("32", "5", "10")
    (place / "mine.gin").write_text("")
    assert (
        changed(place, options, TRAIN)["BATCH_SIZE"] == "16"
    )  # 128 of gin/tasks/digits.gin, which quickstart.gin includes
    (place / "mine.gin").write_text("ROWS = 64\nBATCH_SIZE = %ROWS\n")
    found = changed(place, options, TRAIN)
    assert found["ROWS"] == "8" and "BATCH_SIZE" not in found
    (place / "mine.gin").write_text("include 'more.gin'\ntasks.DatasetConfig:\n  batch_size = 24\n")
    assert changed(place, options, TRAIN)["DatasetConfig.batch_size"] == "3"
    assert changed(place, options, [*TRAIN, "--gin.DatasetConfig.batch_size=%BATCH_SIZE"])["BATCH_SIZE"] == "16"


def test_a_canary_of_slurm_is_one_node(place):
    options = ["slurm", topology("h100:12"), "--gin.GPUS_PER_NODE=4", "--gin.MAX_REQUEUES=0"]
    found = changed(place, options, [*TRAIN, "--gin.BATCH_SIZE=24"])
    assert found["topology"] == "h100:4" and found["BATCH_SIZE"] == "8"


def test_a_canary_of_gpu_hosts_needs_no_networks(place):
    options = ["gke", topology("h100:16"), *CLUSTER, "--gin.NETWORKS=('default', 'mine-1')"]
    assert changed(place, options, TRAIN)["settings"]["networks"] is None


@pytest.mark.parametrize("options, more, words", [
    (["gke", topology("v5e:4x8"), *CLUSTER], ["--gin.BATCH_SIZE=100"], "BATCH_SIZE = 100 does not divide over the job's 8 hosts"),
    (["gke", topology("v5e:4x8"), *CLUSTER], ["--gin.BATCH_SIZE=@foo()"], "no number of rows is bound to BATCH_SIZE; add --gin.BATCH_SIZE=N"),
    (["gke", topology("v5e:4x8"), *CLUSTER], ["--gin_file=gin/meshes/model_parallel.gin", "--gin.MODEL_DEVICES=8"],
     "one host, whose 4 devices make no mesh with MODEL_DEVICES = 8; leave --canary out"),
    (["gke", topology("v5e:4x8*2"), *CLUSTER], ["--gin.make_mesh.data=2", "--gin.make_mesh.slices=32"],
     "4 devices make no mesh with make_mesh.data = 2; leave --canary out"),
    (["tpu", topology("v5e:4x8"), *PROJECT, "--tpu", "x"], [], "--tpu=x has 8; leave one of them out"),
])  # fmt: skip
def test_what_a_canary_cannot_try_is_refused_in_one_sentence(place, capsys, options, more, words):
    assert main(["launch", *options, "--canary", "--", *TRAIN, *more]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err
    assert not os.path.exists("runs")
