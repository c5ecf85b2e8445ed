"""`adalink report`: what runs or a study found, as one page."""

import os
import shlex

from adalink_jax.cli.arguments import plain_parser
from adalink_jax.errors import UserError


def report(argv: list[str]) -> int:
    """`adalink report`."""
    parser = plain_parser(
        "report",
        "Write what was found as one HTML file that needs no network: of a study (the folder of its results, Study.kept) fits and\n"
        "gaps against size; of any other folder of runs their table, curves, a map of what the sweep varied, sample predictions.",
        "adalink report docs/results/miniature --out miniature.html --markdown miniature.md --figures figures",
    )
    parser.add_argument("folder", help="results of a study, or a folder that holds runs")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="the page")
    parser.add_argument("--title", help="its heading")
    parser.add_argument("--markdown", metavar="FILE.md", help="the tables, and links to --figures")
    parser.add_argument("--latex", metavar="FILE.tex", help="the tables of what has no figure, for booktabs")
    parser.add_argument("--figures", metavar="FOLDER", help="each figure as SVG and PDF, at the width of a page")
    options = parser.parse_args(argv)
    for value, ending in ((options.out, ".html"), (options.markdown, ".md"), (options.latex, ".tex")):
        if value is not None and not value.endswith(ending):
            raise UserError(f"{value!r} must end in {ending}.")

    import dataclasses

    from etils import epath

    from adalink_jax.experiments.scaling.cell_folder import holds_results, read_results
    from adalink_jax.reports import runs_report, scaling_report

    command = shlex.join(["adalink", "report", *argv])
    if holds_results(options.folder):
        page = scaling_report.make(read_results(options.folder), command)
    else:
        page = runs_report.make(options.folder, command)
    if options.title:
        page = dataclasses.replace(page, title=options.title)
    written = [options.out]
    _write(epath.Path(options.out), page.html())
    if options.markdown:
        _write(epath.Path(options.markdown), page.markdown(_beside(options.markdown, options.figures)))
        written.append(options.markdown)
    if options.latex:
        _write(epath.Path(options.latex), page.latex())
        written.append(options.latex)
    if options.figures:
        names = page.write_figures(epath.Path(options.figures))
        written.append(f"{len(names)} figures in {options.figures}")
    print(f"Written: {', '.join(written)}.")
    return 0


def _beside(file: str, folder: str | None) -> str | None:
    """A folder as links in a file name it."""
    return folder and os.path.relpath(folder, os.path.dirname(file) or ".")


def _write(path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
