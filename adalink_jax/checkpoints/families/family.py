"""What the loader must know of a family of models, and the list of the families that it knows.

Formats, the loader, and the commands reach a family only through `Family`. To add one, write a subclass in a module of its
own and pass an instance to `register`; this package's own are registered in `checkpoints/families/__init__.py`.
"""

import contextlib
import dataclasses
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from etils import epath

from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, transposed
from adalink_jax.models.backbone import Backbone
from adalink_jax.typed_values import wrong

LANGUAGE, VISION, QFORMER = "language", "vision", "qformer"  # parts of a model

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Translation:
    """A checkpoint in this package's terms.

    Attributes:
      leaves: by this package's names; tensors that the family does not know keep the file's, and the loader reports them.
      settings: part of the model -> fields of its configuration that the checkpoint states and that shapes do not show.
    """

    leaves: dict[str, Leaf]
    settings: dict[str, dict[str, Any]]


class Family:
    """A family of models, as files hold it. A subclass overrides what the family's files need.

    Attributes:
      name: the family's name in messages.
      part: the part of a model that `config` configures.
      config: the class of that configuration.
      backbone: the module of a whole model made of `config` alone; None for a part such as a vision tower.
      deciding: fields of `config` that decide the numbers and that shapes do not show.
      may_be_off: `deciding` fields that a model may set to None whatever its checkpoint states.
      implied: values of those `deciding` fields that t5x's files and older native ones do not state.
      encoder_table: Hugging Face's name of the encoder's embedding table, which a folded text adapter changes.
      hooked_kinds: the kinds of input that `adalink_torch.py` (`export --to torch`) can change in Hugging Face's model.
      peft_task: PEFT's `task_type` of the family's models.
      model_types: values of `model_type` in `config.json` of the Hugging Face folders that the family reads.
    """

    name: ClassVar[str]
    part: ClassVar[str]
    config: ClassVar[type]
    backbone: ClassVar[type[Backbone] | None] = None
    deciding: ClassVar[tuple[str, ...]] = ()
    may_be_off: ClassVar[tuple[str, ...]] = ()
    implied: ClassVar[Mapping[str, Any]] = {}
    encoder_table: ClassVar[str] = ""
    hooked_kinds: ClassVar[tuple[str, ...]] = ("text",)
    peft_task: ClassVar[str] = "SEQ_2_SEQ_LM"
    model_types: ClassVar[tuple[str, ...]] = ()

    def sizes(self, shapes: Shapes) -> dict[str, Any]:
        """Fields of `config` (and further facts that messages name) read off unscanned shapes; {} for another model's."""
        return {}

    def resized(
        self, leaves: Mapping[str, Leaf], wanted: Shapes, config: Any, source: Source
    ) -> tuple[dict[str, Leaf], str]:
        """Adapts leaves whose size may differ from the model's.

        Args:
          leaves: the leaves of the checkpoint.
          wanted: the model's shapes.
          config: the model's configuration of this part.
          source: the checkpoint.

        Returns:
          The leaves, and a note of what was changed, or "".
        """
        return dict(leaves), ""

    def from_hugging_face(
        self, tensors: Mapping[str, Leaf], config: Mapping[str, Any], folder: epath.Path, path: str
    ) -> Translation:
        """Translates a Hugging Face folder whose `model_type` is one of `model_types`.

        Args:
          tensors: by the file's names.
          config: the contents of `config.json`.
          folder: the folder, for further files.
          path: the folder as the user gave it, for errors.

        Raises:
          CheckpointError: for a setting that this package does not implement.
        """
        raise CheckpointError(f"{path} cannot be read: {self.name} models have no Hugging Face folder.")

    def name_from_hugging_face(self, tensor: str) -> str | None:
        """This package's name of a Hugging Face tensor; None if it is not one of this family's."""
        return None

    def name_in_hugging_face(self, name: str) -> str | None:
        """The name in the memory of `transformers`, which PEFT's files have; None if Hugging Face's model has no such tensor.

        `name_from_hugging_face` is its inverse, and reads names as files have them too.
        """
        return None

    def to_hugging_face(self, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
        """Tensors by Hugging Face's names.

        Raises:
          CheckpointError: for a leaf that Hugging Face's model does not have.
        """
        raise self._no_folder()

    def _renamed_tensors(
        self,
        leaves: Mapping[str, Leaf],
        is_transposed: Callable[[str], bool],
        name_in_files: Callable[[str], str | None] | None = None,
    ) -> dict[str, Leaf]:
        """`to_hugging_face` of a family whose tensors are leaves with another name, some with their axes reversed.

        `name_in_files` is needed where the files' names differ from those in memory, which `name_in_hugging_face` gives.
        """
        tensors = {}
        for name, leaf in leaves.items():
            tensor = (name_in_files or self.name_in_hugging_face)(name)
            if tensor is None:
                raise CheckpointError(
                    f"A Hugging Face {self.name} has no place for {name}; convert this model to native or t5x instead."
                )
            tensors[tensor] = transposed(leaf) if is_transposed(name) else leaf
        return tensors

    def hugging_face_config(self, source: Source) -> dict[str, Any]:
        """A `config.json` without its dtype, for a source that has none; `source.settings` states every `deciding` field.

        Raises:
          CheckpointError: for settings that Hugging Face's model does not have.
        """
        raise self._no_folder()

    def kept_config(self, config: Mapping[str, Any], source: Source) -> dict[str, Any]:
        """What is written of the `config.json` that a source has; all of it, unless some of it is not true of the leaves."""
        return dict(config)

    def folded(self, source: Source, embeddings: Mapping[str, Leaf]) -> tuple[Source, dict[str, Leaf]]:
        """A Hugging Face model with embeddings of its encoder's own.

        Args:
          source: the base.
          embeddings: the encoder's, by this package's names (`encoder/token_embedder/...`).

        Returns:
          The model to write, and tensors by Hugging Face's names that take the place of its own or stand beside them.

        Raises:
          CheckpointError: if Hugging Face's model has one table for all text.
        """
        if not self.encoder_table:
            raise CheckpointError(
                f"A Hugging Face {self.name} has one table for all text; fold the adapter into a native base (`adalink adapters fold`)."
            )
        return source, {self.encoder_table: embeddings["encoder/token_embedder/embedding"]}

    def from_t5x(self, leaves: Mapping[str, Leaf]) -> Translation | None:
        """Translates a t5x or Orbax checkpoint; None if its leaves have this package's names already or are another model's."""
        return None

    def from_big_vision(self, tensors: Mapping[str, Leaf], path: str) -> Translation | None:
        """Translates a `.npz` of big_vision; None if it is not one of this family's."""
        return None

    def _no_folder(self) -> CheckpointError:
        return CheckpointError(
            f"{self.name} models cannot be written as a Hugging Face folder; write a native base model."
        )


FAMILIES: list[Family] = []


@contextlib.contextmanager
def translating(path: str) -> Iterator[None]:
    """Turns the failure of a translation on arrays of other axes than its model's into one sentence.

    Raises:
      CheckpointError: names the checkpoint.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (IndexError, ValueError, ZeroDivisionError) as e:
        raise CheckpointError(f"{path} holds arrays that are not its model's ({str(e)[:120]}); copy it again.") from e


def renamed(name: str, names: Mapping[str, str]) -> str | None:
    """The new name, with the same number of the layer, which is `{}` in `names`; None if `names` has none."""
    number = re.search(r"(?<=\.block\.)\d+|(?<=\.layers\.)\d+|(?<=\.layer\.)\d+|(?<=/layers_)\d+", name)
    if name in names or number is None:
        return names.get(name)
    new = names.get(name.replace(number[0], "{}", 1))
    return new and new.format(number[0])


def depth(shapes: Shapes, stack: str) -> int:
    """How many layers a stack has in unscanned names."""
    return len({m[0] for name in shapes if (m := re.match(rf"{stack}/layers_\d+/", name))})


def equal(a: Leaf, b: Leaf) -> bool:
    """Whether two leaves have the same values."""
    return a.shape == b.shape and all(np.array_equal(a.read(block), b.read(block)) for block in a.blocks())


def one_id(value: Any) -> Any:
    """A token's id as files state it: `[1]` is 1; of several, a tuple."""
    if not isinstance(value, list):
        return value
    return value[0] if len(value) == 1 else tuple(value)


def stated_ids(stated: Mapping[str, Iterable[Any]], implied: Mapping[str, int], path: str) -> dict[str, Any]:
    """The ids that a model's configuration has.

    Args:
      stated: name -> what the places in `config.json` that may state it have, the first to be believed first; None is nothing.
      implied: the ids where none states it, by the same names.
      path: the folder, for the error.

    Returns:
      An id by each name of `implied`; of several that end an output, a tuple.

    Raises:
      CheckpointError: for several ids where there can be one.
    """
    ids = {}
    for name, usual in implied.items():
        value = ids[name] = one_id(next((x for x in stated[name] if x is not None), usual))
        if isinstance(value, tuple) and (name != "eos_token_id" or not value):
            raise CheckpointError(f"{path} has {name} {list(value)}; this package supports exactly one id.")
    return ids


def register(family: Family) -> None:
    """Adds a family; it takes precedence over the families that were registered before."""
    FAMILIES.insert(0, family)


def family_of_model_type(model_type: str | None) -> Family | None:
    """The family that reads Hugging Face folders of this `model_type`."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def family_of_shapes(shapes: Shapes) -> Family | None:
    """The family of language models that leaves of these unscanned names and shapes belong to."""
    return next((family for family in FAMILIES if family.sizes(shapes)), None)


def check_stated(settings: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """Refuses settings of a type that the configurations of their parts do not take.

    Args:
      settings: part of a model -> fields, as `Source.settings`; parts and fields that no family knows pass.
      path: the checkpoint, for the error.

    Raises:
      CheckpointError: names the setting.
    """
    for part, fields in settings.items():
        kinds = [_types_of_fields(family.config) for family in FAMILIES if family.part == part]
        for name, value in fields.items():
            problems = [wrong(value, kind[name]) for kind in kinds if name in kind]
            if problems and all(problems):
                raise CheckpointError(f"{path} states {name}, which {problems[0]}; copy or write it again.")


def _types_of_fields(config: Any) -> dict[str, Any]:
    """The types of a configuration's fields; a `ClassVar`, which all of its models have in common, is left out."""
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def family_of_config(config: Any) -> Family:
    """The family that a part of a model belongs to, by that part's configuration.

    Raises:
      CheckpointError: if no registered family has such a configuration.
    """
    for family in FAMILIES:
        if isinstance(config, family.config):
            return family
    raise CheckpointError(
        f"No family of models with the configuration {type(config).__name__} is registered; register it with "
        f"adalink_jax.checkpoints.families.register."
    )
