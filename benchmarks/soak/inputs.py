"""What the jobs of the soak read: 120 pictures of two classes, a table of them, a small T5 with an adapter, and gin files."""

import pathlib
import random

import numpy as np
from etils import epath
from PIL import Image

from adalink_jax import AdaptedModel, checkpoints
from adalink_jax.cli.main import main
from adalink_jax.contract.tiny import init, random_batch, tiny_t5
from adalink_jax.models import T5

DONE = "inputs.txt"
CLASSES = {"3": 200, "7": 60}  # name -> brightness; the bundled model writes digits
SWEEP = """
include 'gin/models/pali_nano.gin'
include 'gin/adapters/adalink.gin'
include '{task}'
include 'gin/runs/finetune.gin'
INITIAL_CHECKPOINT_PATH = 'bundled:pali_nano_instruct'
TRAIN_STEPS = 8
EVAL_PERIOD = 4
CHECKPOINT_PERIOD = 2
WARMUP_STEPS = 2
RANK = 2
Sweep.runs = {{'RANDOM_SEED': (0, 1, 2)}}
"""
STUDY = """
MODEL_DIR = %gin.REQUIRED
Study.model_dir = %MODEL_DIR
Study.kept = 'kept'
Study.sizes = {{'nano': ('gin/models/pali_nano.gin',)}}
Study.regimes = {{'raw': ('{task}', 'gin/runs/pretrain.gin', 'WARMUP_STEPS = 1', 'TRAIN_STEPS = 4', 'train.metric = None')}}
Study.tasks = {{'image': {{'pictures': ('{task}',)}}}}
Study.methods = {{'AdaLink': ('gin/adapters/adalink.gin', 'RANK = 2')}}
Study.reference = 'AdaLink'
Study.grid = ({{}},)
Study.common = ('TRAIN_STEPS = 4', 'WARMUP_STEPS = 1', 'EVAL_PERIOD = 2', 'CHECKPOINT_PERIOD = 2')
Study.tuned_on = 'raw'
Study.factors = (0.1, 1.0)
Study.seeds = (0, 1)
"""
COMPARISON = """
include 'gin/models/pali_nano.gin'
include '{task}'
INITIAL_CHECKPOINT_PATH = 'bundled:pali_nano_instruct'
TRAIN_STEPS = 4
EVAL_PERIOD = 2
CHECKPOINT_PERIOD = 2
WARMUP_STEPS = 1
FACTORS = (0.3, 1.0)
Comparison.model_dir = %MODEL_DIR
Comparison.seeds = (0, 1)
Comparison.methods = {{
    'AdaLink': ('gin/adapters/adalink.gin', 'RANK = 2'),
    'prompt tuning': ('gin/adapters/prompt_tuning.gin', 'PROMPT_LENGTH = 4'),
}}
"""


def write(folder: pathlib.Path) -> None:
    """Writes them once; a folder that is complete is left as it is."""
    if (folder / DONE).exists():
        return
    chance = random.Random(0)
    for name, brightness in CLASSES.items():
        (folder / "pictures" / name).mkdir(parents=True, exist_ok=True)
        for i in range(60):
            colour = tuple(brightness + chance.randint(-50, 50) for _ in range(3))
            Image.new("RGB", (32, 16), colour).save(folder / "pictures" / name / f"{i}.png")
    rows = [f"what is this?,{name}/{i}.png,{60 * j + i}" for j, name in enumerate(CLASSES) for i in range(60)]
    (folder / "rows.csv").write_text("\n".join(["inputs,image,question_id", *rows, ""]), encoding="utf-8")
    (folder / "task.gin").unlink(missing_ok=True)
    (folder / "task.sheet.png").unlink(missing_ok=True)
    run(
        "init",
        str(folder / "pictures"),
        "--base",
        "bundled:pali_nano_instruct",
        "--quick",
        "--out",
        str(folder / "task.gin"),
    )
    for name, text in {"sweep": SWEEP, "study": STUDY, "comparison": COMPARISON}.items():
        (folder / f"{name}.gin").write_text(text.format(task=folder / "task.gin"), encoding="utf-8")
    write_t5(folder)
    (folder / DONE).touch()


def write_t5(folder: pathlib.Path) -> None:
    """A T5 of random weights as a native base and as a Hugging Face folder, and an adapter on it, as if trained."""
    config, rng = tiny_t5(), np.random.default_rng(0)
    params = init(AdaptedModel(T5(config), None), random_batch(T5(config), 1, 4, 4, 0))["backbone"]
    about = checkpoints.stated_settings(T5(config))
    saved = checkpoints.save_base(epath.Path(folder / "t5"), params, "tiny_t5", about)
    settings = {"rank": 4, "phi": "gelu", "scale": 1.0, "kinds": ("text",), "share": False}
    pair = {"down": rng.normal(size=(config.emb_dim, 4)), "up": rng.normal(size=(4, config.emb_dim))}
    leaves = {"text": {name: leaf.astype(np.float32) for name, leaf in pair.items()}}
    base = {"name": saved["name"], "fingerprint": saved["fingerprint"]}
    facts = {"method": "AdaLinkAdapter", "settings": settings, "base": base}
    checkpoints.save_adapter(epath.Path(folder / "adapter"), leaves, facts)


def run(*arguments: str) -> None:
    """Runs a command in this process."""
    if status := main(list(arguments)):
        raise SystemExit(f"adalink {' '.join(arguments)} ended with status {status}.")
