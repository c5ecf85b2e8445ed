"""The settings of a task over the user's own files."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from adalink_jax.data import metrics as scores
from adalink_jax.data.label_sets import SEPARATORS, LabelSets
from adalink_jax.data.user_files import row_checks
from adalink_jax.errors import UserError
from adalink_jax.typed_values import Fraction, NonNegativeInt, one_of

METRICS: dict[str, Callable[[Sequence, Sequence[Any]], dict[str, float]]] = {
    "accuracy": scores.accuracy,
    "macro_f1": scores.macro_f1,
    "balanced_accuracy": scores.balanced_accuracy,
    "exact_match": scores.exact_match,
    "squad": scores.squad,
    "anls": scores.anls,
    "vqa_accuracy": scores.vqa_accuracy,
    "captions": scores.captions,
    "rouge_l": scores.rouge_l,
    "pearson": scores.pearson,
    "spearman": scores.spearman,
    "rmse": scores.rmse,
    "mae": scores.mae,
    "label_sets": scores.label_sets,
}
OF_NUMBERS = ("pearson", "spearman", "rmse", "mae")
OF_CLASSES = ("macro_f1", "balanced_accuracy")
OF_LABELS = ("label_sets",)
ALTERNATIVES, LABELS = "alternatives", "labels"
ONE_REFERENCE = ("accuracy", *OF_CLASSES, *OF_NUMBERS)


@dataclasses.dataclass(frozen=True)
class FileSettings:
    """Which files to read, and how their rows become examples (`gin/tasks/files.gin`; `adalink init` writes such settings).

    Attributes:
      data: one or several files; or files by split (`train`, and optionally `validation` and `test`); or a folder of images
        with a subfolder per class, or per split and in it per class (its columns are `image`, `label`, `split`).
      inputs, targets: templates such as `question: {question}`, with names of columns.
      lists: what lists in the column of `targets` are. `alternatives`: a row has several references; one is drawn for each epoch, and
        predictions are scored against all. `labels`: all of them apply; the target is the labels sorted by name and joined, or
        `none` without labels, and is scored as a set. Both read the text of a list in a CSV, and `labels` splits other text.
        None: lists are alternatives, and text is text.
      label_separator: the character between two labels.
      vocabulary: the model's, as for `load_vocabulary`.
      image: a template for the name of each row's image, or a column that holds the bytes of images; None without images.
      images: the folder or archive (.zip, .tar) of the images; None for the folder of the table.
      columns: names of the columns of a CSV or TSV that has no header.
      delimiter: delimiter of a CSV or TSV; None for a comma (CSV) and a tab (TSV). A first line `sep=;` (Excel's) names another.
      quoted: whether quotation marks enclose the cells of a CSV or TSV, and are doubled in them, or are text; None: they enclose the
        cells of a CSV, and are text between tabs.
      encoding: of a CSV, TSV or JSON, such as `cp1252`; None for UTF-8, or UTF-16 with its mark.
      split: the column that names each row's split.
      group: a template; rows with the same text of it are in the same split. None: the image, or else the input.
      validation_share, test_share: shares of the training rows, chosen by a hash, if there are no files or rows for these
        splits.
      metrics: names in `METRICS`. With one of `OF_NUMBERS`, a row whose target is not a number does not parse.
      blank_image: give each example an empty image, to train an image-and-text model on text.
      drop_shared: drop from `train` what is in another split too, and from `validation` what is in `test`.
      limits: shares of rows that may be wrong, see `row_checks.LIMITS`.
      workers: processes that read, tokenise and decode images; 0 uses threads of this process.

    Raises:
      UserError: for an unknown metric, and for settings that contradict each other.
    """

    data: str | Sequence[str] | Mapping[str, str | Sequence[str]]
    inputs: str
    targets: str
    vocabulary: str
    image: str | None = None
    images: str | None = None
    columns: Sequence[str] | None = None
    delimiter: str | None = None
    quoted: bool | None = None
    encoding: str | None = None
    split: str | None = None
    group: str | None = None
    validation_share: Fraction = 0.1
    test_share: Fraction = 0.1
    metrics: Sequence[str] = ("accuracy",)
    lists: Annotated[str, one_of(ALTERNATIVES, LABELS)] | None = None
    label_separator: str = SEPARATORS[0]
    blank_image: bool = False
    drop_shared: bool = False
    limits: Mapping[str, Fraction] = dataclasses.field(default_factory=dict)
    workers: NonNegativeInt = 0

    def __post_init__(self):
        unknown = next((name for name in self.metrics if name not in METRICS), None)
        if unknown is not None or not self.metrics:
            raise UserError(f"METRICS has {unknown!r}; it takes some of {', '.join(METRICS)}.")
        if not (0 < self.validation_share and 0 < self.test_share and self.validation_share + self.test_share < 1):
            raise UserError("VALIDATION_SHARE and TEST_SHARE must be above 0, and below 1 together.")
        if self.images is not None and self.image is None:
            raise UserError("IMAGES is set, and IMAGE, which names each row's picture, is not.")
        if self.blank_image and self.image is not None:
            raise UserError("BLANK_IMAGE is for rows without pictures, and IMAGE is set; leave one out.")
        if (
            other := next((name for name in self.metrics if (name in OF_LABELS) != (self.lists == LABELS)), None)
        ) is not None:
            raise UserError(
                f"METRICS has {other!r}, and LISTS is {self.lists!r}; {' and '.join(OF_LABELS)} and LISTS = 'labels' go together."
            )
        LabelSets(self.label_separator)
        row_checks.check_limits(self.limits)

    @property
    def labels(self) -> LabelSets | None:
        """How a row's labels are written; None if targets are no sets of labels."""
        return LabelSets(self.label_separator) if self.lists == LABELS else None
