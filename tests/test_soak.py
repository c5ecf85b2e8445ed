"""A short soak; `make soak` does a long one."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def soak(folder, *options):
    command = [sys.executable, "-m", "benchmarks.soak", "--out", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (folder / "seed_0" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    episodes = [json.loads(row) for row in rows]
    assert not any(episode["wrong"] for episode in episodes)
    return done.stdout, [kill for episode in episodes for kill in episode["kills"]]


@pytest.mark.slow
def test_a_conversion_that_is_killed_starts_clean(tmp_path):
    said, kills = soak(tmp_path, "--commands", "convert", "--kills", "1")
    assert "| convert | 1 |" in said and kills[0]["found"] == 0
    said, again = soak(tmp_path, "--commands", "convert", "--kills", "1")
    assert again == kills  # a rerun makes nothing again


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_with_the_bits_of_an_undisturbed_one(tmp_path):
    said, kills = soak(tmp_path, "--commands", "train", "--kills", "3")
    assert "| train | 3 |" in said and len(kills) == 3
