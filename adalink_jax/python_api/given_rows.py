"""The rows that a caller gives: checked one by one, in any of their forms, and written as a table for `FileTask`.

A row has `inputs`, `targets` (a text, or a list, see `FileSettings.lists`), and `image` if the model takes images.
"""

import io
import json
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from adalink_jax.data.images import read_image
from adalink_jax.errors import UserError
from adalink_jax.files.whole_file import write_bytes
from adalink_jax.typed_values import shown

INPUTS, TARGETS, IMAGE = "inputs", "targets", "image"
FORMS = "a list of rows, a dict of columns, or a data set"
Row = dict[str, Any]


def checked_rows(rows: Any, name: str) -> list[Row]:
    """Rows as `{"inputs": text, "targets": text or list of texts, "image": bytes of an image file (or absent)}`.

    Args:
      rows: a sequence of mappings, such as a list of dicts or a `datasets.Dataset`; or a mapping of columns, such as a dict of lists or a
        pandas DataFrame.
      name: the argument's, for errors.

    Raises:
      UserError: names the first row and field that cannot be used.
    """
    out: list[Row] = []
    for number, row in enumerate(_mappings(rows, name)):
        place = f"{name}[{number}]"
        if not isinstance(row, Mapping):
            raise UserError(f"{place} is {shown(row)}; a row is a mapping with {INPUTS!r} and {TARGETS!r}.")
        missing = next((field for field in (INPUTS, TARGETS) if field not in row), None)
        if missing is not None:
            raise UserError(
                f"{place} has no {missing!r}; it has {', '.join(map(repr, row)) or 'nothing'}. Rename its columns."
            )
        checked = {INPUTS: _text(row[INPUTS], place, INPUTS), TARGETS: _targets(row[TARGETS], place)}
        if row.get(IMAGE) is not None:
            checked[IMAGE] = _image_file(row[IMAGE], place)
        elif out and IMAGE in out[0]:
            raise UserError(f"{place} has no {IMAGE!r}, and {name}[0] has one; give each row one, or none.")
        if out and (IMAGE in checked) != (IMAGE in out[0]):
            raise UserError(f"{place} has an {IMAGE!r}, and {name}[0] has none; give each row one, or none.")
        if not checked[INPUTS] and IMAGE not in checked:
            raise UserError(f"{place} has an empty {INPUTS!r}; fill it, or leave out the row.")
        out.append(checked)
    if not out:
        raise UserError(f"`{name}` has no rows; give {FORMS}.")
    return out


def _mappings(rows: Any, name: str) -> Iterator[Any]:
    if isinstance(rows, Mapping) or callable(getattr(rows, "keys", None)):
        columns = {column: list(rows[column]) for column in rows.keys()}  # noqa: SIM118  # a DataFrame's rows are not its keys
        lengths = {column: len(values) for column, values in columns.items()}
        if len(set(lengths.values())) > 1:
            shown_lengths = ", ".join(f"{column!r} {length:,}" for column, length in lengths.items())
            raise UserError(
                f"The columns of `{name}` have different lengths: {shown_lengths}; give one value for each row."
            )
        return (dict(zip(columns, values)) for values in zip(*columns.values()))
    if isinstance(rows, (str, bytes, os.PathLike)) or hasattr(rows, "__next__") or not hasattr(rows, "__iter__"):
        remedy = "; `adalink init` and `adalink train` read files" if isinstance(rows, (str, os.PathLike)) else ""
        raise UserError(f"`{name}` is {shown(rows)}; give {FORMS}{remedy}.")
    return iter(rows)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _text(value: Any, place: str, field: str) -> str:
    value = _plain(value)
    if not isinstance(value, (str, numbers.Real)) or value != value:
        raise UserError(f"{place} has {field!r}, which is {shown(value)}; it must be a text.")
    return str(value).strip()


def _targets(value: Any, place: str) -> str | list[str]:
    several = isinstance(value, (list, tuple, np.ndarray))
    texts = [_text(item, place, TARGETS) for item in value] if several else [_text(value, place, TARGETS)]
    if not texts or not all(texts):
        raise UserError(f"{place} has an empty {TARGETS!r}; fill it, or leave out the row.")
    return texts if several else texts[0]


def _image_file(image: Any, place: str) -> bytes:
    """The bytes of an image file."""
    if isinstance(image, Mapping):  # as `datasets` gives images that it does not decode
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes) and image:
        return image
    if isinstance(image, (str, os.PathLike)):
        try:
            return read_image(os.fspath(image))
        except UserError as e:
            raise UserError(f"{place}: {e}") from e
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    if not isinstance(image, Image.Image):
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else shown(image)
        raise UserError(
            f"{place} has {IMAGE!r}, which is {what}; it must be a path, a PIL image, or uint8 [height, width, channels]."
        )
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write_table(rows: Sequence[Row], folder: epath.Path, name: str) -> str:
    """Writes rows to `folder/NAME.jsonl`, or with images to `folder/NAME.parquet`; returns the path.

    Raises:
      UserError: if there are other rows already.
    """
    if IMAGE in rows[0]:
        import pyarrow as pa
        from pyarrow import parquet

        file, out = folder / f"{name}.parquet", io.BytesIO()
        several = any(isinstance(row[TARGETS], list) for row in rows)
        targets = [row[TARGETS] if isinstance(row[TARGETS], list) or not several else [row[TARGETS]] for row in rows]
        columns = {INPUTS: [row[INPUTS] for row in rows], TARGETS: targets, IMAGE: [row[IMAGE] for row in rows]}
        parquet.write_table(pa.table(columns), out)
        data = out.getvalue()
    else:
        file = folder / f"{name}.jsonl"
        data = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode(errors="surrogatepass")
    folder.mkdir(parents=True, exist_ok=True)
    if file.exists() and file.read_bytes() != data:
        raise UserError(f"{file} holds other rows, those of a run before; give another `model_dir`.")
    write_bytes(file, data)
    return str(file)
