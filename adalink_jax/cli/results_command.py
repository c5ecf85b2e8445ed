"""`adalink results`: all runs below a folder as one table."""

import pathlib

from adalink_jax.cli.arguments import plain_parser, table_console


def results(argv: list[str]) -> int:
    """`adalink results`."""
    parser = plain_parser(
        "results",
        "Collect all runs below a folder, of `adalink train`, sweeps, packs, tuning and comparisons, into one table. The console\n"
        "shows the settings that differ and the scores; files have all. Runs that are not finished are rows too.",
        "adalink results runs/small --where RANK=4 --group LEARNING_RATE --out small.csv",
    )
    parser.add_argument("folder", help="a run's, a sweep's, or one that holds many")
    parser.add_argument(
        "--where", nargs="+", default=[], action="extend", metavar="NAME=VALUE", help="only runs with these settings"
    )
    parser.add_argument(
        "--group", nargs="+", default=[], action="extend", metavar="NAME",
        help="a row for each value of these: number of runs, mean and 95%% interval of each metric",
    )  # fmt: skip
    parser.add_argument(
        "--out", nargs="+", default=[], action="extend", metavar="FILE", help="write the table as .csv or .parquet"
    )
    options = parser.parse_args(argv)

    from adalink_jax.reports import results as study

    found = study.collect(options.folder).where(options.where)
    shown = found.grouped(options.group) if options.group else found.table
    for path in options.out:
        study.write(path, shown)
    finished = sum(state == study.DONE for state in found.table["state"].to_pylist())
    if options.group:
        columns = shown.column_names
    else:
        measured = [name for name in (*found.metrics, *study.MEASURED) if shown[name].null_count < shown.num_rows]
        columns = ["run", "state", *found.differing(), *measured]
    _print(shown.select(columns), f"{found.table.num_rows} runs in {options.folder}, {finished} finished")
    if options.out:
        print(f"Written to {', '.join(str(pathlib.PurePath(path)) for path in options.out)}.")
    return 0


def _print(table, title: str) -> None:
    from rich.table import Table

    out = Table()
    names = [name for name in table.column_names if not name.endswith((" low", " high"))]
    for name in names:
        out.add_column(name, justify="left" if name in ("run", "state") else "right", overflow="fold")
    for row in table.to_pylist():
        out.add_row(
            *(_cell(row, name) for name in names), style=None if row.get("state", "done") == "done" else "yellow"
        )
    print(title)
    table_console().print(out)


def _cell(row: dict, name: str) -> str:
    value = row[name]
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if name == "trained" else str(value)
    if "/" not in name:
        return f"{value:.4g}"
    low, high = row.get(f"{name} low"), row.get(f"{name} high")
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"
