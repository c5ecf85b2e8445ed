"""Bad input in endless forms, see `fuzz`: some of each kind here, thousands by `make fuzz`."""

import dataclasses
import json

import pytest
from fuzz import fakes, outcomes, targets
from fuzz.engine import Limits, draw, fuzz
from hypothesis import strategies as st


def test_every_end_of_an_input_is_counted_and_failing_inputs_are_kept(tmp_path):
    tally = fuzz("fuzz.fakes", {"fakes": 60}, 0, tmp_path, limits=Limits(1.0, 300))
    counts = {outcome: count for (_, outcome), count in tally.counts.items()}
    kinds = {
        "equal": outcomes.EQUAL, "sentence": outcomes.REFUSED, "exception": outcomes.EXCEPTION, "slow": outcomes.SLOW,
        "large": outcomes.LARGE, "abort": outcomes.CRASHED, "exit": outcomes.CRASHED,
    }  # fmt: skip
    drawn = [kinds.get(end, outcomes.UNCLEAR) for end in draw(st.sampled_from(fakes.ENDS), 60, 0)]
    assert len(set(drawn)) == 7 and counts == {kind: drawn.count(kind) for kind in drawn}
    causes = {detail.partition(":")[0] for (_, kind, detail) in tally.causes if kind == outcomes.UNCLEAR}
    assert causes == {"several lines", "control characters", "the thing is not named", "no remedy"}
    for (_, kind, _), folder in tally.kept.items():
        about = json.loads((folder / "about.json").read_text())
        assert about["outcome"] == kind and repr((folder / "input" / "input").read_text()) == about["plan"]
    assert not list((tmp_path / "inputs").iterdir())


def test_inputs_are_those_of_their_seed():
    strategy = st.lists(st.integers(), max_size=9)
    assert draw(strategy, 50, 1) == draw(strategy, 50, 1) != draw(strategy, 50, 2)


def test_a_target_whose_sound_input_is_refused_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(fakes.TARGETS, "fakes", dataclasses.replace(fakes.TARGETS["fakes"], sound="sentence"))
    with pytest.raises(RuntimeError, match="A sound input of fakes is refused in one sentence"):
        fuzz("fuzz.fakes", {"fakes": 1}, 0, tmp_path)


INPUTS = {
    "adapters": 12, "native bases": 6, "Hugging Face bases": 6, "t5x bases": 6, "runs": 10, "gin values": 12,
    "gin files": 6, "tables": 8, "pictures": 4, "archives": 4, "shell payloads": 12, "jobs": 5,
}  # fmt: skip


@pytest.mark.slow
def test_no_input_is_accepted_though_changed_or_ends_in_a_traceback(tmp_path):
    # Resumed runs need half a minute before their first input; test_run.py resumes damaged ones.
    assert targets.TARGETS.keys() - INPUTS.keys() == {"resumed runs"}
    tally = fuzz("fuzz.targets", INPUTS, 20, tmp_path)
    failures = [
        f"{count} x {kind}: {outcome}, {detail}\n{(tally.kept[kind, outcome, detail] / 'about.json').read_text('utf-8')}"
        for (kind, outcome, detail), count in tally.causes.items()
    ]
    assert not failures, "\n".join(failures)
    assert tally.of(*outcomes.ALL) == sum(INPUTS.values())
