"""Scripts for Cloud TPU run with a fake gcloud, which records its calls and fails where a test wants it to."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time

import psutil
import pytest
from launch_cases import fake, folder_of, launch

from adalink_jax.cli.main import main
from adalink_jax.launching import tpu
from adalink_jax.launching.tpu import SAVE_SECONDS

GCLOUD = """
case "$*" in
  *"$FAKE_HANGS"*) while true; do /bin/sleep 0.05; done ;;
  *" list "*) printf '%s' "$FAKE_LIST" ;;
  *" describe "*) [ -z "$FAKE_STATES" ] || { head -n 1 "$FAKE_STATES"; [ "$(wc -l <"$FAKE_STATES")" -le 1 ] || sed -i 1d "$FAKE_STATES"; } ;;
  *"worker.sh $FAKE_LONG"*) [ -z "$FAKE_WAIT" ] || while [ ! -e "$FAKE_WAIT" ]; do /bin/sleep 0.05; done ;;
  *"$FAKE_ENDS"*) [ -z "$FAKE_WAIT" ] || touch "$FAKE_WAIT" ;;
esac
for pattern in $FAKE_FAIL; do
  case "$*" in *${pattern%%:*}*) exit "${pattern##*:}" ;; esac
done
"""


class Script:
    """A rendered script with fakes; `calls` are those of gcloud, without the arguments that all share."""

    def __init__(self, place, case, fail="", listed="", states=("PROVISIONING", "ACTIVE"), options=()):
        assert launch(case, *options) == 0
        self.path = folder_of(case) / "job.sh"
        self._calls = fake(place / "fakes", "gcloud", GCLOUD)
        fake(place / "fakes", "sleep", "")
        (place / "states").write_text("".join(f"{state}\n" for state in states))
        self.env = os.environ | {
            "FAKE_FAIL": fail, "FAKE_LIST": listed, "FAKE_STATES": str(place / "states"), "FAKE_WAIT": "", "FAKE_LONG": "watch",
            "FAKE_ENDS": "worker.sh stop", "FAKE_HANGS": "nothing",
        }  # fmt: skip

    def run(self):
        return subprocess.run(["bash", self.path], env=self.env, capture_output=True, text=True, timeout=60)

    @property
    def calls(self) -> list[str]:
        where = " --project=my-project --zone=us-west4-a"
        return [text.removeprefix("compute tpus ").replace(where, "") for text in self._calls.read_text().splitlines()]

    @property
    def verbs(self) -> list[str]:
        """Each call as one word: `create`, `scp`, `run`."""
        word = lambda text: next(
            (w for w in ("install", "start", "watch", "status", "stop", "mkdir") if re.search(rf"ssh.*{w}", text)),
            text.split()[1],
        )
        return [word(text) for text in self.calls]


WHOLE = ["list", "create", "describe", "describe", "mkdir", "scp", "install", "start", "watch", "delete"]


def test_a_slice_is_created_used_and_deleted(place):
    script = Script(place, "tpu_slice")
    done = script.run()
    assert done.returncode == 0, done.stderr
    every = "--node=all --worker=all --batch-size=8"
    assert script.calls == [
        "queued-resources list --format=value(name.basename())",
        "queued-resources create digits-reverse --accelerator-type=v5litepod-32 --runtime-version=v2-alpha-tpuv5-lite "
        "--node-id=digits-reverse --spot",
        "queued-resources describe digits-reverse --format=value(state.state)",
        "queued-resources describe digits-reverse --format=value(state.state)",
        f"queued-resources ssh digits-reverse {every} --command=rm -f adalink/digits-reverse/pid adalink/digits-reverse/keeper && mkdir -p adalink/digits-reverse",
        f"queued-resources scp --recurse {every} wheel.whl runs/launch/digits-reverse/worker.sh "
        "runs/launch/digits-reverse/files/few runs/launch/digits-reverse/files/helper.py runs/launch/digits-reverse/files/mine.gin "
        "runs/launch/digits-reverse/files/more.gin runs/launch/digits-reverse/files/other_tasks.py digits-reverse:adalink/digits-reverse/",
        f"queued-resources ssh digits-reverse {every} --command=bash adalink/digits-reverse/worker.sh install",
        f"queued-resources ssh digits-reverse {every} --command=bash adalink/digits-reverse/worker.sh start",
        f"queued-resources ssh digits-reverse {every} --command=bash adalink/digits-reverse/worker.sh watch +1",
        "queued-resources delete digits-reverse --force --quiet",
    ]
    assert script.verbs == WHOLE


@pytest.mark.parametrize("fail, verbs, status", [
    (" create :1", ["list", "create", "delete"], 1),
    (" scp :4", [*WHOLE[:6], "delete"], 4),
    ("install:5", [*WHOLE[:7], "delete"], 5),
    ("bash*start:6", [*WHOLE[:8], "describe", "delete"], 6),
    ("bash*watch:3", [*WHOLE[:9], "status", "describe", "delete"], 3),
    ("bash*watch:75", [*WHOLE[:9], "status", "describe", "delete"], 75),
    ("mkdir:1", [*WHOLE[:4], *["mkdir"] * 5, "delete"], 1),
])  # fmt: skip
def test_a_failure_at_any_point_leaves_nothing_running(place, fail, verbs, status):
    script = Script(place, "tpu_slice", fail.strip().replace(" ", ""))
    done = script.run()
    assert (done.returncode, script.verbs) == (status, verbs), done.stderr


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_slice_that_never_becomes_active_is_deleted(place, state):
    script = Script(place, "tpu_slice", states=("WAITING_FOR_RESOURCES", state))
    assert script.run().returncode == 1
    assert script.verbs == ["list", "create", "describe", "describe", "delete"]


def test_a_slice_that_was_taken_away_gives_status_75(place):
    script = Script(place, "tpu_slice", "bash*watch:255 status:255", states=("ACTIVE", "SUSPENDED"))
    assert script.run().returncode == 75
    assert script.verbs[-4:] == ["status", "describe", "describe", "delete"]


def test_a_failed_deletion_prints_the_command(place):
    script = Script(place, "tpu_slice", "delete:1")
    done = script.run()
    assert done.returncode == 1
    command = "gcloud compute tpus queued-resources delete digits-reverse --project=my-project --zone=us-west4-a --force --quiet"
    assert command in done.stderr.splitlines()[-1]


def test_a_name_that_is_taken_is_refused(place):
    script = Script(place, "tpu_slice", listed="other\ndigits-reverse")
    done = script.run()
    assert done.returncode == 2 and "exists already" in done.stderr
    assert script.verbs == ["list"]


@pytest.mark.parametrize("fail", ["", "scp:4", "install:5", "bash*watch:3", "mkdir:1"])
def test_a_slice_that_existed_before_is_never_deleted(place, fail):
    script = Script(place, "tpu_existing", fail)
    assert script.run().returncode == int(fail.partition(":")[2] or 0)
    assert not [text for text in script.calls if "delete" in text or "create" in text or "queued" in text]
    assert all(
        text.startswith("tpu-vm ") and "my-slice" in text and "--tunnel-through-iap" in text for text in script.calls
    )


def test_if_the_job_cannot_be_stopped_on_an_existing_slice_the_command_is_printed(place):
    script = Script(place, "tpu_existing", "bash*watch:255 stop:1")
    done = script.run()
    assert done.returncode == 255
    assert "--command='bash adalink/digits-reverse/worker.sh stop'" in done.stderr.splitlines()[-1]


def test_a_local_model_dir_is_copied_to_the_host_and_back(place):
    (place / "runs" / "digits_reverse").mkdir(parents=True)
    script = Script(place, "tpu_one_host", "bash*watch:75")
    assert script.run().returncode == 75
    copies = [text for text in script.calls if " scp " in text]
    assert copies[0].split()[6:8] == ["wheel.whl", "versions.txt"]
    assert copies[1].endswith(" runs/digits_reverse digits-reverse:adalink/digits-reverse/runs/")
    assert copies[2].endswith("--worker=0 digits-reverse:adalink/digits-reverse/runs/digits_reverse runs/")
    assert script.verbs[-3:] == ["scp", "describe", "delete"]


def test_a_copy_that_hangs_keeps_no_slice(place, monkeypatch):
    monkeypatch.setattr(tpu, "COPY_SECONDS", 1)
    script = Script(place, "tpu_one_host")
    script.env["FAKE_HANGS"] = "--worker=0"
    done = script.run()
    assert "MODEL_DIR was not fetched from worker 0, or not all of it." in done.stderr
    assert script.verbs[-3:] == ["watch", "scp", "delete"]


def test_a_notice_lets_the_job_save_and_deletes_the_slice(place):
    script = Script(place, "tpu_slice", "bash*watch:75")
    script.env["FAKE_WAIT"] = str(place / "stopped")
    process = subprocess.Popen(
        ["bash", script.path], env=script.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while "watch" not in script.verbs:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert script.verbs == [*WHOLE[:9], "stop", "status", "describe", "delete"]


# --- MAX_CHIP_HOURS ---

SLEEP = """
[ "$1" -lt 120 ] || while [ ! -e "$FAKE_SLEPT/$1" ]; do /bin/sleep 0.02; done
"""


class Limited:
    """A script with a time limit that runs in the background; `pass_time` lets a `sleep` of it end."""

    def __init__(self, place, case, fail="", ends="worker.sh stop", long="watch", hangs="nothing"):
        self.script = Script(place, case, fail, options=("--gin.MAX_CHIP_HOURS=100",))
        fake(place / "fakes", "sleep", SLEEP)
        self.script.env |= {
            "FAKE_WAIT": str(place / "ended"),
            "FAKE_SLEPT": str(place),
            "FAKE_ENDS": ends,
            "FAKE_LONG": long,
            "FAKE_HANGS": hangs,
        }
        self.place, self.log = place, place / "log"
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(["bash", self.script.path], env=self.script.env, stdout=log, stderr=log)
        self.wait_for(lambda: long in self.script.verbs)

    def wait_for(self, condition):
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def pass_time(self, seconds: int):
        (self.place / str(seconds)).touch()

    def end(self) -> int:
        """The script's status, when it and all that it started have ended."""
        status = self.process.wait(30)
        self.wait_for(lambda: not self.left())
        return status

    def left(self) -> list[str]:
        """What still runs in the folder of this test, whose current folder it is too."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.cwd() == str(self.place):
                    found.append(" ".join(process.cmdline()))
        return found


def test_the_budget_s_end_stops_the_job_which_saves_and_deletes_the_slice(place):
    limited = Limited(place, "tpu_slice", "bash*watch:75")
    limited.pass_time(100 * 3600 // 32 - SAVE_SECONDS)
    assert limited.end() == 75
    assert limited.script.verbs == [*WHOLE[:9], "stop", "status", "describe", "delete"]
    text = limited.log.read_text()
    assert "MAX_CHIP_HOURS ends in 120 seconds: the job on digits-reverse is stopped, and saves." in text
    assert "MAX_CHIP_HOURS has ended" not in text


@pytest.mark.parametrize("long", ["watch", "install"])
def test_the_budget_s_end_deletes_the_slice_of_a_job_that_hangs(place, long):
    """It reacts to no signal, and neither does the connection, until the slice is gone."""
    limited = Limited(place, "tpu_slice", ends=" delete ", long=long)
    limited.pass_time(100 * 3600 // 32 - SAVE_SECONDS)
    if long == "watch":
        limited.wait_for(lambda: "stop" in limited.script.verbs)
        assert limited.process.poll() is None
        limited.pass_time(SAVE_SECONDS)
    assert limited.end() == 143
    assert limited.script.verbs[-2:] == (["describe", "delete"] if long == "watch" else ["install", "delete"])
    assert ("has not: digits-reverse is deleted" in limited.log.read_text()) == (long == "watch")


def test_the_budget_s_end_keeps_a_slice_that_existed_before(place):
    limited = Limited(place, "tpu_existing", "bash*watch:75")
    limited.pass_time(100 * 3600 // 16 - SAVE_SECONDS)
    assert limited.end() == 75
    assert "the job on my-slice is stopped, and saves" in limited.log.read_text()
    assert "stop" in limited.script.verbs and not [text for text in limited.script.calls if "delete" in text]


def test_the_budget_s_end_leaves_a_connection_that_hangs(place):
    """Nothing deletes the slice that it is to."""
    limited = Limited(place, "tpu_existing", ends="nothing", long="install")
    limited.pass_time(100 * 3600 // 16 - SAVE_SECONDS)
    assert limited.end() == 143 and limited.script.verbs[-1] == "install"


def test_a_job_that_saves_when_its_budget_ends_saves_on(place):
    """The user has stopped it just before."""
    limited = Limited(place, "tpu_slice", "bash*watch:75", ends="nothing")
    limited.process.send_signal(signal.SIGTERM)
    limited.wait_for(lambda: "stop" in limited.script.verbs)
    limited.pass_time(100 * 3600 // 32 - SAVE_SECONDS)
    limited.wait_for(lambda: "MAX_CHIP_HOURS ends" in limited.log.read_text())
    time.sleep(0.3)
    assert limited.process.poll() is None
    (place / "ended").touch()
    assert limited.end() == 75
    assert limited.script.verbs == [*WHOLE[:9], "stop", "status", "describe", "delete"]


def test_a_stop_that_hangs_ends_with_the_command(place, monkeypatch):
    monkeypatch.setattr(tpu, "STOP_SECONDS", 1)
    limited = Limited(place, "tpu_existing", hangs="worker.sh stop")
    limited.process.send_signal(signal.SIGTERM)
    limited.wait_for(lambda: "stop" in limited.script.verbs)
    limited.process.send_signal(signal.SIGTERM)
    assert limited.end() == 143
    assert limited.script.verbs[-2:] == ["stop", "stop"]
    assert "--command='bash adalink/digits-reverse/worker.sh stop'" in limited.log.read_text().splitlines()[-1]


def test_a_job_that_ends_before_its_budget_leaves_no_timer(place):
    limited = Limited(place, "tpu_slice")
    (place / "ended").touch()
    assert limited.end() == 0
    assert limited.script.verbs == WHOLE and "MAX_CHIP_HOURS" not in limited.log.read_text()


def test_a_lost_connection_is_tried_again_while_the_job_runs_on(place):
    """The first connection breaks while a host runs; the slice is kept, and the second follows the job to its end."""
    script = Script(place, "tpu_slice")
    once = 'case "$*" in *"watch +1"* | *"[ -f"*) exit 255 ;; esac\n'
    script._calls = fake(place / "fakes", "gcloud", once + GCLOUD)
    done = script.run()
    assert done.returncode == 0 and "was lost, and is tried again" in done.stderr
    assert script.verbs == [*WHOLE[:9], "status", "describe", "watch", "delete"]
    assert script.calls[-2].endswith("worker.sh watch 10")


def test_a_job_outlives_the_connection_that_starts_it(place):
    assert launch("tpu_existing") == 0
    host = place / "host"
    (host / ".venv" / "bin").mkdir(parents=True)
    worker = shutil.copy(folder_of("tpu_existing") / "worker.sh", host / "worker.sh")
    fake(place / "fakes", "gcloud", "echo a secret")
    fake(host / ".venv" / "bin", "adalink", 'sleep 1; echo "step 1, $HF_TOKEN"; exit 75')
    subprocess.run(["bash", worker, "start"], check=True, timeout=20)  # its session ends at once
    assert not (host / "status").exists()
    for lines in ("+1", "10"):
        done = subprocess.run(["bash", worker, "watch", lines], capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stdout) == (75, "step 1, a secret\n")
    subprocess.run(["bash", worker, "start"], check=True, timeout=20)
    while not (host / "pid").exists():
        time.sleep(0.05)
    os.killpg(int((host / "keeper").read_text()), signal.SIGKILL)  # as if the host had started again
    assert subprocess.run(["bash", worker, "watch", "10"], capture_output=True, timeout=20).returncode == 1


def test_a_stop_reaches_a_job_at_any_time(place):
    assert launch("tpu_existing") == 0
    host = place / "host"
    (host / ".venv" / "bin").mkdir(parents=True)
    worker = shutil.copy(folder_of("tpu_existing") / "worker.sh", host / "worker.sh")
    run = lambda *words: subprocess.run(["bash", worker, *words], capture_output=True, timeout=20).returncode
    assert run("stop") == 1  # nothing was started
    reading = fake(place / "fakes", "gcloud", "exec /bin/sleep 30")  # of the secret
    assert run("start") == 0
    while not reading.read_text():
        time.sleep(0.05)
    assert (run("stop"), run("watch", "+1")) == (0, 143)
    fake(place / "fakes", "gcloud", "echo a secret")
    fake(host / ".venv" / "bin", "adalink", "trap 'exit 75' TERM; touch begun; while true; do /bin/sleep 0.05; done")
    assert run("start") == 0
    while not (host / "begun").exists():
        time.sleep(0.05)
    assert (run("stop"), run("watch", "+1")) == (0, 75)
    assert run("stop") == 0  # it has ended


def test_each_host_runs_its_elements(place):
    assert launch("tpu_per_host") == 0
    worker = shutil.copy(folder_of("tpu_per_host") / "worker.sh", place / "worker.sh")
    fake(place / "fakes", "curl", "echo 1")
    (place / ".venv" / "bin").mkdir(parents=True)
    fake(
        place / ".venv" / "bin",
        "adalink",
        'echo "$ADALINK_ARRAY_INDEX $TPU_PROCESS_BOUNDS $TPU_CHIPS_PER_PROCESS_BOUNDS $*"',
    )
    done = subprocess.run(["bash", worker, "run"], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [f"{i} 1,1,1 2,2,1 check-method my_method.Mine" for i in (1, 5)]


def test_a_submitted_script_is_printed_logged_and_cancelled(place, capfd):
    fake(place / "fakes", "gcloud", GCLOUD)
    fake(place / "fakes", "sleep", "")
    fakes = {
        "FAKE_FAIL": "",
        "FAKE_LIST": "",
        "FAKE_STATES": str(place / "states"),
        "FAKE_WAIT": "",
        "FAKE_LONG": "watch",
        "FAKE_ENDS": "stop",
        "FAKE_HANGS": "nothing",
    }
    os.environ |= fakes
    (place / "states").write_text("ACTIVE\n")
    try:
        assert launch("tpu_slice", "--submit", "--no_plan") == 0
    finally:
        for name in fakes:
            del os.environ[name]
    assert "digits-reverse is ACTIVE." in capfd.readouterr().out
    assert "digits-reverse is ACTIVE." in (folder_of("tpu_slice") / "script.log").read_text()
    assert not (folder_of("tpu_slice") / "script.pid").exists()
    calls = fake(place / "fakes", "gcloud", "echo ACTIVE")
    calls.write_text("")
    for part in ("status", "cancel"):
        assert main(["launch", part, "digits-reverse"]) == 0
    assert [text.split()[3] for text in calls.read_text().splitlines()] == ["describe", "delete"]


def test_a_missing_wheel_is_an_error_before_anything_is_created(place, capsys):
    (place / "wheel.whl").unlink()
    assert launch("tpu_slice", "--submit", "--no_plan") == 2
    assert "no file wheel.whl" in capsys.readouterr().err
    assert not (place / "fakes" / "gcloud.calls").read_text()
