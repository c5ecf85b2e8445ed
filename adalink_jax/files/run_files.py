"""The forms of the small JSON files of a run that more than one layer reads. Fields that a version does not write are optional."""

from typing import Any

from adalink_jax.files.typed_json import Form


class _Segment(Form):
    versions: dict[str, str]
    platform: str
    device_kind: str
    first_step: int
    last_step: int


class _Scored(Form):
    validation: float | None = None
    seconds: float | None = None
    step_seconds: float | None = None
    step_flops: float | None = None
    input_wait: float | None = None
    learning_rate: float | None = None
    seed: int | None = None
    rank: int | None = None
    metric: str | None = None
    scores: dict[str, float | None] = {}
    baselines: dict[str, dict[str, float]] = {}
    scores_are_of: str | None = None
    nothing_learned: str | None = None
    learned_by_heart: str | None = None


class _Member(_Scored):
    name: str
    trainable: int
    step: int
    diverged: bool


class Summary(_Scored):
    """`summary.json` of a run, of a member of a pack, or of a pack."""

    step: int | None = None
    steps: int | None = None
    trainable: int | None = None
    total_steps: int | None = None
    frozen: int | None = None
    task: str | None = None
    base: dict[str, Any] | None = None
    members: list[_Member] = []
    settings: dict[str, str] = {}
    versions: dict[str, str] = {}
    segments: list[_Segment] = []


class Metrics(Form):
    """A line of `metrics.jsonl`: the step, and values by name."""

    __pydantic_extra__: dict[str, float | None]  # pyright: ignore[reportIncompatibleVariableOverride]  # pydantic's way

    step: int


class Attempt(Form):
    """A line of `attempts.jsonl`."""

    status: int = 0


class Record(Form):
    """`sweep.json`."""

    bindings: dict[str, str] = {}
    settings: dict[str, str]
