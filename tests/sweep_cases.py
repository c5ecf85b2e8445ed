"""What several tests of sweeps share: a small sweep's command line, and how often each of its runs was started."""

SMALL = "--gin_file=gin/sweeps/digits_small.gin"
FEW = {"TRIED_RANKS": (1,), "TRIED_RATES": (0.01,), "TRIED_SEEDS": (0, 1), "TRAIN_STEPS": 4, "CHECKPOINT_PERIOD": 2,
       "EVAL_PERIOD": 0, "BATCH_SIZE": 125}  # fmt: skip


def arguments(folder, *more, **macros):
    macros = {"MODEL_DIR": str(folder), **macros}
    return ["sweep", SMALL, *(f"--gin.{name}={value!r}" for name, value in macros.items()), *more]


def starts(folder):
    return {path.parent.name: path.read_text().count('"start"') for path in sorted(folder.glob("*/attempts.jsonl"))}
