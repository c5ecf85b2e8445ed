"""Every value that gin gives to a configurable has the type and the range of its annotation, or is refused in one sentence."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import flax.linen as nn
import gin
import gin_values
import numpy as np
import optax
import pydantic
import pytest
from jaxtyping import Float

from adalink_jax import configuration
from adalink_jax.cli.arguments import register
from adalink_jax.configuration import GinFlags
from adalink_jax.errors import UserError
from adalink_jax.typed_values import DType, PositiveFloat, PositiveInt, Seed

if TYPE_CHECKING:
    from decimal import Decimal


@gin.configurable
def oven(
    degrees: PositiveFloat | Callable = 180,
    trays: Sequence[str] | str = (),
    size: tuple[int, int] = (1, 2),
    extras: Mapping[str, optax.GradientTransformation] | None = None,
    minutes: int = None,  # pyright: ignore[reportArgumentType]  # as in old code
    dtype: DType = "float32",
    price: "Decimal | None" = None,
    grid: Float[np.ndarray, "H W"] | None = None,
    anything=None,
):
    return degrees, trays, size


@gin.configurable
@dataclasses.dataclass
class Cake:
    layers: PositiveInt
    seed: Seed = 0
    inside: "Cake | None" = None


@gin.configurable
class Kitchen(nn.Module):
    cake: Cake | None = None
    width: Annotated[int, pydantic.Field(multiple_of=8)] = 8


@gin.configurable
def numbers() -> Any:
    return np.float32(3.0)


@gin.configurable
def words() -> Any:
    return "far"


@pytest.fixture
def load(tmp_path):
    def load(text, *argv):
        (tmp_path / "kitchen.gin").write_text(text)
        configuration.load(configuration.parse_flags([f"--gin_file={tmp_path}/kitchen.gin", *argv])[0])

    return load


@pytest.mark.parametrize("text", [
    "oven.degrees = 200", "oven.degrees = @words", "oven.trays = 'a'", "oven.trays = ['a', 'b']", "oven.size = [3, 4]",
    "oven.extras = {'a': @words()}", "oven.minutes = None", "oven.anything = {1: (2,)}", "oven.price = 'x'", "oven.grid = None",
    "Cake.inside = @Cake()", "A = 3\nB = %A\nCake.layers = %B", "Kitchen.cake = @first/Cake()\nfirst/Cake.layers = 2",
])  # fmt: skip
def test_loads(load, text):
    load(text)
    bound = re.findall(r"^([\w/]+\.\w+) =", text, re.MULTILINE)
    assert bound and set(bound) <= configuration.bindings().keys()


@pytest.mark.parametrize("text, argv, sentence", [
    ("oven.degrees = 'hot'", [], "oven.degrees is 'hot', a text; it must be a function or a number (set in {file}, line 1)."),
    ("A = 'hot'\nB = %A\noven.degrees = %B", [], "A is 'hot', a text; it must be a function or a number (oven.degrees, set in {file}, line 1)."),
    ("A = 1\noven.degrees = %A", ["--gin.A=-1.0"],
     "A is -1.0, a number; it must be more than 0 (oven.degrees, set on the command line)."),
    ("oven.trays = ('a', 3)", [], "oven.trays has `[1]`, which is 3, a whole number; it must be a text (set in {file}, line 1)."),
    ("oven.extras = {'a': @words(), 'b': 1}", [], "oven.extras has `b`, which is 1, a whole number; it must be a GradientTransf"),
    ("oven.minutes = 1.5", [], "oven.minutes is 1.5, a number; it must be a whole number"),
    ("oven.dtype = 'float64'", [], "oven.dtype is 'float64', a text; it must be 'float32' or 'bfloat16'"),
    ("oven.grid = 3", [], "oven.grid is 3, a whole number; it must be a Float"),
    ("big/Cake:\n  layers = 2\n  seed = True\n", [], "big/Cake.seed is True, a truth value; it must be a whole number (set in {file}, line 3)."),
    ("Kitchen.width = 9", [], "Kitchen.width is 9, a whole number; it must be a multiple of 8"),
    ("Kitchen.cake = @words", [], "Kitchen.cake is the function words; it must be a Cake"),
    ("Cake.seed = 4294967296", [], "Cake.seed is 4294967296, a whole number; it must be 2147483647 or less"),
    ("oven.anything = {[]: 1}", [], "{file}, line 1: the value cannot be read: unhashable type: 'list'"),
    ("", ["--gin.oven.anything={{}: 1}"], "--gin.oven.anything={{}: 1} cannot be read as a Python literal."),
])  # fmt: skip
def test_a_wrong_value_is_refused_with_its_place(load, tmp_path, text, argv, sentence):
    with pytest.raises(UserError) as caught:
        load(text, *argv)
    assert str(caught.value).startswith(sentence.replace("{file}", f"{tmp_path}/kitchen.gin"))


@pytest.mark.parametrize("text, sentence", [
    ("oven.degrees = @words()", "oven.degrees is 'far', a text; it must be a function or a number (set in"),
    ("A = @words()\noven.degrees = %A", "A is 'far', a text; it must be a function or a number (oven.degrees, set in"),
    ("oven.extras = {'a': @words()}", "oven.extras has `a`, which is 'far', a text; it must be a GradientTransformation"),
    ("oven.extras = @Cake()", "oven.extras is @Cake(), and Cake.layers is not set; add --gin.Cake.layers=VALUE"),
    ("oven.extras = @Cake()\nCake.layers = 1\nCake.inside = @Cake()", "Cake.inside is @Cake(), which needs Cake.inside itself"),
    ("oven.extras = @Cake()\nCake.layers = 1", "oven.extras is a Cake; it must be a mapping"),
])  # fmt: skip
def test_what_a_reference_builds_is_checked_when_it_is_built(load, text, sentence):
    load(text)
    with pytest.raises(UserError) as caught:
        oven()
    assert str(caught.value).startswith(sentence)


def test_what_is_right_is_given_as_it_is_built(load):
    load("oven.degrees = @numbers()\noven.size = [1, 2]\nKitchen.cake = @Cake()\nCake.layers = 3")
    degrees, _, size = oven()
    assert (type(degrees), degrees, size) == (float, 3.0, (1, 2))
    assert Kitchen().cake == Cake(3)
    assert oven("hot")[0] == "hot"  # a caller's argument is the caller's


def test_all_shipped_files_have_right_values():
    register()
    root, loaded = configuration.gin_root(), 0
    for file in sorted(root.rglob("*.gin")):
        if file.parent.name != "t5x":  # these include t5x's own
            configuration.load(GinFlags((str(file),)), require_all=False)
            loaded += 1
    assert loaded > 90


def test_a_run_refuses_wrong_values_before_it_compiles(tmp_path):
    flags = gin_values.files(tmp_path)
    assert gin_values.outcome(flags) == "reached"
    names = ("LEARNING_RATE", "TRAIN_STEPS", "RANK", "TASK_FEATURE_LENGTHS")
    outcomes = [
        gin_values.outcome([*flags, f"--gin.{name}={value}"])
        for name in names
        for value in gin_values.WRONG_VALUES[::3]
    ]
    assert [outcome for outcome in outcomes if not outcome.startswith(("refused: ", "reached"))] == []
    assert outcomes.count("reached") < 10
