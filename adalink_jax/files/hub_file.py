"""A file of a repository of the Hub, read by ranges where it is: no more is transferred than is read."""

import dataclasses
import functools
import types
from typing import Any


@dataclasses.dataclass(frozen=True)
class HubFile:
    """The part of `epath.Path` that reading safetensors takes.

    Attributes:
      path: `hf://OWNER/NAME[@revision]/FILE`.
    """

    path: str

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path

    def exists(self) -> bool:
        """Whether the repository has the file."""
        return self._files.exists(self.path)

    def stat(self) -> types.SimpleNamespace:
        """Its `length` in bytes."""
        return types.SimpleNamespace(length=self._files.info(self.path)["size"])

    def open(self, mode: str) -> Any:
        """The file, for reading bytes."""
        return self._files.open(self.path, mode, cache_type="none")

    @functools.cached_property
    def _files(self) -> Any:
        import huggingface_hub

        return huggingface_hub.HfFileSystem()
