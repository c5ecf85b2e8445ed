"""The description of a scaling study: model size x base x task x method, each a pack of seeds at a tuned learning rate.

bases     each size is trained in each regime, one after the other: raw, then instruction-tuned from it
tuning    each method on each task, at each size: a pack of learning rates on the base `tuned_on`
runs      the grid: a pack of seeds, at the learning rate chosen on validation at that size, scored once on test
"""

import dataclasses
from collections.abc import Mapping, Sequence

import gin

from adalink_jax.configuration import GinFlags
from adalink_jax.errors import UserError
from adalink_jax.experiments.descriptions import check_names, check_seeds, slug, split_texts
from adalink_jax.files.places import RunFolder
from adalink_jax.typed_values import PositiveFloat, Seed

BASES, TUNING, RUNS = "bases", "tuning", "runs"
AXES = ("size", "regime", "task", "method")
RESERVED = ("SEEDS", "FACTORS", "LEARNING_RATES", "INITIAL_CHECKPOINT_PATH", "MODEL_DIR")  # the study itself sets them
Texts = Sequence[str]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Study:
    """The description. Texts are gin files and bindings like 'RANK = 4', in the order in which they are read.

    Attributes:
      model_dir: folder of everything that is trained.
      sizes: name -> texts of the model, small ones first.
      regimes: name -> texts of the run that trains the base, or size -> texts if they differ (a learning rate per width); each
        regime but the first starts from the one before it.
      tasks: kind -> name -> texts.
      methods: name -> texts, or kind of task -> texts if they differ; a method is not run on kinds that are left out.
      grid: which runs there are: each entry names some of `sizes`, `regimes`, `tasks`, `methods` (all of those it does not name);
        the grid is the union of its entries.
      tuned_on: the regime on whose bases learning rates are chosen, at each size of the grid; runs from other bases of that
        size use the same rates.
      common: texts of every adaptation, read before the others.
      tuned_as: method -> another method, whose learning rate it takes.
      reference: the method that gaps are measured to.
      factors: multiples of a method's own LEARNING_RATE to try.
      seeds: of each run.
      tuning_seeds: of each learning rate's trials; None is the first of `seeds`.
      kept: a folder of small files, one per result, from which a study resumes without its trained folders; None for no such
        folder.

    Raises:
      UserError: for unknown or ambiguous names, and for values of another form.
    """

    model_dir: RunFolder
    sizes: Mapping[str, Texts]
    regimes: Mapping[str, Texts | Mapping[str, Texts]]
    tasks: Mapping[str, Mapping[str, Texts]]
    methods: Mapping[str, Texts | Mapping[str, Texts]]
    grid: Sequence[Mapping[str, Sequence[str]]]
    tuned_on: str
    common: Texts = ()
    tuned_as: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reference: str = "full fine-tuning"
    factors: Sequence[PositiveFloat] = (0.1, 0.3, 1.0, 3.0, 10.0)
    seeds: Sequence[Seed] = (0, 1, 2)
    tuning_seeds: Sequence[Seed] | None = None
    kept: str | None = None  # words: ok (a gin name)

    def __post_init__(self):
        self._check_forms()
        self._check_names()
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
        check_seeds(self.seeds, "Study.seeds")

    def _check_forms(self) -> None:
        mappings = {name: getattr(self, name) for name in ("sizes", "regimes", "tasks", "methods", "tuned_as")}
        if isinstance(self.tasks, Mapping):
            mappings |= {f"tasks[{kind!r}]": tasks for kind, tasks in self.tasks.items()}
        for name, value in mappings.items():
            if not isinstance(value, Mapping):
                raise UserError(f"Study.{name} is {value!r}; it takes a dict.")
        for name in (
            "grid",
            "common",
            "factors",
            "seeds",
            *(["tuning_seeds"] if self.tuning_seeds is not None else []),
        ):
            if not isinstance(getattr(self, name), tuple | list):
                raise UserError(f"Study.{name} is {getattr(self, name)!r}; it takes a tuple, such as (1, 2).")
        if not all(isinstance(entry, Mapping) for entry in self.grid):
            raise UserError("Study.grid takes a tuple of dicts, such as ({'sizes': ('0.3M',)},).")
        tasks = [task for of_kind in self.tasks.values() for task in of_kind]
        twice = next((task for task in tasks if tasks.count(task) > 1), None)
        if twice is not None:
            raise UserError(f"Study.tasks names {twice!r} twice; each task needs its own name.")

    def _check_names(self) -> None:
        known = {"sizes": self.sizes, "regimes": self.regimes, "tasks": self.kinds, "methods": self.methods}
        for axis, names in known.items():
            if not names:
                raise UserError(f"Study.{axis} is empty.")
            check_names(names, f"Study.{axis}")
        used = [(axis, name) for entry in self.grid for axis, names in entry.items() for name in names]
        used += [("regimes", self.tuned_on)]
        used += [("methods", name) for name in (self.reference, *self.tuned_as, *self.tuned_as.values())]
        known["kinds of tasks"] = self.tasks
        used += [
            ("kinds of tasks", kind) for texts in self.methods.values() if isinstance(texts, Mapping) for kind in texts
        ]
        for axis, name in used:
            if name not in known.get(axis, ()):
                raise UserError(
                    f"Study: {name!r} is not one of its {axis}; the study has {', '.join(known.get(axis, known))}."
                )

    @property
    def kinds(self) -> dict[str, str]:
        """Task -> kind."""
        return {task: kind for kind, tasks in self.tasks.items() for task in tasks}

    def order(self, cell: "Cell") -> list[int]:
        """The position of a cell on each axis, for tables."""
        names = (self.sizes, self.regimes, self.kinds, self.methods)
        return [list(known).index(value) for known, value in zip(names, cell.axes().values())]

    def regimes_until(self, regime: str) -> list[str]:
        """The regimes that lead to the base `regime`, in order, itself included."""
        names = list(self.regimes)
        return names[: names.index(regime) + 1]

    def texts(self, method: str, task: str) -> Texts | None:
        """The texts of a method on a task; None if it is not run there."""
        texts = self.methods[method]
        return texts.get(self.kinds[task]) if isinstance(texts, Mapping) else texts


