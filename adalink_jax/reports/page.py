"""A report and its parts, written as one HTML file that needs no network, as Markdown, LaTeX and vector figures.

A part is a title, some sentences, a table or a figure; each carries the command that reproduces it, and its data.
"""

import base64
import csv
import dataclasses
import io
import math
import re
from collections.abc import Callable, Sequence
from importlib import resources

import jinja2
from etils import epath
from matplotlib.figure import Figure

from adalink_jax.experiments.descriptions import slug
from adalink_jax.reports import style
from adalink_jax.reports.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, whose cells are texts, numbers, `Estimate`s or None."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def texts(self) -> list[list[str]]:
        """The cells as texts for people."""
        return [[_text(cell) for cell in row] for row in self.rows]

    def csv(self) -> str:
        """The table as CSV, with all digits; an `Estimate` takes three columns."""
        columns = range(len(self.columns))
        widths = [3 if any(isinstance(row[i], Estimate) for row in self.rows) else 1 for i in columns]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        headings = [(name, f"{name} low", f"{name} high") for name in self.columns]
        known = lambda number: None if math.isnan(number) else number
        parts = lambda cell: (
            (cell.value, known(cell.low), known(cell.high)) if isinstance(cell, Estimate) else (cell, None, None)
        )
        for line in (headings, *(map(parts, row) for row in self.rows)):
            writer.writerow(x for cells, width in zip(line, widths) for x in cells[:width])
        return out.getvalue()


@dataclasses.dataclass(frozen=True)
class Part:
    """A section.

    Attributes:
      title: its heading.
      text: sentences below the heading.
      data: its numbers, shown as a table if there is no figure.
      figure: drawn from `data`.
      pictures: PNG files, name -> bytes.
    """

    title: str
    text: str = ""
    data: Table | None = None
    figure: Figure | None = None
    pictures: dict[str, bytes] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its files."""
        return slug(self.title)

    @property
    def link(self) -> str:
        """The data as a URL."""
        csv_text = "" if self.data is None else self.data.csv()
        return f"data:text/csv;base64,{base64.b64encode(csv_text.encode()).decode()}"


@dataclasses.dataclass(frozen=True)
class Report:
    """A report: its heading, the command that reproduces it, a summary, and its parts."""

    title: str
    command: str
    summary: str
    parts: Sequence[Part]

    def html(self) -> str:
        """The report as one HTML page."""
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        source = (resources.files("adalink_jax") / "assets" / "report.html.jinja").read_text(encoding="utf-8")
        show = {"svg": style.svg, "embedded": style.embedded, "numeric": _numeric}
        return environment.from_string(source).render(report=self, **show)

    def markdown(self, figures: str | None = None) -> str:
        """The report as Markdown, with links to figures in the folder `figures`."""
        out = [f"# {self.title}", self.summary, f"    {self.command}"]
        for part in self.parts:
            out += [f"## {part.title}", *([part.text] if part.text else [])]
            if part.figure is not None and figures:
                out.append(f"![{part.title}]({figures}/{part.name}.svg)")
            elif part.data is not None:
                out.append(_markdown(part.data))
        return "\n\n".join(filter(None, out)) + "\n"

    def latex(self) -> str:
        """The tables, for a document that uses booktabs."""
        return "\n".join(_latex(part, part.data) for part in self.parts if part.data and part.figure is None)

    def write_figures(self, folder: epath.Path) -> list[str]:
        """Writes each figure as SVG and PDF, at page width; returns the files' names."""
        folder.mkdir(parents=True, exist_ok=True)
        figures = {f"{part.name}.{kind}": part.figure for part in self.parts if part.figure for kind in ("svg", "pdf")}
        for name, figure in figures.items():
            style.save(figure, folder / name)
        return list(figures)


def _text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"


def _numeric(table: Table, column: int) -> bool:
    return all(row[column] is None or isinstance(row[column], int | float | Estimate) for row in table.rows)


def _markdown(table: Table) -> str:
    sides = ["---:" if _numeric(table, i) else "---" for i in range(len(table.columns))]
    lines = [table.columns, sides, *table.texts()]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split("\n"))


def _latex(part: Part, table: Table) -> str:
    sides = "".join("r" if _numeric(table, i) else "l" for i in range(len(table.columns)))
    row: Callable[[Sequence[str]], str] = lambda cells: " & ".join(map(_escaped, cells)) + r" \\"
    body = "\n".join(map(row, table.texts()))
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{_escaped(part.title)}. {_escaped(part.text)}}}\n\\begin{{tabular}}{{{sides}}}\n"
        f"\\toprule\n{row(table.columns)}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[&%$#_{}\\~^]", lambda match: special.get(match[0], "\\" + match[0]), text)
