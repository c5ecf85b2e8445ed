"""A T5Gemma 2 is trained on a table and predicts: with pictures in the texts' places, and on texts alone."""

import numpy as np
import pytest
from gemma_references import make_t5gemma2, make_tokenizer
from PIL import Image
from references import transformers
from safetensors.numpy import load_file

from adalink_jax.checkpoints import config_fields, open_source
from adalink_jax.cli.main import main
from adalink_jax.errors import UserError
from adalink_jax.interop.language_model import backbone_of
from adalink_jax.serving import Predictor

FILES = ("gin/adapters/adalink.gin", "gin/tasks/files.gin", "gin/runs/finetune.gin")
IMAGE_WORDS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Hugging Face folder with a tokenizer and a processor of pictures, and a gin file of the model beside it."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    make_t5gemma2(vocab_size=272, image=262, end=261).save_pretrained(folder)
    make_tokenizer(folder, **IMAGE_WORDS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    images = transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    transformers.Gemma3Processor(images, tokenizer, image_seq_length=4).save_pretrained(folder)
    source = open_source(folder)
    tower = {"image_size", "patch_size", "emb_dim", "num_heads", "mlp_dim", "num_layers"}
    vision = {name: value for name, value in vars(backbone_of(source).vision_config).items() if name in tower}
    lines = [f"T5Gemma2Config.{name} = {value!r}" for name, value in config_fields(source).items()]
    lines += [f"ViTConfig.{name} = {value!r}" for name, value in vision.items()]
    (folder.parent / "model.gin").write_text("\n".join(["include 'gin/models/t5gemma2.gin'", *lines]))
    return folder


def train(base, folder, text, **further):
    """Trains two steps on a table whose inputs begin with `text`, and returns the run's folder."""
    rows = [f"{text} {i},{'ab'[i % 2]},{i % 2}.png,{'train dev test'.split()[i % 3]}" for i in range(12)]
    (folder / "rows.csv").write_text("\n".join(["text,label,photo,split", *rows]))
    for i in range(2):
        Image.new("RGB", (20, 30), (250 * i, 90, 30)).save(folder / f"{i}.png")
    values = {
        "DATA": str(folder / "rows.csv"), "INPUTS": "{text}", "TARGETS": "{label}", "SPLIT": "split", "VOCABULARY": str(base),
        "MIXTURE_OR_TASK_NAME": "rows", "TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 3}, "MODEL_DIR": str(folder / "run"),
        "INITIAL_CHECKPOINT_PATH": str(base), "TRAIN_STEPS": 2, "WARMUP_STEPS": 0, "BATCH_SIZE": 4, **further,
    }  # fmt: skip
    files = (f"--gin_file={file}" for file in (base.parent / "model.gin", *FILES))
    assert main(["train", *files, *(f"--gin.{name}={value!r}" for name, value in values.items())]) == 0
    return folder / "run"


def changed(run):
    leaves = load_file(run / "adapter_last" / "adapter_model.safetensors")
    return {name for name, leaf in leaves.items() if name.endswith("up") and leaf.any()}


def test_a_run_with_pictures_and_its_predictor(base, tmp_path):
    run = train(base, tmp_path, "<start_of_image>which?", IMAGE="{photo}", IMAGES=str(tmp_path))
    assert changed(run) == {"image/up", "text/up"}
    predictor, choices = Predictor(run), ["a", "b"]
    score = lambda *given: predictor(*given, choices=choices, scores=True)["a"]
    one, other = (score("<start_of_image>which?", str(tmp_path / f"{i}.png")) for i in range(2))
    assert np.isfinite(one) and one != other
    assert np.isfinite(score("which?"))
    with pytest.raises(UserError, match="have 4 places for the tokens of an image .*, and there is no image"):
        score("<start_of_image>which?")
    with pytest.raises(UserError, match="write <start_of_image> once where the image stands"):
        score("which?", str(tmp_path / "0.png"))


def test_a_run_on_texts_alone(base, tmp_path, capsys):
    run = train(base, tmp_path, "which?")
    assert changed(run) == {"text/up"}
    assert "rows has no images: the vision tower" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "more.txt").write_text("this?\nthat?\n")
    assert main(["infer", "--run", str(run), str(tmp_path / "more.txt"), str(tmp_path / "out.jsonl")]) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
