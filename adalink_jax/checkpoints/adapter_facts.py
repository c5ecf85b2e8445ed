"""The facts that an adapter's file states beside its values: method, settings, base model, and how it was trained."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

UNVERIFIED = "so damage cannot be found: the file was written by PEFT or by version 0.1.0"
_OPTIONAL = ("task", "step", "metrics", "versions", "empty_input", "base_settings")


@dataclasses.dataclass(frozen=True)
class BaseReference:
    """The base model that an adapter was trained on.

    Attributes:
      name: the base model's name.
      fingerprint: the fingerprint of its weights; None where the file does not state it (PEFT's files).
      parent: of a quantised base model, the fingerprint of the one that it was made from; None for all others.
      precision: of a quantised base model, how it is stored ("int8", "int4/64"); None for all others.
      family: the name of its language model's family, by which the layers of a file in PEFT's layout are called; None where the file
        does not state it.
    """

    name: str
    fingerprint: str | None
    family: str | None = None
    parent: str | None = None
    precision: str | None = None

    @property
    def exact(self) -> str | None:
        """The fingerprint of the model as it was before anything was quantised."""
        return self.parent or self.fingerprint

    def to_json(self) -> dict[str, Any]:
        """The fields by name; the optional ones where they are known."""
        optional = ("family", "parent", "precision")
        return {key: value for key, value in vars(self).items() if value is not None or key not in optional}


@dataclasses.dataclass(frozen=True)
class AdapterFacts:
    """The `adalink` object of `adapter_config.json`.

    Attributes:
      method: the method, as `adapters.make_adapter` takes it.
      settings: the method's settings.
      base: the base model that it was trained on.
      task: the task or mixture that it was trained on.
      step: the step of training.
      metrics: scores, by name.
      versions: versions of the packages that trained it, by name.
      empty_input: the ids of an input without text: the beginning and end that its inputs had, such as those of a chat template.
      base_settings: part of the base model (`language`, `vision`, ...) -> the settings that decide its numbers and that shapes do not show,
        as in training; a checkpoint does not state all of them, and a model may switch some off.
      extra: further JSON-able facts, such as `version` (of this package, which wrote the file) or `written_by`.
    """

    method: str
    settings: Mapping[str, Any]
    base: BaseReference
    task: str | None = None
    step: int | None = None
    metrics: Mapping[str, Any] | None = None
    versions: Mapping[str, str] | None = None
    empty_input: Sequence[int] | None = None
    base_settings: Mapping[str, Mapping[str, Any]] | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "AdapterFacts":
        """The inverse of `to_json`; `facts` has at least `method`, `settings` and `base`."""
        extra = dict(facts)
        method, settings, base = extra.pop("method"), extra.pop("settings"), extra.pop("base")
        optional = {key: extra.pop(key) for key in _OPTIONAL if key in extra}
        fields = [field.name for field in dataclasses.fields(BaseReference)]
        return cls(
            method, settings, BaseReference(**{f: base[f] for f in fields if f in base}), **optional, extra=extra
        )

    def to_json(self) -> dict[str, Any]:
        """The facts that are known, by their keys in the file."""
        optional = {key: value for key in _OPTIONAL if (value := getattr(self, key)) is not None}
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "base": self.base.to_json(),
            **optional,
            **self.extra,
        }

    def other_inputs(self, path: str, empty_input: Sequence[int]) -> str | None:
        """How inputs differ from those that the adapter was trained on.

        Args:
          path: the adapter.
          empty_input: as the attribute, of the inputs that it is to work on.

        Returns:
          A sentence; None if they begin and end alike, or if the file does not state how those of training did.
        """
        if self.empty_input is None or list(self.empty_input) == list(empty_input):
            return None
        return (
            f"The adapter {path} was trained on inputs whose beginning and end are {list(self.empty_input)}, and this vocabulary's "
            f"are {list(empty_input)}; give the vocabulary of its run (with a chat template, 'chat:' stands before its path)."
        )

    def __getitem__(self, key: str) -> Any:
        """The fact by its key in the file, as for the plain dict that earlier versions returned."""
        return self.to_json()[key]

    def get(self, key: str, default: Any = None) -> Any:
        """As `__getitem__`; `default` for a fact that is not known."""
        return self.to_json().get(key, default)

    @property
    def verified(self) -> bool:
        """Whether the file states digests, with which all of it was compared when it was opened."""
        return "digests" in self.extra

    @property
    def summary(self) -> str:
        """Method and settings, for messages."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"{self.method} ({settings})"
