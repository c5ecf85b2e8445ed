"""What `conf.py` generates and rewrites: reference pages from the package, links that leave docs/, docstrings as reStructuredText."""

import ast
import contextlib
import importlib
import inspect
import io
import os
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Pages that are elsewhere in the repository -> their names in docs/_generated.
OUTSIDE = {
    "launch/README.md": "launching.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
# From the top down, as in tests/test_layers.py.
LAYERS = {
    "python_api": "The library without gin files: load, attach, fit, predict, save.",
    "serving": "Predictions in Python.",
    "interop": "Exports to, and comparisons with, PyTorch and transformers.",
    "reports": "Tables, statistics, fits, figures and pages of finished runs.",
    "experiments": "Sweeps, comparisons and scaling studies.",
    "launching": "Jobs for other machines.",
    "contract": "What every method must do.",
    "planning": "The real step compiled for other hardware.",
    "training": "State, step, loop, evaluation, checkpoints of runs, packs.",
    "data": "Tasks, your own files, features, vocabularies, metrics.",
    "checkpoints": "Base models and adapters as files; fingerprints.",
    "adapters": "Input adapters, layer adapters, banks, folding.",
    "models": "Backbones, the seam, decoding.",
    "parallel": "Processes, meshes, sharding rules.",
    "configuration": "gin: flags, files, checks.",
    "files": "Small files written whole, locks.",
}
WITHOUT_PUBLIC_IMPORT = {  # they need TensorFlow and seqio, or the library of a tracker
    "adalink_jax.data.seqio_tasks",
    "adalink_jax.data.seqio_source",
    *(f"adalink_jax.training.trackers.{name}_tracker" for name in ("wandb", "mlflow", "trackio")),
}
TITLE_OF_TABLE = re.compile(r"^\[([\w.]+\.csv)\]\(\1\)$", re.MULTILINE)


def write_all(folder: pathlib.Path) -> None:
    """Writes every generated page into `folder`; leaves files alone whose text is the same, so that rebuilds are quick."""
    pages = {"command_line.md": command_line(), "gin_macros.md": gin_macros(), "api.md": api_index()}
    pages |= {f"api_{layer}.md": api_page(layer, about) for layer, about in LAYERS.items()}
    pages |= {name: outside_page(path) for path, name in OUTSIDE.items()}
    folder.mkdir(exist_ok=True)
    for old in set(os.listdir(folder)) - pages.keys():
        (folder / old).unlink()
    for name, text in pages.items():
        file = folder / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def command_line() -> str:
    """`adalink --help` and the help of every command."""
    from adalink_jax.cli.main import COMMANDS, main

    def text_of(*argv: str) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*argv, "--help"])
        return out.getvalue().strip()

    os.environ["COLUMNS"] = "84"
    parts = [
        "# Command line",
        "What `adalink --help` and `adalink COMMAND --help` print.",
        f"```text\n{text_of()}\n```",
    ]
    parts += [f"## adalink {name}\n\n```text\n{text_of(name)}\n```" for name in COMMANDS]
    return "\n\n".join(parts) + "\n"


def macros_of(text: str) -> list[tuple[str, str, str]]:
    """`(name, default, comment)` of each macro that a gin file sets; a value may span lines."""
    out, lines = [], iter(text.splitlines())
    for line in lines:
        if not (match := re.match(r"([A-Z][A-Z0-9_]*) = (.*)", line)):
            continue
        name, value = match.groups()
        while any(value.count(a) > value.count(b) for a, b in ("()", "[]", "{}")):
            value += " " + next(lines).strip()
        value, _, comment = value.partition("  # ")
        out.append((name, re.sub(r"\s+", " ", value).strip(), comment.strip()))
    return out


