"""The segments of a run, and whether runs were made alike."""

import pytest

from adalink_jax.errors import UserError
from adalink_jax.training.segments import Segment, check_environment, describe, differences, environments

OLD = {"versions": {"jax": "0.8.1", "optax": "0.2.8"}, "platform": "cpu", "device_kind": "cpu"}
NEW = {"versions": {"jax": "0.99.0", "optax": "0.2.8"}, "platform": "gpu", "device_kind": "NVIDIA H100"}


def summary(*environments, **facts):
    return {
        "segments": [{**x, "first_step": 10 * i + 1, "last_step": 10 * i + 10} for i, x in enumerate(environments)],
        **facts,
    }


def test_runs_made_alike_have_no_differences():
    runs = [summary(OLD), summary(OLD, OLD), {"versions": OLD["versions"]}, {}]
    assert differences(x for run in runs for x in environments(run)) == {}


def test_what_differs_is_named_with_its_values():
    runs = [summary(OLD), summary(OLD, NEW)]
    differing = differences(x for run in runs for x in environments(run))
    assert differing == {"jax": ["0.8.1", "0.99.0"], "platform": ["cpu", "gpu"], "device_kind": ["cpu", "NVIDIA H100"]}
    assert describe(differing).startswith("jax 0.8.1, 0.99.0; platform cpu, gpu")


def test_a_summary_without_segments_is_compared_by_its_versions():
    runs = [{"versions": {"jax": "0.9"}}, summary(OLD, versions={"jax": "0.99.0"})]
    assert differences(x for run in runs for x in environments(run)) == {"jax": ["0.9", "0.8.1"]}


def test_a_segment_names_every_version_the_platform_and_the_device():
    segment = Segment.here(1, 5)
    assert segment.versions.keys() == {"adalink-jax", "jax", "jaxlib", "flax", "optax", "numpy", "python"}
    assert (segment.platform, segment.device_kind, segment.first_step, segment.last_step) == ("cpu", "cpu", 1, 5)


def test_a_resumed_run_is_compared_with_its_segments():
    assert check_environment([], 0, same_bits=True) is None
    assert check_environment([Segment.here(1, 10)], 10, same_bits=True) is None
    earlier = [Segment(**OLD, first_step=1, last_step=10)]
    assert "another environment (jax 0.8.1, " in check_environment(earlier, 10)
    with pytest.raises(
        UserError, match="another environment .*; resume it in the same environment, or leave out --same_b"
    ):
        check_environment(earlier, 10, same_bits=True)


def test_a_run_without_segments_was_made_by_an_unknown_environment():
    assert "did not record its environment" in check_environment([], 10)
    with pytest.raises(UserError, match="did not record its environment; resume"):
        check_environment([Segment.here(11, 20)], 20, same_bits=True)
