"""`adalink push` and hf:// adapters, on a stand-in for the Hub: what is pushed is what is loaded, and the card says what is true."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("seqio")
pytest.importorskip("huggingface_hub", reason="pip install 'adalink-jax[hf]'")

import hub_with_commits  # noqa: E402
import numpy as np  # noqa: E402
import yaml  # noqa: E402
from huggingface_hub import ModelCard  # noqa: E402
from PIL import Image  # noqa: E402

import adalink_jax as al  # noqa: E402
from adalink_jax.cli.main import main  # noqa: E402

ROOT = pathlib.Path(__file__).parent.parent
REPO = "ada/digits"
PLACE = f"hf://{REPO}"
PUSHED = {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "config.gin"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    settings = {
        "MODEL_DIR": str(folder),
        "TRAIN_STEPS": 12,
        "BATCH_SIZE": 40,
        "EVAL_PERIOD": 0,
        "RANK": 4,
        "WARMUP_STEPS": 2,
    }
    assert main(["quickstart", *(f"--gin.{name}={value!r}" for name, value in settings.items())]) == 0
    return folder


@pytest.fixture(scope="module")
def hub():
    with hub_with_commits.running() as hub:
        yield hub


@pytest.fixture(autouse=True)
def its_hub(hub, tmp_path, monkeypatch):
    hub.use(monkeypatch, tmp_path / "home")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def push(*arguments):
    return main(["push", *map(str, arguments)])


def python(code, cwd):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # httpx's, of how huggingface_hub uploads
def test_an_adapter_is_pushed_with_a_card_whose_snippet_runs_from_the_pushed_files(run, hub, tmp_path, capsys):
    assert push(run / "adapter", PLACE, "--private") == 0
    assert f"{hub.endpoint}/{REPO}/commit/{hub.repos[REPO].head}" in capsys.readouterr().out.replace("\n", "")
    assert hub.repos[REPO].private
    files = hub.repos[REPO].files("main")
    assert files.keys() == PUSHED
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert files[name] == (run / "adapter" / name).read_bytes()
    assert files["config.gin"] == (run / "config.gin").read_bytes()

    text, summary = files["README.md"].decode(), json.loads((run / "summary.json").read_text())
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["library_name"] == "adalink-jax" and "adalink" in data["tags"]
    results = {result.dataset_split: result.metric_value for result in ModelCard(text).data.eval_results}
    assert results["test"] == pytest.approx(summary["adapted_accuracy"], abs=1e-6)
    assert results["validation"] == pytest.approx(summary["validation"], abs=1e-6)
    assert summary["base"]["fingerprint"] in text and "| batch size | `40` |" in text
    for name, scores in summary["baselines"].items():
        assert f"| {name} |  | {scores['accuracy']:.4f} |" in text

    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert f"'{PLACE}'" in snippet
    Image.new("L", (16, 8), 128).save(tmp_path / "picture.png")
    before = len(hub.asked)
    from_hub = python(snippet, tmp_path)
    got = {path.rpartition("/")[2] for method, path in hub.asked[before:] if method == "GET" and "/resolve/" in path}
    assert got == {"adapter_config.json", "adapter_model.safetensors"}
    assert from_hub == python(snippet.replace(PLACE, str(run / "adapter")), tmp_path)

    # Pushed again it is a new commit; beside other files it is refused.
    assert push(run / "adapter", PLACE, "--example", "add") == 0
    assert "model('add', 'picture.png')" in hub.repos[REPO].files("main")["README.md"].decode()
    before = hub.repos[REPO].commit({"model.safetensors": b"another's"})
    assert push(run / "adapter", PLACE) == 2
    assert re.search("holds other files, such as model.safetensors; .* --force", capsys.readouterr().err)
    assert hub.repos[REPO].head == before
    assert push(run / "adapter", PLACE, "--force") == 0
    assert hub.repos[REPO].files("main").keys() == PUSHED | {"model.safetensors"}


@pytest.fixture
def on_hub(run, hub):
    """The run's adapter on the hub, without a card, and its commit."""
    hub.repos[REPO] = hub_with_commits.Repo()
    return hub.repos[REPO].commit({path.name: path.read_bytes() for path in (run / "adapter").iterdir()})


