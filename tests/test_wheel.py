"""The built wheel runs the quickstart in an empty environment, away from the checkout. Slow: it installs everything."""

import json
import os
import pathlib
import subprocess
import sys
import venv

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_alone_runs_the_quickstart(tmp_path):
    run = lambda *command, **kw: subprocess.run([*map(str, command)], check=True, **kw)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    bin = tmp_path / "venv" / "bin"
    run(bin / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    flags = ["--gin.TRAIN_STEPS=60", "--gin.EVAL_PERIOD=0", "--gin.WARMUP_STEPS=10"]
    run(bin / "adalink", "quickstart", *flags, cwd=elsewhere, env=env)
    summary = json.loads((elsewhere / "runs" / "quickstart" / "summary.json").read_text())
    assert summary["steps"] == 60 and (elsewhere / "runs" / "quickstart" / "samples.png").exists()
    run(bin / "adalink", "params", "--gin_file=gin/models/t5_1_1_xxl.gin", cwd=elsewhere, env=env)