def gin_macros() -> str:
    """Every macro of every shipped gin file, with its default, and each file's own introduction."""
    files = {p.relative_to(ROOT).as_posix(): p.read_text() for p in sorted((ROOT / "gin").rglob("*.gin"))}
    values: dict[str, dict[str, list[str]]] = {}
    for path, text in files.items():
        for name, value, _ in macros_of(text):
            values.setdefault(name, {}).setdefault(value, []).append(path)

    def code(value: str) -> str:
        short = value if len(value) <= 60 else value[:60] + "..."
        return "*required*" if value == "%gin.REQUIRED" else f"`{short}`".replace("|", "\\|")

    lines = [
        "# gin macros",
        "",
        "Set a macro with `--gin.NAME=value`, or in a gin file with `NAME = value`. A run fails before it compiles",
    ]
    lines += [
        "anything if it is given a macro that nothing uses.",
        "",
        "## Every macro",
        "",
        "| macro | default | set in |",
        "|---|---|---|",
    ]
    for name in sorted(values):
        for value, paths in values[name].items():
            shown = ", ".join(f"`{path.removeprefix('gin/')}`" for path in paths[:4])
            shown += f" and {len(paths) - 4} more" if len(paths) > 4 else ""
            lines.append(f"| `{name}` | {code(value)} | {shown} |")
    for path, text in files.items():
        head = re.match(r"(?:#.*\n)*", text)[0]
        about = "\n".join(line.removeprefix("#").removeprefix(" ") for line in head.splitlines()).strip()
        lines += ["", f"## {path}", "", "```text", about or "(no introduction)", "```"]
        if macros := macros_of(text):
            lines += ["", "| macro | default | |", "|---|---|---|"]
            lines += [
                f"| `{n}` | {code(v)} | {c.replace('|', chr(92) + '|').replace('*', chr(92) + '*')} |"
                for n, v, c in macros
            ]
    return "\n".join(lines) + "\n"


def _modules(layer: str) -> list[str]:
    folder = ROOT / "adalink_jax" / layer
    files = [
        file for file in sorted(folder.rglob("*.py")) if "templates" not in file.parts and file.name != "__init__.py"
    ]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]


def _summary(docstring: str | None) -> str:
    """The first paragraph, on one line."""
    return re.sub(r"\s+", " ", (docstring or "").strip().split("\n\n")[0])


