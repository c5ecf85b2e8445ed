"""A base model in memory, which several adapters share."""

import ast
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jax.sharding import Mesh

from adalink_jax import configuration, parallel
from adalink_jax.adapters import AdaptedModel
from adalink_jax.configuration import GinFlags
from adalink_jax.errors import UserError
from adalink_jax.serving.opening import Loaded, Opened, open_base
from adalink_jax.training.setup import Parameters, Setup, load_parameters
from adalink_jax.typed_values import shown

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LoadedBase:
    """A frozen base model in memory; `load_base` makes it.

    Attributes:
      path: where it was loaded from.
      flags: the part of the command line of `adalink train` that describes it.
      opened: its setup, without an adapter, and its vocabulary.
    """

    path: str
    flags: GinFlags
    opened: Opened

    @property
    def _loaded(self) -> Loaded:
        assert self.opened.loaded is not None  # `load_base` loads it
        return self.opened.loaded

    @property
    def parameters(self) -> Parameters:
        """All leaves, which are frozen, by name (`backbone/...`), with the base's name and fingerprint."""
        return self._loaded.parameters

    @property
    def mesh(self) -> Mesh:
        """Where the leaves are placed."""
        return self._loaded.mesh

    @property
    def rules(self) -> parallel.LogicalRules:
        """The mesh axes of the logical axes."""
        return self._loaded.rules

    @property
    def setup(self) -> Setup:
        """The model and its settings, without an adapter."""
        return self.opened.setup

    def with_adapter(self, adapter: nn.Module, seed: int, folder: str | None = None) -> Parameters:
        """All parameters with those of an adapter, as a run would start with them.

        Args:
          adapter: its module.
          seed: of a fresh adapter.
          folder: the adapter's files; None for a fresh one.

        Raises:
          UserError: for a method whose settings cannot be stored in a file.
          CheckpointError: for files that are not an adapter of this base.
        """
        setup = dataclasses.replace(
            self.setup,
            model=AdaptedModel(self.setup.model.backbone, adapter),
            trainable=("adapter/.*",),
            initial_adapter_path=folder,
            random_seed=seed,
        )
        with parallel.use_mesh(self.mesh, self.rules):
            return load_parameters(setup, self.mesh, self.rules, self.parameters)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in self.parameters.frozen.values())
        return f"LoadedBase({self.path!r}): {count:,} parameters, frozen"


def load_base(
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    vocabulary: str | None = None,
    settings: Settings | None = None,
) -> LoadedBase:
    """Loads a base model. Its architecture is found by its files.

    Args:
      path: a folder (native, Hugging Face, t5x), `hf://OWNER/NAME` or `bundled:NAME`.
      model: the base's file of gin/models, if none of them or several fit; or your own.
      vocabulary: 'bytes', a SentencePiece model, or a checkpoint's folder that has one; 'chat:' before a folder reads each input as a
        message of a user. None for the base's own.
      settings: further settings by their names in gin files, as `--gin.NAME=VALUE` sets them: `{"FROZEN_DTYPE": "bfloat16"}`,
        `{"make_mesh.model": 2, "logical_axis_rules.fsdp": True}`.

    Raises:
      UserError: for a base that no file of gin/models fits, an unknown setting, and a vocabulary that does not fit the model.
      CheckpointError: for a path that is not a base model, or a damaged file.
    """
    configuration.check_argument("path", path, str | os.PathLike)
    configuration.check_argument("model", model, str | None)
    configuration.check_argument("vocabulary", vocabulary, str | None)
    path = os.fspath(path)
    flags, opened = open_base(path, model, vocabulary, bindings_of(settings), "load_base(path, model='gin/models/...')")
    return LoadedBase(path, flags, opened)


def bindings_of(settings: Settings | None) -> tuple[tuple[str, str], ...]:
    """Settings as gin's flags have them.

    Raises:
      UserError: for a value that a gin file cannot hold.
    """
    configuration.check_argument("settings", settings, Mapping[str, Any] | None)
    texts = []
    for name, value in (settings or {}).items():
        try:
            if ast.literal_eval(repr(value)) != value:
                raise ValueError
        except (ValueError, SyntaxError) as e:
            raise UserError(
                f"`settings` has {name!r}, which is {shown(value)}; it must be what a gin file can hold: numbers, texts, None, lists "
                f"or mappings of these."
            ) from e
        texts.append((name, repr(value)))
    return tuple(texts)