def test_commands_take_adapters_from_the_hub_at_a_revision_too(run, hub, on_hub, tmp_path, monkeypatch, capsys):
    hub.repos[REPO].commit({"adapter_model.safetensors": b"damaged"})
    place = f"{PLACE}@{on_hub}"
    assert main(["eval", f"--gin_file={run}/config.gin", "--json", f"--gin.INITIAL_ADAPTER_PATH='{place}'"]) == 0
    score = json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"]
    assert score == json.loads((run / "summary.json").read_text())["adapted_accuracy"]
    assert main(["adapters", "show", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "AdaLinkAdapter"
    assert main(["adapters", "show", PLACE]) == 2  # the last commit
    assert main(["adapters", "show", f"{PLACE}@{'1' * 40}"]) == 2
    assert f"{PLACE}@{'1' * 40} is not available" in capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    Image.new("L", (16, 8), 128).save("picture.png")
    pathlib.Path("rows.csv").write_text("inputs,image\nread from right to left,picture.png\n", "utf-8")
    settings = {"INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_instruct", "VOCABULARY": "bytes"}
    model = ["--gin_file=gin/models/pali_nano.gin", *(f"--gin.{name}={text!r}" for name, text in settings.items())]
    for number, adapter in enumerate((place, run / "adapter")):
        assert main(["infer", "rows.csv", f"{number}.jsonl", "--adapters", f"a={adapter}", *model]) == 0
    assert pathlib.Path("0.jsonl").read_bytes() == pathlib.Path("1.jsonl").read_bytes()


def test_nothing_is_pushed_if_the_snippet_fails(run, hub, capsys):
    assert push(run / "adapter", "hf://ada/broken", "--base", "hf://ada/nowhere") == 2
    words = "The snippet of the card failed, so nothing was pushed: hf://ada/nowhere is not available"
    assert words in capsys.readouterr().err
    assert "ada/broken" not in hub.repos


def test_without_a_token_nothing_is_loaded(run, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    before = len(hub.asked)
    assert push(run / "adapter", PLACE) == 2
    assert "There is no token for the Hub; run `hf auth login`" in capsys.readouterr().err
    assert len(hub.asked) == before


def test_a_token_that_the_hub_refuses_is_one_sentence(run, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert push(run / "adapter", "hf://ada/new") == 2
    assert re.search("hf://ada/new cannot be pushed to: .*401", capsys.readouterr().err)
    assert "ada/new" not in hub.repos


@pytest.mark.parametrize("place", ["ada/digits", "hf://digits", "hf://a/b/c", "hf://a/b@main"])
def test_a_place_that_is_no_repository_is_refused(place, run, capsys):
    assert main(["push", str(run / "adapter"), place]) == 2
    assert "give hf://OWNER/NAME" in capsys.readouterr().err


def test_the_card_of_an_adapter_without_a_run_says_less(run, tmp_path, capsys):
    (tmp_path / "alone").mkdir()
    for file in (run / "adapter").iterdir():
        (tmp_path / "alone" / file.name).write_bytes(file.read_bytes())
    command = ["push", str(tmp_path / "alone"), PLACE, "--out", str(tmp_path / "card")]
    assert main(command) == 2
    assert "which others may not have; name it with --base" in capsys.readouterr().err
    assert not (tmp_path / "card").exists()


def test_an_adapter_of_peft_is_loaded_from_the_hub(hub):
    """A LoRA as PEFT writes it, on the bundled model of text and images."""
    from safetensors.numpy import save

    names = ("base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_{}.weight",)
    shapes = {"A": (2, 64), "B": (64, 2)}
    draw = np.random.default_rng(0)
    tensors = {name.format(m): draw.normal(size=shape).astype("f") for name in names for m, shape in shapes.items()}
    config = {"peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q"],
              "base_model_name_or_path": "some/base", "bias": "none", "lora_dropout": 0.0}  # fmt: skip
    hub.repos["ada/peft"] = hub_with_commits.Repo()
    files = {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(tensors),
        "training_args.bin": b"x",
    }
    hub.repos["ada/peft"].commit(files)
    base = al.load_base("bundled:pali_nano_instruct")
    leaf = "adapter/encoder/layers_0/attention/query"
    assert sorted(al.load_adapter(base, "hf://ada/peft").trainable) == [f"{leaf}/down", f"{leaf}/up"]
    assert not any(path.endswith("training_args.bin") for _, path in hub.asked)
    predictor = al.Predictor("bundled:pali_nano_instruct", adapters={"theirs": "hf://ada/peft"})
    assert predictor.names == ["theirs"]


def test_a_missing_library_is_one_sentence_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(tmp_path), "hf://me/reviews", "--out", str(tmp_path / "card")]) == 2
    assert "needs huggingface_hub: pip install 'adalink-jax[hf]'" in capsys.readouterr().err
    assert not (tmp_path / "card").exists()


@pytest.mark.slow
def test_the_card_of_texts_on_a_model_that_also_takes_pictures_is_of_texts(run, tmp_path):
    """Version 0.1.0 drew the blank pictures of such a run."""
    copy = tmp_path / "texts"
    shutil.copytree(run, copy)
    summary = json.loads((copy / "summary.json").read_text())
    assert "pipeline_tag: image-text-to-text" in card_of(copy, tmp_path / "pictures")
    summary["settings"]["FileTask.blank_image"] = "True"
    (copy / "summary.json").write_text(json.dumps(summary))
    text = card_of(copy, tmp_path / "of_texts")
    assert "pipeline_tag: text2text-generation" in text and "your own" not in text


def card_of(folder, out):
    assert push(folder / "adapter", PLACE, "--out", out) == 0
    return (out / "README.md").read_text()
