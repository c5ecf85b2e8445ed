"""Scaling studies: their cells, that each is made once from what it needs, and that kept results resume a study."""

import json
import shutil

import pytest

pytest.importorskip("seqio")

from adalink_jax.cli.main import main  # noqa: E402
from adalink_jax.configuration import GinFlags  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402
from adalink_jax.experiments.scaling.cell_folder import chosen_rate, read_results  # noqa: E402
from adalink_jax.experiments.scaling.study import BASES, RUNS, TUNING, Study, cells, flags_of, tuning_of  # noqa: E402

METHODS = {
    "AdaLink": {"image": ("a.gin", "RANK = 2"), "text": ("a.gin", "RANK = 4")},
    "full": ("f.gin",),
    "shared": {"image": ("a.gin", "S = True")},
}


def described(**changes):
    settings = {
        "model_dir": "m", "sizes": {"S": ("s.gin",), "L": ("l.gin",)}, "regimes": {"raw": ("r.gin",), "tuned": ("t.gin",)},
        "tasks": {"image": {"see": ("see.gin",)}, "text": {"read": ("read.gin", "M = 'x'")}}, "methods": METHODS,
        "grid": ({"methods": ("AdaLink", "full")}, {"sizes": ("S",), "regimes": ("tuned",)}), "reference": "full",
        "tuned_on": "tuned", "tuned_as": {"shared": "AdaLink"}, "common": ("c.gin",),
    }  # fmt: skip
    return Study(**settings | changes)


def names(found, stage):
    return [cell.name.partition("/")[2] for cell in found[stage]]


def test_the_grid_determines_the_runs_and_what_they_need():
    found = cells(described())
    assert len(found[RUNS]) == 2 * 2 * 2 * 2 + 1  # and `shared`, on images alone, at one base
    assert [name for name in names(found, RUNS) if "shared" in name] == ["s.tuned.see.shared"]
    assert names(found, RUNS)[0] == "s.raw.see.adalink"
    assert names(found, TUNING) == [
        f"{size}.tuned.{task}.{method}" for size in "sl" for task in ("see", "read") for method in ("adalink", "full")
    ]
    assert names(found, BASES) == ["s.raw", "l.raw", "s.tuned", "l.tuned"]  # raw ones first


def test_a_base_is_made_only_if_something_starts_from_it():
    one = {"sizes": ("S",), "regimes": ("raw",), "tasks": ("see",)}
    found = cells(described(grid=(one,), tuned_on="raw"))
    assert names(found, BASES) == ["s.raw"] and len(found[TUNING]) == 2 and len(found[RUNS]) == 3


def test_commands_have_the_texts_in_order_and_start_from_their_base():
    study, typed = (
        described(),
        GinFlags(("study.gin",), (("DATA_DIR", "'d'"), ("MODEL_DIR", "'m'"), ("Study.seeds", "(1,)"))),
    )
    found = cells(study)
    run = next(cell for cell in found[RUNS] if cell.name == "runs/l.tuned.read.adalink")
    flags = flags_of(study, run, typed, 0.5)
    assert flags.files == ("c.gin", "l.gin", "a.gin", "read.gin")
    assert flags.bindings == (
        ("RANK", "4"), ("M", "'x'"), ("DATA_DIR", "'d'"), ("MODEL_DIR", "'m/runs/l.tuned.read.adalink'"),
        ("INITIAL_CHECKPOINT_PATH", "'m/bases/l.tuned/model'"), ("SEEDS", "(0, 1, 2)"), ("LEARNING_RATE", "0.5"),
    )  # fmt: skip
    raw, _, tuned, _ = found[BASES]
    assert flags_of(study, raw, typed).files == ("s.gin", "r.gin")
    assert "INITIAL_CHECKPOINT_PATH" not in dict(flags_of(study, raw, typed).bindings)
    assert dict(flags_of(study, tuned, typed).bindings)["INITIAL_CHECKPOINT_PATH"] == "'m/bases/s.raw/model'"
    by_size = described(regimes={"raw": {"S": ("r.gin", "L = 2"), "L": ("r.gin", "L = 1")}, "tuned": ("t.gin",)})
    assert [dict(flags_of(by_size, base, typed).bindings).get("L") for base in found[BASES]] == ["2", "1", None, None]


