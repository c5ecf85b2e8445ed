"""What a scaling study is made of: model size x base x task x method, each a pack of seeds at a learning rate that was tuned.

bases     each size is trained in each regime, one after the other: raw, then instruction-tuned from it
tuning    each method on each task, at each size, a pack of learning rates on the base `tuned_on`
runs      the grid: a pack of seeds, at the learning rate that was chosen on validation at that size, scored once on test
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import gin

from adalink_jax.configuration import GinFlags
from adalink_jax.errors import UserError
from adalink_jax.experiments.comparisons.compare import slug

BASES, TUNING, RUNS = "bases", "tuning", "runs"
AXES = ("size", "regime", "task", "method")
Texts = Sequence[str]
OURS = ("SEEDS", "FACTORS", "LEARNING_RATES", "INITIAL_CHECKPOINT_PATH", "MODEL_DIR")  # what a study sets itself


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Study:
    """The description. Texts are gin files and bindings like 'RANK = 4', in the order in which they are read.

    Attributes:
      model_dir: folder of all that is trained.
      sizes: name -> texts of the model, small ones first.
      regimes: name -> texts of the run that trains the base, or size -> texts where they differ (a learning rate for each width); each
        but the first starts from the one before it.
      tasks: kind -> name -> texts.
      methods: name -> texts, or kind of task -> texts where they differ; kinds that are left out are not run.
      grid: which runs there are: each entry names some of `sizes`, `regimes`, `tasks`, `methods` (all of those it does not name),
        and all entries count.
      tuned_on: the regime on whose bases learning rates are chosen, at each size of the grid; runs from the other bases of that
        size take them too.
      common: texts of every adaptation, read before the others.
      tuned_as: method -> another one, whose learning rate it takes.
      reference: the method that gaps are measured to.
      factors: of a method's own LEARNING_RATE, to try.
      seeds: of each run.
      kept: a folder of small files, one for each result, so that a study goes on where these files are; None for none.

    Raises:
      UserError: for names that are none, or not told apart, and for what is not of these forms.
    """

    model_dir: str
    sizes: Mapping[str, Texts]
    regimes: Mapping[str, Texts | Mapping[str, Texts]]
    tasks: Mapping[str, Mapping[str, Texts]]
    methods: Mapping[str, Texts | Mapping[str, Texts]]
    grid: Sequence[Mapping[str, Sequence[str]]]
    tuned_on: str
    common: Texts = ()
    tuned_as: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reference: str = "full fine-tuning"
    factors: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0)
    seeds: Sequence[int] = (0, 1, 2)
    kept: str | None = None

    def __post_init__(self):
        self._check_forms()
        names = {"sizes": self.sizes, "regimes": self.regimes, "tasks": self.kinds, "methods": self.methods}
        for axis, known in names.items():
            slugs = [slug(name) for name in known]
            twice = next((name for name in slugs if slugs.count(name) > 1 or not name), None)
            if not slugs or twice is not None:
                raise UserError(
                    f"Study.{axis}: each needs a name with letters or digits of its own ({twice or 'none'})."
                )
        asked = [(axis, name) for entry in self.grid for axis, chosen in entry.items() for name in chosen]
        asked += [("regimes", self.tuned_on)]
        asked += [("methods", name) for name in (self.reference, *self.tuned_as, *self.tuned_as.values())]
        names["kinds of tasks"] = self.tasks
        asked += [
            ("kinds of tasks", kind) for texts in self.methods.values() if isinstance(texts, Mapping) for kind in texts
        ]
        for axis, name in asked:
            if name not in names.get(axis, ()):
                raise UserError(f"Study: {name!r} is none of {axis}; there are {', '.join(names.get(axis, names))}.")
        for regime, texts in self.regimes.items():
            if isinstance(texts, Mapping) and set(texts) != set(self.sizes):
                raise UserError(
                    f"Study.regimes[{regime!r}] is for {', '.join(texts)}; it takes texts for each of {', '.join(self.sizes)}."
                )
        for variant, other in self.tuned_as.items():
            for task in self.kinds:
                if self.texts(variant, task) is not None and self.texts(other, task) is None:
                    raise UserError(
                        f"Study.tuned_as: {variant} takes the learning rate of {other}, which is not run on {task}."
                    )
        if len(self.seeds) < 2:
            raise UserError("Study.seeds has fewer than two seeds; an interval needs two, and better five.")

    def _check_forms(self) -> None:
        mappings = {name: getattr(self, name) for name in ("sizes", "regimes", "tasks", "methods", "tuned_as")}
        mappings |= (
            {f"tasks[{kind!r}]": tasks for kind, tasks in self.tasks.items()} if isinstance(self.tasks, Mapping) else {}
        )
        for name, value in mappings.items():
            if not isinstance(value, Mapping):
                raise UserError(f"Study.{name} is {value!r}; it takes a dict.")
        tuples = {name: getattr(self, name) for name in ("grid", "common", "factors", "seeds")}
        for name, value in tuples.items():
            if not isinstance(value, tuple | list):
                raise UserError(f"Study.{name} is {value!r}; it takes a tuple, such as (1, 2).")
        if not all(isinstance(entry, Mapping) for entry in self.grid):
            raise UserError("Study.grid takes a tuple of dicts, such as ({'sizes': ('0.3M',)},).")
        tasks = [task for each in self.tasks.values() for task in each]
        twice = next((task for task in tasks if tasks.count(task) > 1), None)
        if twice is not None:
            raise UserError(f"Study.tasks names {twice!r} twice; give each a name of its own.")

    @property
    def kinds(self) -> dict[str, str]:
        """Task -> kind."""
        return {task: kind for kind, tasks in self.tasks.items() for task in tasks}

    def order(self, cell: "Cell") -> list[int]:
        """Where a cell stands on each axis, for tables."""
        names = (self.sizes, self.regimes, self.kinds, self.methods)
        return [list(known).index(value) for known, value in zip(names, cell.axes().values())]

    def texts(self, method: str, task: str) -> Texts | None:
        """Of a method on a task; None where it is not run."""
        found = self.methods[method]
        return found.get(self.kinds[task]) if isinstance(found, Mapping) else found


@dataclasses.dataclass(frozen=True)
class Cell:
    """One thing to do.

    Attributes:
      stage: BASES, TUNING or RUNS.
      size, regime: of the base.
      task, method: "" for a base.
    """

    stage: str
    size: str
    regime: str
    task: str = ""
    method: str = ""

    @property
    def name(self) -> str:
        """Of its folder, and of what is kept of it."""
        parts = [slug(part) for part in (self.size, self.regime, self.task, self.method) if part]
        return f"{self.stage}/{'.'.join(parts)}"

    @property
    def base(self) -> "Cell":
        """What it starts from."""
        return Cell(BASES, self.size, self.regime)

    def axes(self) -> dict[str, str]:
        """Its place in the study."""
        return {axis: value for axis in AXES if (value := getattr(self, axis))}


def cells(study: Study) -> dict[str, list[Cell]]:
    """All, by stage, in order.

    Raises:
      UserError: if the grid is empty.
    """
    chosen: dict[Cell, None] = {}
    for entry in study.grid:
        pick = lambda axis, every, entry=entry: [name for name in every if name in entry.get(axis, every)]
        for size in pick("sizes", study.sizes):
            for regime in pick("regimes", study.regimes):
                for task in pick("tasks", study.kinds):
                    for method in pick("methods", study.methods):
                        if study.texts(method, task) is not None:
                            chosen[Cell(RUNS, size, regime, task, method)] = None
    if not chosen:
        raise UserError("Study.grid names no run.")
    runs = sorted(chosen, key=study.order)
    tuning = sorted({tuning_of(study, cell) for cell in runs}, key=study.order)
    regimes = list(study.regimes)
    wanted = {(cell.size, regime) for cell in (*runs, *tuning) for regime in regimes[: regimes.index(cell.regime) + 1]}
    bases = [Cell(BASES, size, regime) for regime in regimes for size in study.sizes if (size, regime) in wanted]
    return {BASES: bases, TUNING: tuning, RUNS: runs}


def tuning_of(study: Study, cell: Cell) -> Cell:
    """Whose learning rate a run has: learning rates do not carry from one size to another, least of all full fine-tuning's."""
    return Cell(TUNING, cell.size, study.tuned_on, cell.task, study.tuned_as.get(cell.method, cell.method))


