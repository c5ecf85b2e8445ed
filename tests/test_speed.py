"""The page of `benchmarks/speed.py`, and its processes; `make speed` measures."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT))

from benchmarks.speed_parts import growth, page  # noqa: E402
from benchmarks.speed_parts.work import MATMUL, ROWS, TINY  # noqa: E402
from benchmarks.speed_parts.worker import Contender  # noqa: E402

PLACE = {"machine": "a machine", "cores": 2, "versions": {"jax": "1"}, "revision": "abc", "day": "2026-11-29"}


def cells():
    """Results of a row and of a curve: PyTorch takes twice as long as this package, which takes twice the limit."""
    seconds = {MATMUL: [0.1, 0.2], "torch adalink": [4.0, 4.2], "ours adalink": [2.0, 2.2]}
    facts = {
        MATMUL: {"flops": 10}, "torch adalink": {"first": 1.5}, "ours adalink": {"first": 1.5, "flops": 105, "temporaries": 2e9},
        "t5x full": {"missing": "t5x"},
    }  # fmt: skip
    row = {"work": dataclasses.asdict(ROWS[0]), "seconds": seconds, "facts": facts, "matmul_rate": 100.0, **PLACE}
    points = {f"length-{x}": {"point": x, "seconds": x**2 / 100, "bytes": x * 1e6, **PLACE} for x in (16, 4, 64)}
    return {"step-128": row, **points}


def test_the_table_has_medians_ratios_and_the_limit():
    text = page.table(cells())
    now = next(line for line in text.splitlines() if "| now |" in line)
    assert re.sub(r"[^\d.]+", " ", now).split()[-6:] == ["4.10", "2.10", "0.51", "1.05", "2.00", "2.00"]
    assert "0.50 to 0.52" in text and "1.5000 and 1.5000" in text and "t5x full (t5x is not installed)" in text


def test_a_curve_s_sentence_has_its_slope():
    text = page.curves(cells())
    assert "exponents 2.00 and 1.00" in text and "from 4 to 64 tokens in" in text
    assert growth.slope([1, 2, 4], [5.0, 7.0, 11.0]) == pytest.approx(2.0)


def test_sections_of_the_page_are_replaced_and_without_results_left_alone(tmp_path):
    file = tmp_path / "speed.md"
    file.write_text((ROOT / "docs" / "results" / "speed.md").read_text(encoding="utf-8"), encoding="utf-8")
    names = re.findall(r"<!-- speed: (\w+) -->", file.read_text(encoding="utf-8"))
    assert names == list(page.SECTIONS)
    before = file.read_text(encoding="utf-8")
    for _ in range(2):
        page.rewrite(file, tmp_path)  # there is nothing
    assert re.sub(r"(?s)(speed: gpu -->).*?(<!-- end)", r"\1\2", file.read_text(encoding="utf-8")) == re.sub(
        r"(?s)(speed: gpu -->).*?(<!-- end)", r"\1\2", before
    )
    assert "Not measured: no GPU" in file.read_text(encoding="utf-8")


def test_what_fails_in_a_process_is_raised_here():
    task = {"contender": "no_such", "work": dataclasses.asdict(ROWS[0].shrunk()), "model": dataclasses.asdict(TINY)}
    with pytest.raises(RuntimeError, match="KeyError: 'base'"):
        Contender(**task)


@pytest.mark.slow
def test_tiny_sizes_run_and_resume(tmp_path):
    pytest.importorskip("peft")
    command = [sys.executable, "-m", "benchmarks.speed", "--tiny", "--turns", "1", "--out", str(tmp_path)]
    command += ["--parts", "table", "quantised", "rank", "bank", "gpu", "--rows", "step-128", "greedy-1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stored as" in done.stdout and "| nf4 |" in done.stdout
    assert "the same tokens" in done.stdout and "adapters in the bank" in done.stdout
    files = {file: file.stat().st_mtime for file in tmp_path.rglob("*.json")}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert files == {file: file.stat().st_mtime for file in tmp_path.rglob("*.json")}
