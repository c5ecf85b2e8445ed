"""The checks find errors: methods that lack one behaviour fail its check; correct methods pass."""

import functools

import broken_methods
import pytest
from broken_methods import Scales, Shift

from adalink_jax.checkpoints import adapter_files
from adalink_jax.contract import behaviours
from adalink_jax.contract.behaviours import BEHAVIOURS, DOES_NOT_APPLY, FAIL, PASS, examine
from adalink_jax.contract.case import Case

BROKEN = {  # class -> what it fails at, and words of the reason
    "SaysItStartsAsTheBase": ("starts_as_the_base", "a fresh one changes the logits"),
    "HasNoEffect": ("changes_the_outputs", "no effect on the logits"),
    "HasADeadLeaf": ("moves_only_its_own_leaves", "adapter/unused does not change in a training step"),
    "HoldsWhatNoFileCan": ("is_saved_and_loaded", "HoldsWhatNoFileCan.phi is <"),
    "LosesASetting": (
        "is_saved_and_loaded",
        "rebuilt from {'direction': 'down', 'size': 1.0}, it computes something else",
    ),
    "FoldsWrongly": ("is_merged_or_folded", "folded, it differs by"),
    "DecodesOtherwise": ("decodes_like_teacher_forcing", "not the most likely one under teacher forcing"),
    "MergesWrongly": ("is_merged_or_folded", "merged, it differs by"),
    "MergesInPlace": ("is_merged_or_folded", "in place"),
    "DependsOnScanning": ("scans_like_unrolled_layers", "with unrolled layers, it differs by"),
    "MixesARow": ("keeps_packed_examples_apart", "in a row with another example, it differs by"),
    "DoesNotLetGo": ("is_deleted", "deleted from a bank, it differs by"),
    "Raises": ("changes_the_outputs", "TypeError: "),
}


@functools.cache
def case(name):
    return Case(getattr(broken_methods, name)(), "T5")


@pytest.mark.parametrize("name", BROKEN)
def test_a_missing_behaviour_is_found(name):
    behaviour, words = BROKEN[name]
    result = examine(getattr(behaviours, behaviour), case(name))
    assert result.outcome == FAIL and words in result.reason, result
    assert "\n" not in result.reason


def test_an_adapter_that_a_bank_cannot_disable_fails():
    result = examine(behaviours.is_disabled, case("DoesNotLetGo"))
    assert result.outcome == FAIL and "in an empty bank, it differs by" in result.reason


def test_a_changed_base_is_found():
    changed = Case(Shift(), "T5")
    leaves, loss = changed.stepped
    name = "backbone/encoder/encoder_norm/scale"
    changed.stepped = {**leaves, name: leaves[name] + 1.0}, loss
    assert examine(behaviours.moves_only_its_own_leaves, changed).reason == f"{name} changes in a training step"
    assert examine(behaviours.is_disabled, changed).reason == "a training step changes the base"


def test_a_missing_check_of_the_base_is_found(monkeypatch):
    monkeypatch.setattr(adapter_files, "check_base", lambda *_: None)
    assert examine(behaviours.refuses_another_base, case("HasNoEffect")).outcome == FAIL


def test_every_behaviour_is_seen_to_fail():
    others = {"is_disabled", "refuses_another_base", "trains_alike_on_several_devices"}  # above; in test_methods.py
    assert {behaviour for behaviour, _ in BROKEN.values()} | others == {behaviour.__name__ for behaviour in BEHAVIOURS}


@pytest.mark.parametrize("method, backbone", [
    (Shift, "T5"), pytest.param(Shift, "PaLI", marks=pytest.mark.slow), (Scales, "T5")
])  # fmt: skip
def test_correct_custom_methods_pass(method, backbone):
    found = Case(method(), backbone)
    results = {behaviour.__name__: examine(behaviour, found) for behaviour in BEHAVIOURS}
    less = {name for name, result in results.items() if result.outcome == DOES_NOT_APPLY}
    packing = "keeps_packed_examples_apart"
    where = {Shift: {"T5": set(), "PaLI": {"is_merged_or_folded", packing}}, Scales: {"T5": {"is_deleted", packing}}}
    assert less == {"trains_alike_on_several_devices"} | where[method][backbone]
    assert all(result.outcome == PASS for name, result in results.items() if name not in less), results