def test_a_run_uses_the_learning_rate_of_its_size_and_a_variant_that_of_its_method():
    study = described()
    taken = {cell.name: tuning_of(study, cell).name for cell in cells(study)[RUNS]}
    assert taken["runs/s.tuned.see.shared"] == "tuning/s.tuned.see.adalink"
    assert taken["runs/l.raw.read.full"] == "tuning/l.tuned.read.full"
    assert set(taken.values()) == {cell.name for cell in cells(study)[TUNING]}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"grid": ({"methods": ("AdaLonk",)},)},
            "'AdaLonk' is not one of its methods; the study has AdaLink, full, shared.",
        ),
        ({"grid": ({"method": ("AdaLink",)},)}, "not one of its method; the study has sizes, regimes, tasks, methods"),
        ({"tuned_on": "cooked"}, "'cooked' is not one of its regimes; the study has raw, tuned."),
        ({"tuned_as": {"shared": "LoRA"}}, "'LoRA' is not one of its methods"),
        ({"reference": "full fine-tuning"}, "'full fine-tuning' is not one of its methods"),
        ({"seeds": (0,)}, "fewer than two seeds"),
        (
            {"sizes": {"S": ("s.gin",), "s ": ("l.gin",)}, "grid": ({},)},
            "Study.sizes: names must differ in their letters and digits, and 's' is not unique",
        ),
        (
            {"methods": METHODS | {"AdaLink": {"imgae": ("a.gin",)}}},
            "'imgae' is not one of its kinds of tasks; the study has image, text.",
        ),
        ({"tasks": {"image": {"see": ("a.gin",)}, "text": {"see": ("b.gin",)}}}, "Study.tasks names 'see' twice"),
        ({"tuned_as": {"full": "shared"}}, "full takes the learning rate of shared, which is not run on read"),
        ({"grid": {"sizes": ("S",)}}, "Study.grid is {'sizes': ('S',)}; it takes a tuple"),
        ({"seeds": 3}, "Study.seeds is 3; it takes a tuple"),
        ({"tuning_seeds": 3}, "Study.tuning_seeds is 3; it takes a tuple"),
        ({"methods": ("AdaLink",)}, "it takes a dict"),
        (
            {"regimes": {"raw": {"S": ("r.gin",)}, "tuned": ()}},
            "Study.regimes['raw'] is for S; it takes texts for each of S, L.",
        ),
    ],
)
def test_invalid_descriptions_are_refused(changes, message):
    with pytest.raises(UserError) as error:
        described(**changes)
    assert message.lower() in str(error.value).lower()


def test_a_tuning_has_the_first_seed_of_the_runs_or_seeds_of_its_own():
    for changes, seeds in (({"seeds": (3, 4)}, "(3,)"), ({"tuning_seeds": (5, 6)}, "(5, 6)")):
        study = described(**changes)
        assert dict(flags_of(study, cells(study)[TUNING][0], GinFlags()).bindings)["SEEDS"] == seeds


def test_an_empty_grid_and_an_invalid_text_are_refused():
    with pytest.raises(UserError, match="names no run"):
        cells(described(grid=({"tasks": ("read",), "methods": ("shared",)},)))
    study = described(common=("c.yaml",))
    with pytest.raises(UserError, match="not 'c.yaml'"):
        flags_of(study, cells(study)[RUNS][0], GinFlags())
    for name in ("SEEDS", "LEARNING_RATES", "LEARNING_RATE", "INITIAL_CHECKPOINT_PATH"):
        with pytest.raises(UserError, match=f"{name} is set, but the study sets it for each run"):
            flags_of(described(), cells(described())[RUNS][0], GinFlags((), ((name, "1"),)))


