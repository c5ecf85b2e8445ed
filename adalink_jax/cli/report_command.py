"""`adalink report`: the results of runs or of a study, as one page."""

import dataclasses
import os
import shlex

from adalink_jax.cli.arguments import option, plain_parser
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of
from adalink_jax.files.whole_file import write_text


def report(argv: list[str]) -> int:
    """`adalink report`."""
    parser = plain_parser(
        "report",
        "Write a report as one HTML file that needs no network. For a study (the folder of its results, Study.kept): fits and\n"
        "gaps against size. For any other folder of runs: their table, curves, a map of what the sweep varied, and sample\n"
        "predictions.",
        "adalink report docs/results/miniature --out miniature.html --markdown miniature.md --figures figures",
        option("folder", help="results of a study, or a folder of runs"),
        option("--out", required=True, metavar="FILE.html", help="the page"),
        option("--title", help="its heading"),
        option("--markdown", metavar="FILE.md", help="the tables, with links to --figures"),
        option("--latex", metavar="FILE.tex", help="the tables that have no figure, for booktabs"),
        option("--tables", metavar="FOLDER", help="each table as CSV, with all digits"),
        option("--figures", metavar="FOLDER", help="each figure as SVG and PDF, at page width"),
    )
    options = parser.parse_args(argv)
    for value, ending in ((options.out, ".html"), (options.markdown, ".md"), (options.latex, ".tex")):
        if value is not None and not value.endswith(ending):
            raise UserError(f"{value!r} must end in {ending}.")

    from adalink_jax import terminal
    from adalink_jax.experiments.scaling.cell_folder import holds_results, read_results
    from adalink_jax.reports import runs_report, scaling_report

    with terminal.progress() as show:
        command = shlex.join(["adalink", "report", *argv])
        show("reading the runs, and drawing")
        if holds_results(options.folder):
            page = scaling_report.make(read_results(options.folder), command)
        else:
            page = runs_report.make(options.folder, command)
        if options.title:
            page = dataclasses.replace(page, title=options.title)
        show("writing the page")
        texts = {options.out: page.html()}
        if options.markdown:
            start = os.path.dirname(options.markdown) or "."
            texts[options.markdown] = page.markdown(options.figures and os.path.relpath(options.figures, start))
        if options.latex:
            texts[options.latex] = page.latex()
        if options.tables:
            texts |= {
                os.path.join(options.tables, f"{part.name}.csv"): part.data.csv() for part in page.parts if part.data
            }
        for name, text in texts.items():
            path_of(name).parent.mkdir(parents=True, exist_ok=True)
            write_text(path_of(name), text)
        written = list(texts)
        if options.figures:
            show("writing the figures")
            names = page.write_figures(path_of(options.figures))
            written.append(f"{len(names)} figures in {options.figures}")
    print(f"Written: {', '.join(written)}.")
    return 0
