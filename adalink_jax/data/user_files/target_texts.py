"""The targets of a row: a text, alternatives, or a set of labels, by the setting LISTS."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax.data.label_sets import items_of
from adalink_jax.data.user_files.file_settings import ALTERNATIVES, FileSettings
from adalink_jax.data.user_files.table_rows import Table, cell
from adalink_jax.data.user_files.text_templates import Template, cell_text, is_missing
from adalink_jax.errors import UserError


class Targets:
    """Writes the targets of rows."""

    def __init__(self, settings: FileSettings, table: Table):
        """Raises:
        UserError: for a column that the table lacks, and for labels by more than one column.
        """
        self._template, self._labels = Template("TARGETS", settings.targets, table), settings.labels
        self._reads_texts = settings.lists == ALTERNATIVES
        columns = self._template.columns
        self._column = columns[0] if len(columns) == 1 else None
        if self._labels is not None and settings.targets != f"{{{self._column}}}":
            raise UserError(f"TARGETS is {settings.targets!r}; with LISTS = 'labels' it is one column: '{{COLUMN}}'.")

    def __call__(self, cells: Mapping[str, Any]) -> list[str]:
        """The references of a row: one text, or one for each alternative; none for a missing value.

        Raises:
          TypeError: for a cell that is neither text nor a number, and for labels that cannot be written.
        """
        value = None if self._column is None else cell(cells, self._column)
        if self._labels is not None:
            return self._set_of_labels(value)
        items = items_of(value) if self._reads_texts or isinstance(value, (list, tuple, np.ndarray)) else None
        if items is None or self._column is None:
            written = [self._template.text(cells)]
        else:
            written = [self._template.text({self._column: item}) for item in items]
        return [text for text in written if text]

    def _set_of_labels(self, value: Any) -> list[str]:
        assert self._labels is not None
        if (items := items_of(value)) is not None:
            return [self._labels.text([cell_text(item) for item in items])]
        text = "" if is_missing(value) else cell_text(value)
        return [self._labels.text(self._labels.split(text))] if text else []
