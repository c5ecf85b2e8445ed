"""What the runs of a sweep are: products, zips, chains and lists of gin bindings and gin files.

A run's name is made of its own settings alone: it stays when runs are added, dropped or moved.
"""

import ast
import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import gin

from adalink_jax.configuration import GinFlags
from adalink_jax.errors import UserError

SHORT = {"LEARNING_RATE": "lr", "RANDOM_SEED": "seed", "MIXTURE_OR_TASK_NAME": "task", "TRAIN_STEPS": "steps"}
LONGEST_VALUE, LONGEST_NAME = 32, 120
MEMBERS = {"LEARNING_RATE": "LEARNING_RATES", "RANDOM_SEED": "SEEDS", "RANK": "RANKS"}  # a run's -> those of a pack


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Sweep:
    """Which runs there are. A description is a dict, and stands for the product of its entries:

        'RANK': (4, 16)                 a macro or a parameter, and its values
        'list': {'LoRA': ('gin/adapters/lora.gin', 'RANK = 4'), ...}
                                        a name -> gin files and bindings; a tuple of them does without names
        'zip': ({...}, {...})           the first runs of each description together, the second ones, ...
        'chain': ({...}, {...})         the runs of each description, one after the other
        'product': ({...}, {...})       every combination, for what one dict cannot say

    Attributes:
      runs: a description.
      drop: a description; a run that has all settings of one of its runs is left out.
      pack: some of `MEMBERS`; runs that differ in these alone share a program, and become the members of one pack. A member's
        RANDOM_SEED is its DATA_SEED too.
    """

    runs: Mapping
    drop: Mapping | None = None
    pack: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Point:
    """Settings of one run.

    Attributes:
      files: gin files, read after the common ones.
      bindings: `(name, literal)`.
      labels: what each entry adds to the name.
    """

    files: tuple[str, ...] = ()
    bindings: tuple[tuple[str, str], ...] = ()
    labels: tuple[str, ...] = ()

    def __add__(self, other: "Point") -> "Point":
        twice = {name for name, _ in self.bindings} & {name for name, _ in other.bindings}
        if twice:
            raise UserError(f"Sweep: {', '.join(sorted(twice))} is set twice in one run; let one entry set it.")
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return Point(*(mine + yours for mine, yours in pairs))

    def has(self, other: "Point") -> bool:
        """Whether all settings of `other` are among these."""
        return set(other.files) <= set(self.files) and set(other.bindings) <= set(self.bindings)

    @property
    def name(self) -> str:
        """Of a run with these settings, and of its folder."""
        name = "_".join(self.labels)
        return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 7]}_{_digest(name)}"


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run.

    Attributes:
      number: its place in the table, from 0 on.
      name: its own, and its folder's.
      point: its settings.
    """

    number: int
    name: str
    point: Point

    def flags(self, common: GinFlags, model_dir: str) -> GinFlags:
        """Those of `adalink train`, or of a pack, in the folder `model_dir`: its files after the common ones, its bindings as well."""
        own = (*self.point.bindings, ("MODEL_DIR", repr(model_dir)))
        bindings = tuple(binding for binding in common.bindings if not binding[0].startswith("Sweep.")) + own
        return dataclasses.replace(common, files=common.files + self.point.files, bindings=bindings)


def expand(sweep: Sweep, typed: Sequence[str] = ()) -> list[SweepRun]:
    """The runs, in order.

    Args:
      sweep: what is described.
      typed: names that the command line sets, which no run may set.

    Raises:
      UserError: for a description that cannot be read, no runs, two of one name, and a `drop` that drops nothing.
    """
    found = points(sweep.runs, "Sweep.runs")
    for unwanted in points(sweep.drop, "Sweep.drop") if sweep.drop is not None else ():
        kept = [point for point in found if not point.has(unwanted)]
        if len(kept) == len(found):
            raise UserError(f"Sweep.drop: no run (that is left) has {_told(unwanted)}.")
        found = kept
    if not found:
        raise UserError("Sweep.drop leaves no run.")
    for name in (name for point in found for name, _ in point.bindings):
        if name == "MODEL_DIR" or name in typed:
            why = "each run has its own" if name == "MODEL_DIR" else "the command line sets it too"
            raise UserError(f"Sweep.runs sets {name}, but {why}.")
    if sweep.pack:
        found = _packed(found, sweep.pack)
    names: dict[str, Point] = {}
    for point in found:
        if point.name in names:
            raise UserError(
                f"Two runs are called {point.name} ({_told(names[point.name])}; {_told(point)}); give them names: "
                f"'list': {{'a name': ('NAME = VALUE',), ...}}."
            )
        names[point.name] = point
    return [SweepRun(number, name, point) for number, (name, point) in enumerate(names.items())]


def points(description: Mapping, where: str) -> list[Point]:
    """What a description stands for (see `Sweep`).

    Args:
      description: a dict.
      where: what to call it in an error.

    Raises:
      UserError: if it cannot be read.
    """
    if not isinstance(description, Mapping) or not description or not all(isinstance(key, str) for key in description):
        raise UserError(f"{where}: {description!r} is no description; it takes a dict like {{'RANK': (4, 16)}}.")
    entries = [list(_entry(key, parts, where)) for key, parts in description.items()]
    return [_sum(combination) for combination in itertools.product(*entries)]


def _packed(found: Sequence[Point], names: Sequence[str]) -> list[Point]:
    """A point for each pack, in the order of the first of its runs."""
    unknown = [name for name in names if name not in MEMBERS]
    if isinstance(names, str) or unknown:
        raise UserError(f"Sweep.pack is {names!r}; it takes a tuple of some of {', '.join(MEMBERS)}.")
    unused = [name for name in names if not any(name in dict(point.bindings) for point in found)]
    if unused:
        raise UserError(f"Sweep.pack names {unused[0]}, which no run sets.")
    if "RANDOM_SEED" in names and any("DATA_SEED" in dict(point.bindings) for point in found):
        raise UserError(
            "Sweep.pack names RANDOM_SEED, which is a member's DATA_SEED too; let the runs set no DATA_SEED."
        )
    groups: dict[Point, list[dict[str, str]]] = {}
    for point in found:
        mine = {name: text for name, text in point.bindings if name in names}
        labels = {label for name, text in mine.items() for label in _binding(name, text).labels}
        rest = Point(
            point.files,
            tuple(binding for binding in point.bindings if binding[0] not in mine),
            tuple(label for label in point.labels if label not in labels),
        )
        groups.setdefault(rest, []).append(mine)
    return [rest + _members(rest, members) for rest, members in groups.items()]


def _members(rest: Point, members: Sequence[Mapping[str, str]]) -> Point:
    values = {name: list(dict.fromkeys(member.get(name) for member in members)) for name in members[0]}
    wanted = itertools.product(*values.values())
    if {tuple(member.items()) for member in members} != {tuple(zip(values, combination)) for combination in wanted}:
        raise UserError(
            f"Sweep.pack: the runs {rest.name or 'of the sweep'} are not every combination of {', '.join(values)}, as a pack's "
            f"members are; pack fewer of them."
        )
    each = {"LEARNING_RATES": "(%LEARNING_RATE,)", "SEEDS": "(%RANDOM_SEED,)", "RANKS": "None"}  # what is not packed
    bindings = (each | {MEMBERS[name]: f"({', '.join(texts)},)" for name, texts in values.items()}).items()
    return Point(bindings=tuple(bindings), labels=() if rest.labels else ("pack",))


def _sum(parts: Sequence[Point]) -> Point:
    return sum(parts, Point())


def _entry(key: str, parts, where: str) -> Iterator[Point]:
    if key == "list" and isinstance(parts, Mapping) and parts:
        for name, texts in parts.items():
            label = _slug(str(name)).strip("-+.")
            if not re.search("[a-z]", label):  # a number is a run's place in the table
                raise UserError(f"{where}: the name {name!r} needs a letter.")
            yield dataclasses.replace(_parsed(texts, where), labels=(label,))
        return
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
        raise UserError(f"{where}: {key!r} takes a tuple of one or more, such as (1, 2), not {parts!r}.")
    if key == "list":
        yield from (_parsed(texts, where) for texts in parts)
    elif key in ("product", "zip", "chain"):
        each = [points(part, where) for part in parts]
        if key == "zip" and len(set(map(len, each))) > 1:
            raise UserError(
                f"{where}: the parts of a zip have {', '.join(map(str, map(len, each)))} runs; they need as many."
            )
        rows = {"product": itertools.product, "zip": zip, "chain": lambda *each: ((p,) for part in each for p in part)}
        yield from map(_sum, rows[key](*each))
    else:
        for value in parts:
            yield _binding(key, _literal(key, value, where))


def _parsed(texts: str | Sequence[str], where: str) -> Point:
    """From texts, each a gin file or a binding."""
    out = Point()
    for text in texts if isinstance(texts, (tuple, list)) else [texts]:
        name, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
        if equals:
            out += _binding(name.strip(), _normal(value.strip()))
        elif name.endswith(".gin"):
            out += Point(files=(name,), labels=(_slug(pathlib.PurePath(name).stem),))
        else:
            raise UserError(f"{where}: a list takes gin files and bindings like 'RANK = 4', not {text!r}.")
    return out


def _binding(name: str, literal: str) -> Point:
    short = SHORT.get(name, name.split("/")[-1].split(".")[-1].lower())
    return Point(bindings=((name, literal),), labels=(f"{short}_{_slug(literal) or 'empty'}",))


def _literal(name: str, value, where: str) -> str:
    text = repr(value)
    try:
        if ast.literal_eval(text) == value:
            return text
    except (ValueError, SyntaxError):
        pass
    raise UserError(f"{where}: {name} has a value that is no literal ({text}); write it in a list, as '{name} = ...'.")


def _normal(text: str) -> str:
    """A literal as Python writes it, so that equal ones are equal texts; a reference as it is."""
    try:
        return repr(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def _slug(text: str) -> str:
    """A part of a folder's name on any system; long ones are cut, and told apart by a digest."""
    plain = re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_.").lower()
    return plain if len(plain) <= LONGEST_VALUE else f"{plain[: LONGEST_VALUE - 7]}_{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _told(point: Point) -> str:
    return ", ".join([*point.files, *(f"{name} = {literal}" for name, literal in point.bindings)])
