"""`adalink list`: every shipped file and name is in its table, and the tables fit a terminal."""

import pathlib
import re

import pytest
from test_results import write_run

from adalink_jax import configuration
from adalink_jax.cli.main import main
from adalink_jax.data.user_files.file_settings import METRICS

KINDS = {"models": "pali_nano", "bases": "hf://google/flan-t5-small", "adapters": "lora", "tasks": "glue_stsb",
         "metrics": "macro_f1", "meshes": "fsdp", "decodings": "beam_search"}  # fmt: skip


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def listed(capsys, *words):
    """The first cells of the rows of a table, without the continuations of folded ones, and all that was printed."""
    assert main(["list", *words]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    return [row[0] for row in rows if row[0] and row[1]], out


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_a_table_that_fits_80_columns(kind, capsys):
    names, out = listed(capsys, kind)
    assert KINDS[kind] in names and len(set(names)) >= 2
    assert "gin_file=" in out or "METRICS" in out


def test_the_tables_are_complete(capsys):
    files = {path.stem: path.read_text() for path in (configuration.gin_root() / "models").glob("*.gin")}
    families = files.keys() - set(listed(capsys, "models")[0])
    included = {pathlib.Path(name).stem for text in files.values() for name in re.findall(r"include '(.*)'", text)}
    assert families <= included and {"t5", "t5gemma", "t5gemma2", "common"} <= families
    adapters = {path.stem for path in (configuration.gin_root() / "adapters").glob("*.gin")}
    assert set(listed(capsys, "adapters")[0]) == adapters
    assert listed(capsys, "metrics")[0] == list(METRICS)
    tasks = listed(capsys, "tasks")[0]
    assert {"digits_instruct", "glue_mixture", "vqa_daquar", "docvqa", "mini_raw"} <= set(tasks)
    assert "METRIC" not in tasks and "mixture" not in tasks


def test_runs_have_state_task_and_score(tmp_path, capsys):
    write_run(tmp_path / "a_10", rank=4, seed=0, accuracy=0.25, task="digits_reverse")
    write_run(tmp_path / "a_9", rank=4, seed=0, accuracy=0.5)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.gin").write_text("")
    names, out = listed(capsys, "runs", str(tmp_path))
    assert names == ["a_9", "a_10", "b"]
    assert re.search(r"a_10 +│ done +│ digits_reverse +│ accuracy 0.2500 \(test\)", out)
    assert re.search(r"b +│ unfinished +│", out)


def test_wrong_arguments_are_refused(tmp_path, capsys):
    assert main(["list", "runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: There is no run in {tmp_path}.\n"
    with pytest.raises(SystemExit):
        main(["list", "adapters", "runs"])
    assert "only `adalink list runs` takes a folder" in capsys.readouterr().err
