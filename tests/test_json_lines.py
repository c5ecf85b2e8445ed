"""Files of JSON lines keep every complete row, whatever a kill cut short."""

from etils import epath

from adalink_jax.files.json_lines import append_json, read_json_lines


def test_a_row_after_one_that_a_kill_cut_short_is_a_line_of_its_own(tmp_path):
    path = epath.Path(tmp_path / "rows.jsonl")
    append_json(path, {"step": 1})
    append_json(path, {"step": 2})
    path.write_bytes(path.read_bytes()[:-4])
    append_json(path, {"step": 3})
    append_json(path, {"step": 4})
    assert read_json_lines(path) == [{"step": 1}, {"step": 3}, {"step": 4}]
