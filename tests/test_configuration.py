"""gin files and flags: what is parsed, and that every invalid configuration is reported in one sentence."""

import gin
import pytest

from adalink_jax import configuration
from adalink_jax.configuration import GinFlags
from adalink_jax.errors import UserError, sentence


@gin.configurable
def brew(beans: str, grams: float = 18.0, water=None):
    """A configurable."""
    return {"beans": beans, "grams": grams, "water": water}


@gin.configurable
def kettle(degrees: int = 93):
    return degrees


@pytest.fixture
def file(tmp_path):
    def write(text, name="coffee.gin"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def load(path, *argv, **options):
    flags, _ = configuration.parse_flags([f"--gin_file={path}", *argv])
    configuration.load(flags, **options)
    return flags


COFFEE = """
BEANS = 'arabica'
DEGREES = 90
brew.beans = %BEANS
brew.water = @kettle()
kettle.degrees = %DEGREES
"""


def test_gin_flags_are_separated_from_other_arguments():
    argv = [
        "--json",
        "--gin_file=a.gin",
        "--gin_file",
        "b.gin",
        "--gin.X=1",
        "--gin_bindings=f.y = 2",
        "--gin_search_paths=p,q",
    ]
    flags, rest = configuration.parse_flags(argv)
    assert flags == GinFlags(("a.gin", "b.gin"), (("X", "1"), ("f.y", "2")), ("p", "q"))
    assert rest == ["--json"]


def test_the_command_line_overrides_files_and_later_files_earlier_ones(file):
    load(file(COFFEE), "--gin.DEGREES=80", "--gin.brew.grams=20")
    assert brew() == {"beans": "arabica", "grams": 20, "water": 80}


def test_files_are_found_in_the_search_paths_and_among_the_shipped(file, tmp_path):
    file(COFFEE)
    load("coffee.gin", f"--gin_search_paths={tmp_path}")
    assert brew()["water"] == 90
    assert (configuration.gin_root() / "runs" / "quickstart.gin").is_file()


def test_the_operative_configuration_can_be_loaded_again(file):
    load(file(COFFEE), "--gin.DEGREES=80")
    brew()
    used, text = configuration.used_settings(), configuration.operative_config()
    assert used["brew.beans"] == "'arabica'" and used["brew.grams"] == "18.0" and used["kettle.degrees"] == "80"
    load(file(text, "again.gin"))
    assert brew()["water"] == 80
    assert configuration.used_settings() == used


def test_a_reference_is_the_same_with_or_without_its_module(file):
    bindings = []
    for written in ("kettle", "test_configuration.kettle"):
        load(file(COFFEE.replace("@kettle", f"@{written}")))
        bindings.append(configuration.bindings())
    assert bindings[0] == bindings[1] and "@kettle()" in bindings[0].values()


def test_an_unused_setting_is_an_error(file):
    flags = load(file("brew.beans = 'robusta'"), "--gin.kettle.degrees=70")
    brew()
    with pytest.raises(UserError, match="--gin.kettle.degrees=70 is set, but nothing in this run uses kettle"):
        configuration.check_all_used(flags)
    kettle()
    configuration.check_all_used(flags)
    flags = load(file("brew.beans = 'robusta'"), "--gin.morning/kettle.degrees=70")
    kettle()
    with pytest.raises(UserError, match="nothing in this run uses morning/kettle"):
        configuration.check_all_used(flags)


@pytest.mark.parametrize("text, argv, words", [
    ("brew.bean = 'x'", [], ["coffee.gin, line 1", "brew takes no bean", "nearest: beans"]),
    ("brw.beans = 'x'", [], ["nothing called brw", "nearest: brew"]),
    ("brew.water = @ketle()", [], ["line 1", "nothing called ketle", "nearest: kettle"]),
    ("brew.beans = 'x", [], ["coffee.gin"]),
    ("brew.grams = (1,\n2", [], ["left open in", "coffee.gin"]),
    ("brew.beans = %BEAN\nbrew.water = %W", [], ["%BEAN (used by brew.beans)", "%W (used by", "--gin.BEAN=VALUE --gin.W="]),
    ("A = %B\nB = %A\nbrew.beans = %A", [], ["macro A refers to itself"]),
    ("brew.beans = %LEARNING_RATE", [], ["Not set: %LEARNING_RATE", "add a method's file", "gin/adapters/adalink.gin"]),
    ("brew.beans = %gin.REQUIRED", [], ["Not set: brew.beans", "--gin.brew.beans=VALUE"]),
    ("brew.beans = runs/x", [], ["coffee.gin, line 1"]),
    (COFFEE, ["--gin.BEANS=false"], ["--gin.BEANS=False"]),
    (COFFEE, ["--gin.BEANS", "--json"], ["--gin.BEANS needs a value"]),
    ("BEANS = 'a'\nbrew.beans = %BEAN", [], ["nearest: BEANS"]),
    ("BEANS = 'a'", [], ["BEANS is set, but nothing refers to it"]),
    ("BEANS = %gin.REQUIRED\nbrew.beans = %BEANS", [], ["Not set: BEANS (in ", "coffee.gin, line 1); add --gin.BEANS=VALUE"]),
    ("include 'gin/nothing.gin'", [], ["line 1", "gin/nothing.gin"]),
    ("import no_such_module", [], ["line 1", "no_such_module"]),
    (COFFEE, ["--gin.DEGRES=80"], ["DEGRES is set, but nothing refers to it", "nearest: DEGREES"]),
    (COFFEE, ["--gin.brew.gram=1"], ["brew takes no gram", "grams"]),
    (COFFEE, ["--gin.BEANS=runs/x"], ["""--gin.BEANS="'runs/x'\""""]),
    (COFFEE, ["--gin.BEANS=gs://bucket/x"], ["""--gin.BEANS="'gs://bucket/x'\""""]),
    (COFFEE, ["--gin.DEGREES=(1, 2"], ["--gin.DEGREES=(1, 2 cannot be read as a Python literal"]),
    (COFFEE, ["--gin.DEGREES"], ["--gin.DEGREES needs a value"]),
])  # fmt: skip
def test_an_invalid_configuration_is_reported_in_one_sentence(file, text, argv, words):
    with pytest.raises(UserError) as error:
        load(file(text), *argv)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_missing_file_is_reported_with_the_nearest_ones():
    with pytest.raises(UserError, match="no gin file gin/runs/quikstart.gin; did you mean gin/runs/quickstart.gin"):
        load("gin/runs/quikstart.gin")


def test_a_misspelt_file_of_the_user_is_reported_with_the_user_s_near_ones(tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    for name in ("tasks/reviews.gin", "tasks/reviews.csv", "tasks/other.gin"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    for typed in ("tasks/revews.gin", "taks/reviews.gin"):
        with pytest.raises(UserError, match=rf"no gin file {typed}; did you mean tasks/reviews.gin\?$"):
            load(typed)
    with pytest.raises(UserError, match=r"no gin file revews.gin; did you mean tasks/reviews.gin\?$"):
        load("revews.gin", "--gin_search_paths=tasks")


@pytest.mark.parametrize(
    "value", ["True", "None", "3e-4", "('image',)", "{'a': 1}", "%OTHER", "@kettle()", "'runs/x'", '"x"']
)
def test_literals_macros_and_references_pass(value):
    assert configuration.parse_flags([f"--gin.X={value}"])[0].bindings == (("X", value),)


def test_commands_that_need_a_part_of_a_configuration_ignore_unset_macros(file):
    load(file("BEANS = %gin.REQUIRED\nbrew.beans = %BEANS"), require_all=False)
    with pytest.raises(UserError, match="sets no kettle.degrees; add a kettle"):
        configuration.require({"kettle.degrees": "a kettle"})


def test_an_error_that_passes_through_gin_keeps_its_message(file):
    @gin.configurable("spill")
    def spill(cup=None):
        raise UserError("The cup is full.")

    load(file("brew.beans = 'x'\nbrew.water = @spill()\nspill.cup = 1"))
    with pytest.raises(UserError) as error:
        brew()
    assert sentence(error.value) == "The cup is full."


def test_a_gin_file_with_holes_is_not_read(tmp_path):
    with open(tmp_path / "large.gin", "wb") as large:
        large.truncate(2**40)
    with pytest.raises(UserError, match="large.gin has 1,099,511,627,776 bytes, more than a gin file has"):
        load(str(tmp_path / "large.gin"))