def _public(module: str) -> list[str]:
    """The documented functions and classes that a module defines."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_") and ast.get_docstring(n)]


def _directive(home: str, name: str) -> str:
    value = getattr(importlib.import_module(home), name)
    kind = "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else "data"
    options = (
        "\n   :members:\n   :exclude-members: setup" if kind == "class" and not issubclass(value, BaseException) else ""
    )
    if kind == "data":
        return f"```{{eval-rst}}\n.. py:data:: {home}.{name}\n   :no-index:\n\n   ``{value!r:.200}``\n```"
    return f"```{{eval-rst}}\n.. auto{kind}:: {home}.{name}{options}\n   :no-index:\n```"


def api_index() -> str:
    """The page that lists the layers."""
    lines = [
        "# API",
        "",
        "One page per layer of the package; a layer imports only from layers below it. `import adalink_jax`",
    ]
    import adalink_jax

    lines += [
        "re-exports, on first use, " + ", ".join(f"`{n}`" for n in adalink_jax.__all__ if n != "__version__") + ".",
        "",
    ]
    lines += ["| layer | |", "|---|---|"]
    lines += [f"| [`adalink_jax.{layer}`](api_{layer}.md) | {about} |" for layer, about in LAYERS.items()]
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *(f"api_{layer}" for layer in LAYERS), "```", ""])


def api_page(layer: str, about: str) -> str:
    """The public names of a layer: those that its package exports, or else those of its modules."""
    home = f"adalink_jax.{layer}"
    package = importlib.import_module(home)
    parts = [f"# adalink_jax.{layer}", _summary(package.__doc__) or about]
    exported = getattr(package, "__all__", None)
    if exported:
        parts += ["## Public names", *(_directive(home, name) for name in exported)]
    parts.append("## Modules")
    for module in _modules(layer):
        docstring = ast.get_docstring(ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text()))
        short = module.removeprefix("adalink_jax.")
        if exported or module in WITHOUT_PUBLIC_IMPORT:
            parts.append(f"`{short}`\n: {_summary(docstring) or short}")
        else:
            parts += [f"### {short}", _summary(docstring), *(_directive(module, name) for name in _public(module))]
    return "\n\n".join(parts) + "\n"


def outside_page(path: str) -> str:
    """A page from outside docs/, with its links rewritten for docs/_generated."""
    return relinked((ROOT / path).read_text(), (ROOT / path).parent, DOCS / "_generated")


def relinked(text: str, source: pathlib.Path, page: pathlib.Path) -> str:
    """The text with links relative to the folder `source` rewritten for the folder `page`; a link to anything but a page becomes its path."""

    def link(match: re.Match) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        resolved = pathlib.Path(os.path.normpath(source / target))
        inside = resolved.relative_to(ROOT).as_posix()
        if inside in OUTSIDE:
            resolved = DOCS / "_generated" / OUTSIDE[inside]
        elif not resolved.is_relative_to(DOCS) or resolved.is_dir():
            return f"`{inside}`" if label.strip("`") == inside else f"{label} (`{inside}`)"
        return f"[{label}]({os.path.relpath(resolved, page)}{anchor})"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)", link, text)


def on_source_read(app, docname: str, source: list[str]) -> None:
    """Shows what commands need, tables of CSV files, and files outside docs/ by their path."""
    page = DOCS / docname
    if docname.startswith("_generated/") or (DOCS / f"{docname}.ipynb").exists():
        return
    text = re.sub(r"^<!-- not run: (.*?) -->$", r":::{container} needs\nNeeds \1.\n:::", source[0], flags=re.MULTILINE)
    text = TITLE_OF_TABLE.sub(
        lambda m: f"```{{csv-table}}\n:file: {m[1]}\n:header-rows: 1\n```\n\n[{m[1]}]({m[1]})", text
    )
    source[0] = relinked(text, page.parent, page.parent)


SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Invariant|Example|Examples|Note):\s*$")


def on_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code`; makes them reStructuredText, in place."""
    lines[:] = as_rst(lines)


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText: literal blocks for indented code and tables, blank lines around lists."""
    out: list[str] = []
    in_section = literal = False
    for line in _closed(lines):
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if literal:
            if not text or indent >= 4 or text.startswith("|"):
                out.append(line if indent or not text else f"    {line}")
                continue
            literal = False
            if out[-1].strip():
                out.append("")
        blank_before = not out or not out[-1].strip()
        if text and indent == 0:
            in_section = bool(SECTION.match(text))
        if text and not in_section and ((indent >= 4 and blank_before) or (indent == 0 and text.startswith("| "))):
            out += [*([] if blank_before else [""]), "::", "", line if indent else f"    {line}"]
            literal = True
            continue
        is_item = re.match(r"[-*] |\d+\. ", text)
        was_item = bool(out) and re.match(r"\s*([-*] |\d+\. )", out[-1])
        if text and not blank_before and is_item and not was_item:
            out.append("")
        if text and indent == 0 and not is_item and not blank_before and out[-1].startswith("  ") and not in_section:
            out.append("")
        out.append(line[:indent] + _inline(text))
    return out


def _closed(lines: list[str]) -> list[str]:
    """Code in backticks that runs over the end of a line, in two pieces."""
    out, is_open = [], False
    for line in lines:
        if is_open:
            line = line[: len(line) - len(line.lstrip())] + "`" + line.lstrip()
        is_open = bool(line.strip()) and line.count("`") % 2 == 1
        out.append(line + "`" if is_open else line)
    return out


def _inline(text: str) -> str:
    """Single backticks become literals; what reStructuredText would take for markup is escaped."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = part if part.startswith("``") else f"`{part}`"
            if re.match(r"\w", parts[i + 1]):
                parts[i] += "\\ "  # a literal ends before a letter
        else:
            part = re.sub(r"(?<!^)\*|^\*(?! )|\||(?<=\w)_(?!\w)", lambda m: "\\" + m[0], part.replace("\\", "\\\\"))
            parts[i] = re.sub(r"(?<=: )([A-Z])\.", r"\1\\.", part)  # "rank: R." would be a numbered list
    return "".join(parts)


def on_signature(app, what, name, obj, options, signature: str | None, annotation: str | None):
    """Leaves out the two fields that Flax adds to every module."""
    flax = r", parent: .*?_Sentinel object[^>]*>, name: str \| None = None"
    plain = lambda text: text and text.replace("jaxlib._jax.", "")
    return plain(re.sub(flax, "", signature) if signature else signature), plain(annotation)