def flags_of(study: Study, cell: Cell, typed: GinFlags, learning_rate: float | None = None) -> GinFlags:
    """Those of the command that makes it: `adalink train` for a base, `tune` and `pack`.

    Args:
      study: the description.
      cell: one of its.
      typed: the command line's own; what it binds for the runs (DATA_DIR, TRAIN_STEPS) wins over the description.
      learning_rate: of a run; None for a check of the rest.

    Raises:
      UserError: for a text that is neither file nor binding, and for a binding of what the study sets itself.
    """
    folder = lambda other: f"{study.model_dir}/{other.name}"
    own = {"MODEL_DIR": folder(cell)}
    if cell.stage == BASES:
        regime = study.regimes[cell.regime]
        texts = (*study.sizes[cell.size], *(regime[cell.size] if isinstance(regime, Mapping) else regime))
        order = list(study.regimes)
        if earlier := order[: order.index(cell.regime)]:
            own["INITIAL_CHECKPOINT_PATH"] = folder(Cell(BASES, cell.size, earlier[-1])) + "/model"
    else:
        kind = study.kinds[cell.task]
        method = study.texts(cell.method, cell.task)
        texts = (*study.common, *study.sizes[cell.size], *method, *study.tasks[kind][cell.task])
        own["INITIAL_CHECKPOINT_PATH"] = folder(cell.base) + "/model"
        if cell.stage == TUNING:
            own["FACTORS"] = tuple(study.factors)
            own["SEEDS"] = (study.seeds[0],)
        else:
            own["SEEDS"] = tuple(study.seeds)
            own |= {} if learning_rate is None else {"LEARNING_RATE": float(learning_rate)}
    files, bindings = [], []
    for is_file, value in map(_parsed, texts):
        (files if is_file else bindings).append(value)
    passed = [(name, text) for name, text in typed.bindings if name != "MODEL_DIR" and not name.startswith("Study.")]
    mine = next((name for name, _ in (*bindings, *passed) if name in OURS), None)
    if mine or "LEARNING_RATE" in dict(passed):
        raise UserError(f"{mine or 'LEARNING_RATE'} is set, but the study sets it for each run; leave it out.")
    bindings += [*passed, *((name, repr(value)) for name, value in own.items())]
    return GinFlags(tuple(files), tuple(bindings), typed.search_paths)


def _parsed(text: str) -> tuple[bool, str | tuple[str, str]]:
    name, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
    if equals and re.fullmatch(r"[\w./]+", name.strip()):
        return False, (name.strip(), value.strip())
    if name.endswith(".gin"):
        return True, name
    raise UserError(f"Study takes gin files and bindings like 'RANK = 4', not {text!r}.")
