"""What commands require of gin's configuration (see `require`): parameter that must be bound -> the gin file that binds it."""

# Macros that a kind of file sets.
MACROS = {"LEARNING_RATE": "a method's file, such as --gin_file=gin/adapters/adalink.gin"}

MODEL = {"Setup.model": "a model's file, such as --gin_file=gin/models/pali_nano.gin"}
DATA = {"Setup.dataset": "a task's file, such as --gin_file=gin/tasks/digits.gin"}
RUN = {"train.setup": "a run's file, such as --gin_file=gin/runs/finetune.gin"}
PACK = {"train_pack.setup": "a pack's file, such as --gin_file=gin/runs/pack.gin"}
COMPARISON = {"Comparison.methods": "a comparison's file, such as --gin_file=gin/comparisons/digits.gin"}
SWEEP = {"Sweep.runs": "a sweep's file, such as --gin_file=gin/sweeps/digits_small.gin"}
STUDY = {
    f"Study.{name}": "a study's file, such as --gin_file=gin/studies/miniature.gin"
    for name in ("sizes", "regimes", "tasks", "methods", "grid", "tuned_on")
}
