"""`adalink results`: all runs below a folder as one table."""

import pathlib
from typing import TYPE_CHECKING, Any

from adalink_jax.cli.arguments import option, plain_parser, table, table_console

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console
    from rich.table import Table

UNLIMITED = 100_000  # characters of a line
CHOSEN_BY = ("runs", "validation/", "test/")  # columns that are shown though they are equal in all rows


def results(argv: list[str]) -> int:
    """`adalink results`."""
    parser = plain_parser(
        "results",
        "Collect all runs below a folder, of `adalink train`, sweeps, packs, tuning and comparisons, into one table. The console\n"
        "shows what differs, and lists what is equal in all rows; files have all columns. Unfinished runs are rows too.",
        "adalink results runs/small --where RANK=4 --group LEARNING_RATE --out small.csv",
        option("folder", help="the folder of a run or of a sweep, or one with many of them"),
        option(
            "--where",
            nargs="+",
            default=[],
            action="extend",
            metavar="NAME=VALUE",
            help="only runs with these settings",
        ),
        option(
            "--group",
            nargs="+",
            default=[],
            action="extend",
            metavar="NAME",
            help="one row per value of these: number of runs, mean and 95%% interval of each metric",
        ),
        option(
            "--out", nargs="+", default=[], action="extend", metavar="FILE", help="write the table as .csv or .parquet"
        ),
    )
    options = parser.parse_args(argv)

    from adalink_jax.reports import results as tables

    selected = tables.collect(options.folder).where(options.where)
    rows = selected.grouped(options.group) if options.group else selected.table
    for path in options.out:
        tables.write(path, rows)
    columns = rows.column_names if options.group else selected.summary_columns()
    print(f"{selected.table.num_rows} runs in {options.folder}, {selected.finished} finished")
    _print(rows.select(columns))
    for note in filter(None, (selected.untrained_note(), selected.learned_note(), selected.environments_note())):
        print(note)
    if options.out:
        print(f"Written to {', '.join(str(pathlib.PurePath(path)) for path in options.out)}.")
    return 0


def _print(rows: "pa.Table") -> None:
    """Prints the columns that differ, as many as fit, and lines with what is left out."""
    names = [name for name in rows.column_names if not name.endswith((" low", " high"))]
    cells = [{name: _cell(row, name) for name in names} for row in rows.to_pylist()]
    may_hide = [name for name in names[1:] if len(cells) > 1 and not name.startswith(CHOSEN_BY)]
    equal = [name for name in may_hide if len({row[name] for row in cells}) == 1]
    shown = [name for name in names if name not in equal]
    console = table_console()
    while len(shown) > 1 and _width(console, _table(cells, shown)) > console.width:
        shown.pop()
    console.print(_table(cells, shown))
    if equal:
        print(f"Equal in all rows: {', '.join(f'{name} {cells[0][name]}'.strip() for name in equal)}.")
    if hidden := [name for name in names if name not in (*shown, *equal)]:
        print(f"Too wide for this terminal: {', '.join(hidden)}; --out FILE.csv writes all columns.")


def _table(cells: list[dict[str, str]], names: list[str]) -> "Table":
    out = table(*names, right=set(names) - {"run", "state"})
    for row in cells:
        out.add_row(*(row[name] for name in names), style=None if row.get("state", "done") == "done" else "yellow")
    return out


def _width(console: "Console", out: "Table") -> int:
    """The characters of the table's lines if no cell is folded."""
    return console.measure(out, options=console.options.update(max_width=UNLIMITED)).maximum


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if name == "trained" else str(value)
    if "/" not in name:
        return f"{value:.4g}"
    low, high = row.get(f"{name} low"), row.get(f"{name} high")
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"
