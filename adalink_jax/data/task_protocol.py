"""What the other layers know about a task: its examples, its vocabulary, and how its predictions are scored."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from adalink_jax.data.label_sets import LabelSets

Example = dict[str, Any]  # one tokenised example; `Task.examples` lists the keys
SIDES = ("inputs", "targets")
T_co = TypeVar("T_co", covariant=True)


class Task(Protocol):
    """A data set with splits `train`, `validation` and `test`.

    Attributes:
      name: a unique name.
      vocab_size: one more than the largest id in its examples.
      eos: the id that ends its targets.
      has_images: whether its examples have an `image` or `image_file`.
      labels: how its targets write sets of labels; None if they are no such sets.
    """

    name: str
    vocab_size: int
    eos: int
    has_images: bool
    labels: LabelSets | None

    @property
    def notes(self) -> Sequence[str]:
        """What a run reports about the data before it starts, one line per note."""
        ...

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[Example]:
        """Tokenised examples, `{"inputs": ids, "targets": ids, "image": ..., "inputs_pretokenized": str, ...}`.

        An `image` is a float32 array [height, width, channels] in [-1, 1], or the bytes of an image file of any size.
        Instead of it an example may have `image_file`, the path of an image file.

        Args:
          split: the split to read.
          seed: shuffles the examples; the order depends on nothing else. None keeps the order of the source.
          start: number of examples to skip.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Converts text to the ids of an input, with its beginning and end."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Converts predicted ids to text."""
        ...

    def score(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """Returns the metrics of the predictions for `examples`, which may come without their images."""
        ...


class Numbered(Protocol[T_co]):
    """What is read by number, at the same cost wherever it is."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> T_co: ...


@runtime_checkable
class NumberedTask(Protocol):
    """A task whose examples are read by their numbers, each at the same cost wherever it is.

    Attributes:
      digest: of all its examples, in processes that have the same; "" where only reading them would tell.
    """

    digest: str

    def size(self, split: str, seed: int) -> int:
        """The number of examples of a pass with this seed."""
        ...

    def dataset(self, split: str, seed: int | None) -> Numbered[Example]:
        """The examples of `Task.examples(split, seed)`; one is read when its number is asked for."""
        ...

    def examples_at(self, split: str, seed: int | None, numbers: Sequence[int]) -> Iterable[Example]:
        """The examples that `Task.examples(split, seed)` has at these numbers; no other is read.

        Args:
          split: the split to read.
          seed: see `Task.examples`.
          numbers: from 0, in any order; needs only `len` and `[]`.
        """
        ...


@runtime_checkable
class MeasuredTask(NumberedTask, Protocol):
    """A task that knows the lengths of its examples without reading them."""

    def token_counts(self, split: str, seed: int | None) -> Numbered[Sequence[int]]:
        """How many tokens each of `SIDES` has, of the examples of `dataset(split, seed)` before they are cut to the run's lengths."""
        ...