@dataclasses.dataclass(frozen=True)
class Cell:
    """One base, tuning or run of a study.

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
        """The name of its folder, and of its result's file."""
        parts = [slug(part) for part in (self.size, self.regime, self.task, self.method) if part]
        return f"{self.stage}/{'.'.join(parts)}"

    @property
    def base(self) -> "Cell":
        """The base that an adaptation starts from."""
        return Cell(BASES, self.size, self.regime)

    def axes(self) -> dict[str, str]:
        """Axis -> value."""
        return {axis: value for axis in AXES if (value := getattr(self, axis))}


def cells(study: Study) -> dict[str, list[Cell]]:
    """All cells, by stage, in order.

    Raises:
      UserError: if the grid is empty.
    """
    chosen: dict[Cell, None] = {}
    for entry in study.grid:
        pick = lambda axis, names, entry=entry: [name for name in names if name in entry.get(axis, names)]
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
    return {BASES: bases_of(study, [*runs, *tuning]), TUNING: tuning, RUNS: runs}


def bases_of(study: Study, adaptations: Sequence[Cell]) -> list[Cell]:
    """The bases that `adaptations` start from, and those that these start from; regime by regime."""
    needed = {(cell.size, regime) for cell in adaptations for regime in study.regimes_until(cell.regime)}
    return [Cell(BASES, size, regime) for regime in study.regimes for size in study.sizes if (size, regime) in needed]


def base_before(study: Study, base: Cell) -> Cell | None:
    """The base that another base starts from; None if it starts from random weights."""
    *earlier, _ = study.regimes_until(base.regime)
    return Cell(BASES, base.size, earlier[-1]) if earlier else None


def tuning_of(study: Study, cell: Cell) -> Cell:
    """The tuning whose learning rate a run has: rates do not carry over between sizes, least of all those of full fine-tuning."""
    return Cell(TUNING, cell.size, study.tuned_on, cell.task, study.tuned_as.get(cell.method, cell.method))


def flags_of(study: Study, cell: Cell, typed: GinFlags, learning_rate: float | None = None) -> GinFlags:
    """The flags of the command that makes a cell: `adalink train` for a base, `tune`, or `pack`.

    Args:
      study: the description.
      cell: one of its cells.
      typed: the flags of the command line; what they bind for the runs (DATA_DIR, TRAIN_STEPS) wins over the description.
      learning_rate: of a run; None to check everything else.

    Raises:
      UserError: for a text that is neither file nor binding, and for a binding of what the study itself sets.
    """
    bound: dict[str, object] = {"MODEL_DIR": f"{study.model_dir}/{cell.name}"}
    if cell.stage == BASES:
        regime, start = study.regimes[cell.regime], base_before(study, cell)
        texts = (*study.sizes[cell.size], *(regime[cell.size] if isinstance(regime, Mapping) else regime))
    else:
        method, task = study.texts(cell.method, cell.task) or (), study.tasks[study.kinds[cell.task]][cell.task]
        texts, start = (*study.common, *study.sizes[cell.size], *method, *task), cell.base
    if start is not None:
        bound["INITIAL_CHECKPOINT_PATH"] = f"{study.model_dir}/{start.name}/model"
    if cell.stage == TUNING:
        bound |= {"FACTORS": tuple(study.factors), "SEEDS": tuple(study.tuning_seeds or study.seeds[:1])}
    elif cell.stage == RUNS:
        bound["SEEDS"] = tuple(study.seeds)
        bound |= {} if learning_rate is None else {"LEARNING_RATE": float(learning_rate)}
    files, bindings = split_texts(texts, "Study")
    passed = [(name, text) for name, text in typed.bindings if name != "MODEL_DIR" and not name.startswith("Study.")]
    reserved = next((name for name, _ in (*bindings, *passed) if name in RESERVED), None)
    if reserved or "LEARNING_RATE" in dict(passed):
        raise UserError(f"{reserved or 'LEARNING_RATE'} is set, but the study sets it for each run; leave it out.")
    bindings += [*passed, *((name, repr(value)) for name, value in bound.items())]
    return GinFlags(tuple(files), tuple(bindings), typed.search_paths)
