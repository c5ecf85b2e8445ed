"""`adalink list`: what can be named in a command, one table per kind, read from the heads of the shipped gin files and the registries."""

import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

from adalink_jax import configuration
from adalink_jax.cli.arguments import option, plain_parser, table

Rows = list[tuple[str, ...]]
_MODEL = re.compile(
    r"(?!.*size file\s+includes).*(\d( M)? parameters|Public weights)", re.DOTALL
)  # not the head of a family
_PARAMETERS = re.compile(r"([\d.,]*\d(?: M)?) parameters")
_WEIGHTS = re.compile(r"(?:hf|gs)://[^\s,;)]*[^\s,;).]")
_NAMES = re.compile(r"MIXTURE_OR_TASK_NAME, one of\n(.*?)(?=\nOften|\Z)", re.DOTALL)


def list(argv: Sequence[str]) -> int:
    """`adalink list`."""
    parser = plain_parser(
        "list",
        "List what can be named in a command: shipped gin files, public weights, tasks, metrics; or the runs in a folder.",
        "adalink list adapters",
        option("kind", choices=(*_KINDS, "runs"), help="what to list"),
        option("folder", nargs="?", help="of `runs`: the folder that has them (runs)"),
    )
    options = parser.parse_args(argv)
    if options.folder is not None and options.kind != "runs":
        parser.error(f"only `adalink list runs` takes a folder, not {options.folder!r}")
    if options.kind == "runs":
        headings, rows, use = ("run", "state", "task", "metric"), _runs(options.folder or "runs"), None
    else:
        headings, make, use = _KINDS[options.kind]
        rows = make()

    from adalink_jax import terminal

    out = table(*headings, right={"parameters"})
    for row in rows:
        out.add_row(*row)
    terminal.console().print(out)
    if use:
        print(use)
    return 0


def _heads(folder: str) -> Iterator[tuple[pathlib.Path, str]]:
    """The shipped gin files of a folder, with the comment at the head of each, line by line."""
    for path in sorted((configuration.gin_root() / folder).glob("*.gin")):
        text = path.read_text(encoding="utf-8")
        yield path, re.sub(r"^# ?", "", text[: re.search(r"^(?!#)", text, re.MULTILINE).start()], flags=re.MULTILINE)  # pyright: ignore[reportOptionalMemberAccess]  # the empty end matches


def _sentence(head: str) -> str:
    """The first sentence of a head, on one line."""
    return re.split(r"\.?\s+Public weights|(?<!et al)\.(?:\s|$)", " ".join(head.split()))[0]


def _files(folder: str) -> Rows:
    return [(path.stem, _sentence(head)) for path, head in _heads(folder)]


def _models() -> Rows:
    rows, counts = [], {}
    for path, head in _heads("models"):
        counts[path.stem] = _PARAMETERS.search(head)
    for path, head in _heads("models"):
        if _MODEL.match(head):
            base = re.search(r"^include 'gin/models/(.*)\.gin'", path.read_text(encoding="utf-8"), re.MULTILINE)
            count = counts[path.stem] or (base and counts[base[1]])  # a model trained further has the sizes of its base
            text = re.sub(rf":? {_PARAMETERS.pattern}(,?)", lambda match: ":" if match[2] else "", _sentence(head))
            rows.append((path.stem, count[1] if count else "", text))
    return rows


def _bases() -> Rows:
    from adalink_jax.checkpoints.formats import BUNDLED, bundled_names

    training = {path.stem.removeprefix("pretrain_"): _sentence(head).split(": ")[-1] for path, head in _heads("runs")}
    rows: Rows = [(f"{BUNDLED}{name} ({training[name]})", "pali_nano") for name in bundled_names()]
    for path, head in _heads("models"):
        gated = " (gated)" if "(gated)" in head else ""
        rows += [(name + gated, path.stem) for name in dict.fromkeys(_WEIGHTS.findall(head))]
    return rows


def _tasks() -> Rows:
    rows: Rows = []
    for path, head in _heads("tasks"):
        names = _NAMES.search(head)
        text = re.sub(r" \(adalink_jax/[^)]*\)", "", _sentence(head))
        tasks = re.findall(r"[a-z]\w+", re.sub(r"\([^)]*\)", "", names[1])) if names else ["(your own)"]
        rows += [(name, path.stem, "" if i else text) for i, name in enumerate(tasks)]
    return rows


def _metrics() -> Rows:
    from adalink_jax.data.user_files.file_settings import METRICS

    return [(name, _sentence((function.__doc__ or "").split("\n")[0])) for name, function in METRICS.items()]


def _runs(folder: str) -> Rows:
    from adalink_jax.reports import results

    rows: Rows = []
    collected = results.collect(folder)
    for row, summary in zip(collected.table.to_pylist(), collected.summaries):
        metric = summary.get("metric")
        scores = [(split, row.get(f"{split}/{metric}")) for split in ("test", "validation")]
        shown = next((f"{metric} {score:.4f} ({split})" for split, score in scores if score is not None), "")
        task = summary.get("task") or row.get("DatasetConfig.mixture_or_task_name") or ""
        rows.append((row["run"], row["state"], str(task), shown))
    return rows


# kind -> the headings, what makes the rows, and how one of them is named in a command
_KINDS: dict[str, tuple[tuple[str, ...], Callable[[], Rows], str]] = {
    "models": (("model", "parameters", "what it is"), _models, "--gin_file=gin/models/MODEL.gin"),
    "bases": (("base", "model"), _bases, "--gin_file=gin/models/MODEL.gin --gin.INITIAL_CHECKPOINT_PATH=\"'BASE'\""),
    "adapters": (("adapter", "what it is"), lambda: _files("adapters"), "--gin_file=gin/adapters/ADAPTER.gin"),
    "tasks": (("task", "file", "what it is"), _tasks, "--gin_file=gin/tasks/FILE.gin --gin.MIXTURE_OR_TASK_NAME=\"'TASK'\""),
    "metrics": (("metric", "what it is"), _metrics, "of your own data: --gin.METRICS=\"('METRIC',)\" --gin.METRIC=\"'METRIC'\""),
    "meshes": (("mesh", "what it is"), lambda: _files("meshes"), "--gin_file=gin/meshes/MESH.gin"),
    "decodings": (("decoding", "what it is"), lambda: _files("decoding"), "--gin_file=gin/decoding/DECODING.gin; greedy without a file"),
}  # fmt: skip
