"""Values against annotations, and JSON files against their forms: the sentences, and what passes."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import pydantic
import pytest
from etils import epath

from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.files.typed_json import LARGEST, Form, read_form
from adalink_jax.typed_values import wrong

Positive = Annotated[int, pydantic.Field(ge=1)]


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, float), (math.nan, float), (None, int | None), ([1, 2], tuple[int, ...]), (([1], [2]), Sequence[tuple[int]]),
        ({"a": [1]}, Mapping[str, tuple[int, ...]]), (math.sqrt, Callable), (int, type[int]), ("a", Literal["a", "b"]), (1, Positive),
    ],
)  # fmt: skip
def test_passes(value, annotation):
    assert wrong(value, annotation) is None


@pytest.mark.parametrize(
    ("value", "annotation", "sentence"),
    [
        ("1e-3", float, "is '1e-3', a text; it must be a number"),
        (True, int, "is True, a truth value; it must be a whole number"),
        (4.0, int | None, "is 4.0, a number; it must be a whole number"),
        (None, str, "is None; it must be a text"),
        ("abc", Sequence[str], "is 'abc', a text; it must be a list, not one text"),
        (("a", 1), Sequence[str] | None, "has `[1]`, which is 1, a whole number; it must be a text"),
        ({"a": [1, None]}, Mapping[str, tuple[int, ...]], "has `a[1]`, which is None; it must be a whole number"),
        (3, str | Sequence[str], "is 3, a whole number; it must be a list or a text"),
        (0, Positive, "is 0, a whole number; it must be 1 or more"),
        (math.nan, Annotated[float, pydantic.Field(allow_inf_nan=False)], "is nan, a number; it must be finite"),
        ("c", Literal["a", "b"], "is 'c', a text; it must be 'a' or 'b'"),
    ],
)
def test_is_said_in_a_clause(value, annotation, sentence):
    assert wrong(value, annotation) == sentence


def test_a_long_value_is_shortened():
    assert len(wrong(["x" * 10_000] * 1_000, int)) < 200


class Part(Form):
    shape: tuple[int, ...]


class Whole(Form):
    name: str
    count: Positive = 1
    parts: dict[str, Part] = {}


def test_a_file_is_read_as_its_form(tmp_path):
    (tmp_path / "a.json").write_text(
        '\ufeff{"name": "a", "parts": {"x": {"shape": [2, 3]}}, "more": 5}', encoding="utf-8"
    )
    form = read_form(epath.Path(tmp_path / "a.json"), Whole)
    assert (form.name, form.count, form.parts["x"].shape, form.model_extra) == ("a", 1, (2, 3), {"more": 5})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "is damaged or cut short (Expecting property name"),
        (b"\xff", "is damaged or cut short (no UTF-8: invalid start byte at byte 0)"),
        (b"[" * 100_000, "is damaged or cut short (nested too deeply)"),
        (b"1" * 10_000, "is damaged or cut short (Exceeds the limit"),
        (b"[1]", "holds [1], a list, not an object"),
        (b"{}", "lacks `name`"),
        (b'{"name": "\\ud800"}', "is damaged ("),
        (b'{"name": 1}', "has `name`, which is 1, a whole number; it must be a text"),
        (b'{"name": "a", "count": 0}', "has `count`, which is 0, a whole number; it must be 1 or more"),
        (b'{"name": "a", "parts": {"x": {"shape": [2, "3"]}}}', "has `parts.x.shape[1]`, which is '3', a text"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_form(epath.Path(tmp_path / "a.json"), Whole, "copy it again", CheckpointError)
    assert str(error.value).startswith(f"{tmp_path / 'a.json'} {sentence}")
    assert str(error.value).endswith("; copy it again.")
    assert "\n" not in str(error.value)


def test_what_is_no_small_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a regular file"):
        read_form(epath.Path(tmp_path / "pipe"), Whole)
    with pytest.raises(UserError, match="There is no .*missing"):
        read_form(epath.Path(tmp_path / "missing"), Whole)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UserError, match="large has .* bytes, more than"):
        read_form(epath.Path(tmp_path / "large"), Whole)