def test_the_learning_rate_of_the_highest_mean_is_chosen_and_the_lowest_of_equals():
    row = {"learning_rate": [0.1, 0.1, 1.0, 1.0, 3.0, 3.0], "validation": [0.2, 0.4, 0.5, 0.5, 0.9, 0.1]}
    assert chosen_rate(row) == 1.0


# --- with real runs ---

STUDY = """
MODEL_DIR = %gin.REQUIRED
Study.model_dir = %MODEL_DIR
Study.sizes = {'nano': ('gin/models/pali_nano.gin',)}
Study.regimes = {'raw': ('gin/tasks/digits.gin', 'gin/runs/pretrain.gin', "MIXTURE_OR_TASK_NAME = 'few_scenes'", 'BATCH_SIZE = 8',
    "DatasetConfig.mixture_or_task_module = 'small_scenes'", 'WARMUP_STEPS = 1', 'TRAIN_STEPS = 3', 'train.metric = None')}
Study.tasks = {'image': {'reverse': ('gin/tasks/digits.gin', "MIXTURE_OR_TASK_NAME = 'few_scenes'", 'BATCH_SIZE = 8',
    "DatasetConfig.mixture_or_task_module = 'small_scenes'")}}
Study.methods = {'AdaLink': ('gin/adapters/adalink.gin', 'RANK = 2'), 'full': ('gin/adapters/full.gin',)}
Study.reference = 'full'
Study.grid = ({},)
Study.common = ('TRAIN_STEPS = 4', 'WARMUP_STEPS = 1', 'EVAL_PERIOD = 2', 'CHECKPOINT_PERIOD = 2')
Study.tuned_on = 'raw'
Study.factors = (0.1, 1.0)
Study.seeds = (0, 1)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of one size, one base, one task, two methods, made cell by cell in this process."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.gin").write_text(STUDY)
    for name in (
        "bases/nano.raw",
        *(f"{stage}/nano.raw.reverse.{m}" for stage in (TUNING, RUNS) for m in ("adalink", "full")),
    ):
        assert main(arguments(folder, "--element", name)) == 0
    return folder


def arguments(folder, *more, model_dir="made", kept="kept"):
    flags = {"MODEL_DIR": str(folder / model_dir), "Study.kept": str(folder / kept)}
    return [
        "study",
        f"--gin_file={folder}/study.gin",
        *(f"--gin.{name}={value!r}" for name, value in flags.items()),
        *more,
    ]


@pytest.mark.slow
def test_each_cell_keeps_its_result_and_runs_have_the_tuned_learning_rate(made):
    found = {(row["stage"], row.get("method")): row for row in read_results(str(made / "kept"))}
    assert len(found) == 5 and found[BASES, None]["parameters"] == 337_536
    for method, own in (("AdaLink", 0.01), ("full", 0.0003)):
        tuning, run = found[TUNING, method], found[RUNS, method]
        assert tuning["learning_rate"] == pytest.approx([0.1 * own, own]) and "test" not in tuning
        assert set(run["learning_rate"]) == {chosen_rate(tuning)} and run["seed"] == [0, 1]
        summary = json.loads((made / "made" / RUNS / f"nano.raw.reverse.{method.lower()}" / "summary.json").read_text())
        assert run["test"] == pytest.approx([member["adapted_accuracy"] for member in summary["members"]], abs=1e-6)
        assert run["base"]["fingerprint"] == found[RUNS, "AdaLink"]["base"]["fingerprint"]


@pytest.mark.slow
def test_a_kept_result_is_not_made_again_without_its_folder(made, capsys):
    assert main(arguments(made, "--run", model_dir="elsewhere")) == 0
    assert "to make" not in capsys.readouterr().out and not (made / "elsewhere").exists()


@pytest.mark.slow
def test_a_tuning_that_was_killed_before_its_choice_was_written_is_finished(made):
    cell = f"{TUNING}/nano.raw.reverse.adalink"
    files = made / "made" / cell / "tuned.gin", made / "kept" / f"{cell}.json"
    texts = [file.read_text() for file in files]
    for file in files:
        file.unlink()
    assert main(arguments(made, "--element", cell)) == 0
    assert [file.read_text() for file in files] == texts


@pytest.mark.slow
def test_a_missing_result_needs_its_base(made, capsys, tmp_path):
    from adalink_jax import configuration
    from adalink_jax.experiments.scaling.configured_study import ConfiguredStudy, Selection

    shutil.copytree(made / "kept", tmp_path / "kept")
    (tmp_path / "kept" / RUNS / "nano.raw.reverse.full.json").unlink()
    shutil.copy(made / "study.gin", tmp_path)
    flags, _ = configuration.parse_flags(arguments(tmp_path)[1:])
    needed = ConfiguredStudy(flags).needed(Selection())
    assert {stage: [cell.name for cell in found] for stage, found in needed.items()} == {
        BASES: ["bases/nano.raw"], TUNING: [], RUNS: ["runs/nano.raw.reverse.full"]
    }  # fmt: skip
    assert main(arguments(tmp_path)) == 0
    assert "runs: 2" in capsys.readouterr().out


@pytest.mark.slow
def test_cells_of_different_environments_are_reported(made, tmp_path, capsys):
    shutil.copytree(made / "kept", tmp_path / "kept")
    shutil.copy(made / "study.gin", tmp_path)
    assert main(arguments(tmp_path)) == 0
    assert "environments" not in capsys.readouterr().out
    file = tmp_path / "kept" / RUNS / "nano.raw.reverse.full.json"
    old = {name: value for name, value in json.loads(file.read_text()).items() if name != "segments"}
    file.write_text(json.dumps(old | {"versions": {"jax": "0.1"}}))
    assert main(arguments(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "These cells were made in different environments (jax 0" in out and "0.1)" in out


@pytest.mark.parametrize(
    "old, new",
    [
        ("'TRAIN_STEPS = 4'", "'TRAIN_STEPS = 5'"),
        ("'TRAIN_STEPS = 3'", "'TRAIN_STEPS = 2'"),
        ("'EVAL_PERIOD = 2'", "'EVAL_PERIOD = 1'"),
    ],
)
@pytest.mark.slow
def test_results_of_another_description_or_base_are_refused(made, tmp_path, capsys, old, new):
    shutil.copytree(made / "kept", tmp_path / "kept")
    shutil.rmtree(tmp_path / "kept" / BASES)
    (tmp_path / "study.gin").write_text(STUDY.replace(old, new))
    assert main(arguments(tmp_path, "--run")) == 2
    assert "was made with other settings than the study has now" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_a_run_is_refused_if_its_base_was_replaced_by_one_with_other_settings(made, tmp_path, capsys):
    (tmp_path / "study.gin").write_text(STUDY.replace("'TRAIN_STEPS = 3'", "'TRAIN_STEPS = 2'"))
    command, *_, model_dir, kept, run = arguments(made, "--run", kept="none_kept")
    base = (made / "made" / BASES).rename(tmp_path / BASES)
    try:
        assert main([command, f"--gin_file={tmp_path}/study.gin", model_dir, kept, run]) == 2
        assert "nano.raw.reverse.adalink was made with base = " in capsys.readouterr().err
        assert not (made / "made" / BASES).exists()
    finally:
        base.rename(made / "made" / BASES)


@pytest.mark.slow
def test_folders_may_be_moved_here_from_elsewhere(made, tmp_path, capsys):
    shutil.copytree(made / "made", tmp_path / "made")
    shutil.copy(made / "study.gin", tmp_path)
    assert main(arguments(tmp_path, kept="none_kept")) == 0
    assert "runs: 2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_base_with_finished_runs_is_not_trained_again(made, tmp_path, capsys):
    shutil.copytree(made / "kept", tmp_path / "kept")
    (tmp_path / "kept" / RUNS / "nano.raw.reverse.full.json").unlink()
    shutil.copy(made / "study.gin", tmp_path)
    assert main(arguments(tmp_path, "--run")) == 2
    assert "1 runs from bases/nano.raw are finished" in capsys.readouterr().err and not (tmp_path / "made").exists()


@pytest.mark.slow
def test_a_setting_at_its_default_does_not_change_the_digest(made, tmp_path):
    shutil.copytree(made / "kept", tmp_path / "kept")
    (tmp_path / "study.gin").write_text(
        STUDY.replace("'TRAIN_STEPS = 4'", "'TRAIN_STEPS = 4', 'train_pack.at_once = None'")
    )
    assert main(arguments(tmp_path)) == 0


@pytest.mark.slow
def test_results_are_kept_later_if_they_were_not_kept_at_first(made, tmp_path):
    assert main(arguments(made, "--run", kept="later")) == 0
    kept = lambda name: {path.relative_to(made / name): path.read_text() for path in (made / name).glob("*/*.json")}
    assert kept("later") == kept("kept") and len(kept("kept")) == 5


@pytest.mark.slow
def test_lost_tuning_is_made_again_and_blocks_nothing(made, tmp_path):
    from adalink_jax import configuration
    from adalink_jax.experiments.scaling.configured_study import ConfiguredStudy, Selection

    shutil.copytree(made / "kept", tmp_path / "kept")
    (tmp_path / "kept" / TUNING / "nano.raw.reverse.full.json").unlink()
    shutil.copy(made / "study.gin", tmp_path)
    assert main(arguments(tmp_path)) == 0
    flags, _ = configuration.parse_flags(arguments(tmp_path)[1:])
    needed = ConfiguredStudy(flags).needed(Selection())
    assert [cell.name for cell in needed[TUNING]] == ["tuning/nano.raw.reverse.full"]


@pytest.mark.slow
def test_unknown_cells_and_sizes_are_reported(made, capsys):
    assert main(arguments(made, "--element", "runs/x")) == 2
    assert "The study has no runs/x" in capsys.readouterr().err
    for run in ((), ("--run",)):
        assert main(arguments(made, *run, "--size", "9M")) == 2
        assert "--size 9M: the study has nano." in capsys.readouterr().err
    assert main(["study", f"--gin_file={made}/study.gin"]) == 2
    assert "MODEL_DIR is not set" in capsys.readouterr().err


# --- vocabularies ---


@pytest.mark.slow
def test_a_vocabulary_is_the_same_each_time_and_writes_every_character(tmp_path, capsys):
    from adalink_jax.data.vocabularies import load_vocabulary

    text = tmp_path / "text.jsonl"
    words = ["reading", "writing", "the cat sat", "on a mat of straw", "twenty three cats were writing letters"]
    text.write_text("".join(json.dumps({"text": f"{word} {i}\n{word}"}) + "\n" for i, word in enumerate(words * 20)))
    for name in ("one", "two"):
        assert main(["vocabulary", str(text), "--pieces", "290", "--out", str(tmp_path / name)]) == 0
    files = [(tmp_path / name / "spiece.model").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    vocabulary = load_vocabulary(str(tmp_path / "one"))
    assert vocabulary.vocab_size == 390
    for said in ("the cat was reading 42", "Z\u00fcrich {3}"):
        assert vocabulary.decode(vocabulary.encode(said)) == said
    assert len(vocabulary.encode("42")) == 3  # a mark of the word, and each digit


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "x", "neither .txt nor .jsonl"),
        ("a.jsonl", '{"words": 1}', "Line 1 of"),
        ("a.jsonl", "{", "damaged"),
        ("a.txt.gz", "plain", "damaged"),
        ("a.txt", "too little", "No vocabulary of 5000 pieces"),
        (None, None, "There is no file"),
    ],
)
@pytest.mark.slow
def test_text_that_cannot_make_a_vocabulary_is_reported(tmp_path, capsys, name, content, message):
    path = tmp_path / (name or "none.txt")
    if name:
        path.write_text(content)
    assert main(["vocabulary", str(path), "--pieces", "5000", "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
