"""`adalink launch ray` on a real Ray cluster of two nodes on this machine, one of which is killed. Needs the extra `ray`."""

import json
import os
import pathlib
import threading
import time

import pytest
from launch_cases import topology

from adalink_jax.cli.main import main
from adalink_jax.reports import results

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def test_tasks_resume_on_another_node_when_theirs_is_killed(tmp_path, monkeypatch, capfd):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'adalink-jax[ray]'")
    pytest.importorskip("seqio")
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    few = {"MODEL_DIR": str(tmp_path / "small"), "TRIED_RANKS": (1,), "TRIED_RATES": (0.01,), "TRIED_SEEDS": (0, 1), "TRAIN_STEPS": 60,
           "CHECKPOINT_PERIOD": 5, "EVAL_PERIOD": 0}  # fmt: skip
    sweep = [
        "sweep",
        "--gin_file=gin/sweeps/digits_small.gin",
        *(f"--gin.{name}={value!r}" for name, value in few.items()),
    ]
    (tmp_path / "secret").write_text("opened")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill_one() -> None:
        """Kills a node when a run has saved; the other node takes its task over."""
        saved = lambda: any(path.name.isdigit() for path in (tmp_path / "small").glob("*/checkpoints/*"))
        while not saved():
            time.sleep(0.2)
        cluster.remove_node(nodes[0], allow_graceful=False)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    try:
        options = [
            topology("cpu:1"),
            f"--gin.ADDRESS={cluster.address!r}",
            f"--gin.SECRETS={{'OF_THE_NODE': '{tmp_path}/secret'}}",
            f"--gin.SETUP=('echo \"read $OF_THE_NODE\" > {tmp_path}/set_up',)",
            "--array",
            "2",
            "--name",
            "small",
            "--submit",
        ]
        assert main(["launch", "ray", *options, "--", *sweep, "--element"]) == 0
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()
    assert not killer.is_alive()
    assert (tmp_path / "set_up").read_text() == "read opened\n"
    rows = results.collect(str(tmp_path / "small")).table.to_pylist()
    assert [(row["state"], row["steps"], row["RANDOM_SEED"]) for row in rows] == [("done", 60, 0), ("done", 60, 1)]
    starts = [
        [json.loads(line)["what"] for line in path.read_text().splitlines()].count("start")
        for path in sorted((tmp_path / "small").glob("*/attempts.jsonl"))
    ]
    assert sorted(starts) == [1, 2]
    assert "task 0: ended with status 0." in capfd.readouterr().out and os.environ["PYTHONPATH"]
