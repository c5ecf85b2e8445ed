"""The runs of a sweep: products, zips, chains and lists of gin bindings and gin files.

A run's name depends only on its own settings: it stays the same when runs are added, dropped or reordered.
"""

import ast
import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin

from adalink_jax.configuration import GinFlags
from adalink_jax.errors import UserError
from adalink_jax.experiments.descriptions import parse_text
from adalink_jax.typed_values import PositiveFloat

SHORT = {"LEARNING_RATE": "lr", "RANDOM_SEED": "seed", "MIXTURE_OR_TASK_NAME": "task", "TRAIN_STEPS": "steps"}
LONGEST_VALUE, LONGEST_NAME = 32, 120
MEMBERS = {"LEARNING_RATE": "LEARNING_RATES", "RANDOM_SEED": "SEEDS", "RANK": "RANKS"}  # macro of a run -> of a pack


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Sweep:
    """The description of a sweep. Each description below is a dict, and means the product of its entries:

        'RANK': (4, 16)                 a macro or a parameter, and its values
        'list': {'LoRA': ('gin/adapters/lora.gin', 'RANK = 4'), ...}
                                        a name -> gin files and bindings; a tuple of them needs no names
        'zip': ({...}, {...})           the first runs of each description together, then the second ones, ...
        'chain': ({...}, {...})         the runs of each description, one description after the other
        'product': ({...}, {...})       every combination, for what one dict cannot express

    Attributes:
      runs: a description.
      drop: a description; a run that has all settings of one of its runs is left out.
      pack: some of `MEMBERS`; runs that differ in these alone share a program, as the members of one pack. A member's
        RANDOM_SEED is its DATA_SEED too.
      max_chip_hours: the most that all runs may take; `adalink sweep --run` needs --topology then, and stops them there.
      price: of one chip-hour, in any currency.
    """

    runs: Mapping
    drop: Mapping | None = None
    pack: Sequence[str] = ()
    max_chip_hours: PositiveFloat | None = None
    price: PositiveFloat | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """The settings of one run.

    Attributes:
      files: gin files, read after the common ones.
      bindings: `(name, literal)`.
      labels: what each entry adds to the run's name.
    """

    files: tuple[str, ...] = ()
    bindings: tuple[tuple[str, str], ...] = ()
    labels: tuple[str, ...] = ()

    def __add__(self, other: "Point") -> "Point":
        twice = {name for name, _ in self.bindings} & {name for name, _ in other.bindings}
        if twice:
            raise UserError(f"Sweep: {', '.join(sorted(twice))} is set twice in one run; let one entry set it.")
        return Point(self.files + other.files, self.bindings + other.bindings, self.labels + other.labels)

    def __str__(self) -> str:
        return ", ".join([*self.files, *(f"{name} = {literal}" for name, literal in self.bindings)])

    def has(self, other: "Point") -> bool:
        """Whether all settings of `other` are among these."""
        return set(other.files) <= set(self.files) and set(other.bindings) <= set(self.bindings)

    @property
    def name(self) -> str:
        """The name of a run with these settings, and of its folder."""
        name = "_".join(self.labels)
        return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 7]}_{_digest(name)}"


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run.

    Attributes:
      number: its place in the table, from 0.
      name: its name, and its folder's.
      point: its settings.
    """

    number: int
    name: str
    point: Point

    def flags(self, common: GinFlags, model_dir: str) -> GinFlags:
        """The flags of the command that makes it in the folder `model_dir`: the common ones, then its own files and bindings."""
        bindings = [binding for binding in common.bindings if not binding[0].startswith("Sweep.")]
        bindings += [*self.point.bindings, ("MODEL_DIR", repr(model_dir))]
        return dataclasses.replace(common, files=common.files + self.point.files, bindings=tuple(bindings))


def expand(sweep: Sweep, typed: Sequence[str] = ()) -> list[SweepRun]:
    """Lists the runs, in order.

    Args:
      sweep: the description.
      typed: names that the command line sets, which no run may set.

    Raises:
      UserError: if a description is not valid, there are no runs, two runs share a name, or a part of `drop` drops nothing.
    """
    selected = points(sweep.runs, "Sweep.runs")
    for unwanted in points(sweep.drop, "Sweep.drop") if sweep.drop is not None else ():
        remaining = [point for point in selected if not point.has(unwanted)]
        if len(remaining) == len(selected):
            raise UserError(f"Sweep.drop: no run (that is left) has {unwanted}.")
        selected = remaining
    if not selected:
        raise UserError("Sweep.drop leaves no run.")
    for name in (name for point in selected for name, _ in point.bindings):
        if name == "MODEL_DIR" or name in typed:
            reason = "each run has its own" if name == "MODEL_DIR" else "the command line sets it too"
            raise UserError(f"Sweep.runs sets {name}, but {reason}.")
    if sweep.pack:
        selected = _packed(selected, sweep.pack)
    named: dict[str, Point] = {}
    for point in selected:
        if point.name in named:
            raise UserError(
                f"Two runs are called {point.name} ({named[point.name]}; {point}); name them: "
                f"'list': {{'a name': ('NAME = VALUE',), ...}}."
            )
        named[point.name] = point
    return [SweepRun(number, name, point) for number, (name, point) in enumerate(named.items())]


def points(description: Any, where: str) -> list[Point]:
    """Expands a description (see `Sweep`).

    Args:
      description: a dict.
      where: its name in errors.

    Raises:
      UserError: if it is not valid.
    """
    if not isinstance(description, Mapping) or not description or not all(isinstance(key, str) for key in description):
        raise UserError(
            f"{where}: {description!r} is not a valid description; it takes a dict like {{'RANK': (4, 16)}}."
        )
    entries = [list(_entry(key, parts, where)) for key, parts in description.items()]
    return [_sum(combination) for combination in itertools.product(*entries)]


def _packed(selected: Sequence[Point], names: Sequence[str]) -> list[Point]:
    """One point per pack, in the order of the first of its runs."""
    unknown = [name for name in names if name not in MEMBERS]
    if isinstance(names, str) or unknown:
        raise UserError(f"Sweep.pack is {names!r}; it takes a tuple of some of {', '.join(MEMBERS)}.")
    unused = [name for name in names if not any(name in dict(point.bindings) for point in selected)]
    if unused:
        raise UserError(f"Sweep.pack names {unused[0]}, which no run sets.")
    if "RANDOM_SEED" in names and any("DATA_SEED" in dict(point.bindings) for point in selected):
        raise UserError(
            "Sweep.pack names RANDOM_SEED, which is a member's DATA_SEED too; let the runs set no DATA_SEED."
        )
    groups: dict[Point, list[dict[str, str]]] = {}
    for point in selected:
        member = {name: text for name, text in point.bindings if name in names}
        labels = {label for name, text in member.items() for label in _binding(name, text).labels}
        rest = Point(
            point.files,
            tuple(binding for binding in point.bindings if binding[0] not in member),
            tuple(label for label in point.labels if label not in labels),
        )
        groups.setdefault(rest, []).append(member)
    return [rest + _members(rest, members) for rest, members in groups.items()]


def _members(rest: Point, members: Sequence[Mapping[str, str]]) -> Point:
    values = {name: list(dict.fromkeys(member.get(name, "") for member in members)) for name in members[0]}
    combinations = {tuple(zip(values, combination)) for combination in itertools.product(*values.values())}
    if {tuple(member.items()) for member in members} != combinations:
        raise UserError(
            f"Sweep.pack: the runs {rest.name or 'of the sweep'} are not every combination of {', '.join(values)}, as the "
            f"members of a pack must be; pack fewer of them."
        )
    unpacked = {"LEARNING_RATES": "(%LEARNING_RATE,)", "SEEDS": "(%RANDOM_SEED,)", "RANKS": "None"}
    bindings = (unpacked | {MEMBERS[name]: f"({', '.join(texts)},)" for name, texts in values.items()}).items()
    return Point(bindings=tuple(bindings), labels=() if rest.labels else ("pack",))


def _sum(parts: Sequence[Point]) -> Point:
    return sum(parts, Point())


def _entry(key: str, parts: Any, where: str) -> Iterator[Point]:
    if key == "list" and isinstance(parts, Mapping) and parts:
        for name, texts in parts.items():
            label = _label(str(name)).strip("-+.")
            if not re.search("[a-z]", label):  # a number is a run's place in the table
                raise UserError(f"{where}: the name {name!r} needs a letter.")
            yield dataclasses.replace(_from_texts(texts, where), labels=(label,))
        return
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
        raise UserError(f"{where}: {key!r} takes a tuple of one or more, such as (1, 2), not {parts!r}.")
    if key == "list":
        yield from (_from_texts(texts, where) for texts in parts)
    elif key in ("product", "zip", "chain"):
        expanded = [points(part, where) for part in parts]
        if key == "zip" and len(set(map(len, expanded))) > 1:
            counts = ", ".join(str(len(part)) for part in expanded)
            raise UserError(f"{where}: the parts of a zip have {counts} runs; they must have equally many.")
        rows = {
            "product": itertools.product,
            "zip": zip,
            "chain": lambda *parts: ((p,) for part in parts for p in part),
        }
        yield from map(_sum, rows[key](*expanded))
    else:
        for value in parts:
            yield _binding(key, _literal(key, value, where))


def _from_texts(texts: str | Sequence[str], where: str) -> Point:
    """The point of some texts, each a gin file or a binding."""
    out = Point()
    for text in texts if isinstance(texts, (tuple, list)) else [texts]:
        parsed = parse_text(text, f"{where}: a list")
        if isinstance(parsed, str):
            out += Point(files=(parsed,), labels=(_label(pathlib.PurePath(parsed).stem),))
        else:
            name, literal = parsed
            out += _binding(name, _normal(literal))
    return out


def _binding(name: str, literal: str) -> Point:
    short = SHORT.get(name, name.split("/")[-1].split(".")[-1].lower())
    return Point(bindings=((name, literal),), labels=(f"{short}_{_label(literal) or 'empty'}",))


def _literal(name: str, value: object, where: str) -> str:
    text = repr(value)
    try:
        if ast.literal_eval(text) == value:
            return text
    except (ValueError, SyntaxError):
        pass
    raise UserError(f"{where}: the value of {name} is not a literal ({text}); write it in a list, as '{name} = ...'.")


def _normal(text: str) -> str:
    """Writes a literal as Python does, so that equal literals are equal texts; leaves a reference unchanged."""
    try:
        return repr(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def _label(text: str) -> str:
    """A part of a folder's name, valid on any system; a long one is cut and gets a digest."""
    plain = re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_.").lower()
    return plain if len(plain) <= LONGEST_VALUE else f"{plain[: LONGEST_VALUE - 7]}_{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
