"""The user's own data: tables, pictures and archives, damaged or built to be odd, through `adalink init`."""

import collections
import csv
import gzip
import io
import json
import pathlib
import struct
import tarfile
import zipfile
import zlib
from typing import Any

from hypothesis import strategies as st
from own_files_cases import GOOD, csv_text, jsonl_text, picture

from fuzz import damage
from fuzz.engine import Target
from fuzz.outcomes import CHANGED, EQUAL, REFUSED, UNPROTECTED, Outcome, Run, judge, run

OUT = "task.gin"
DATA_STATUSES = (0, 1)  # 1: the task is written, and a run would refuse its data


def _init(*argv: str, names: tuple[str, ...], equal: bool, check: Any = None) -> Outcome:
    def accepted(done: Run) -> Outcome:
        if not pathlib.Path(OUT).exists():
            return Outcome(CHANGED, "nothing is written", done.out)
        written = REFUSED if done.status == 1 else EQUAL if equal else UNPROTECTED
        return (check and check(done.out)) or Outcome(written, text=done.out)

    done = run("init", *argv, "--base", "bundled:pali_nano_instruct", "--quick", "--out", OUT)
    return judge(done, accepted, names, DATA_STATUSES)


# --- tables ---

LABELS = ("yes", "no", "maybe")
Rows = list[tuple[str, str]]


def _parquet(rows: Rows) -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": [a for a, _ in rows], "label": [b for _, b in rows]}), out)
    return out.getvalue()


def _delimited(rows: Rows, delimiter: str, quoting: int, end: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([("text", "label"), *rows])
    return out.getvalue()


def _as_dicts(rows: Rows) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in rows]


WRITERS = {
    "all_quoted.csv": lambda rows: _delimited(rows, ",", csv.QUOTE_ALL, "\r\n").encode(),
    "plain.csv": lambda rows: _delimited(rows, ",", csv.QUOTE_MINIMAL, "\n").encode(),
    "marked.csv": lambda rows: _delimited(rows, ",", csv.QUOTE_MINIMAL, "\r\n").encode("utf-8-sig"),
    "german.csv": lambda rows: _delimited(rows, ";", csv.QUOTE_MINIMAL, "\n").encode(),
    "a.jsonl": lambda rows: jsonl_text(_as_dicts(rows)).encode(),
    "raw.jsonl": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _as_dicts(rows)).encode(),
    "a.jsonl.gz": lambda rows: gzip.compress(jsonl_text(_as_dicts(rows)).encode()),
    "a.csv.gz": lambda rows: gzip.compress(_delimited(rows, ",", csv.QUOTE_MINIMAL, "\n").encode()),
    "a.parquet": _parquet,
}
ODD_TABLES = {
    "wide.csv": lambda: (",".join(f"c{i}" for i in range(100_000)) + "\n") * 3,
    "names.csv": lambda: csv_text(header="text,text"),
    "one_line.csv": lambda: "x" * 20_000_000,
    "deep.jsonl": lambda: "[" * 100_000 + "\n",
    "keys.jsonl": lambda: "".join(json.dumps({f"k{i}_{j}": 1 for j in range(300)}) + "\n" for i in range(300)),
    "number.jsonl": lambda: '{"text": ' + "9" * 10_000 + ', "label": "a"}\n',
    "bomb.csv.gz": lambda: gzip.compress(b"text,label\n" + b"a" * 400_000_000, 1),
    "lines.csv.gz": lambda: gzip.compress(b"text,label\n" + b"a,b\n" * 100_000, 1),
    "blank.csv": lambda: "\n" * 2_000_000,
    "quote.csv": lambda: 'text,label\n"' + "a,b\n" * 500_000,
    "utf16.csv": lambda: csv_text().encode("utf-16"),
    "latin.csv": lambda: csv_text([("caf\xe9", "yes")] * 50).encode("latin-1"),
    "old_mac.csv": lambda: csv_text().replace("\n", "\r"),
    "nul.csv": lambda: csv_text([("a\0b", "yes")] * 50),
    "header.csv": lambda: "text,label\n",
    "empty.csv": lambda: "",
    "markup.csv": lambda: csv_text([(f"[/INST] {i}", "[/x]" if i % 2 else "[bold red]") for i in range(60)]),
    "escape.csv": lambda: csv_text([(f"\x1b[31m {i}", "\x1b]0;x\x07" if i % 2 else "b") for i in range(60)]),
    "braces.csv": lambda: csv_text(header="{text},la{bel"),
    "table.csv": lambda: csv_text(header="text\x1b[31m,label[/x]"),
}  # fmt: skip


def _prepare_tables(folder: pathlib.Path) -> None:
    for name, write in WRITERS.items():
        place = folder / name
        place.mkdir()
        (place / name).write_bytes(write(GOOD))
    split = folder / "splits"
    split.mkdir()
    for part in ("train", "dev", "test"):
        (split / f"{part}.csv").write_text(csv_text([(f"{part} {text}", label) for text, label in GOOD]))
    tabs = folder / "a.tsv"
    tabs.mkdir()
    (tabs / "a.tsv").write_text(csv_text(header="text\tlabel", delimiter="\t"))


CELLS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.text(st.sampled_from(",;\t\"'\n\r \\\u2028\ufeff{}[]=|\x85\x1b0a"), max_size=12), damage.ODD_TEXTS.map(lambda text: text[:50]),
)  # fmt: skip


def _table_plans(originals: pathlib.Path) -> st.SearchStrategy[tuple[str, str, Any]]:
    damaged = st.sampled_from(sorted(path.name for path in originals.iterdir())).flatmap(
        lambda name: st.tuples(st.just("damaged"), st.just(name), damage.edits(originals / name))
    )
    rows = st.lists(st.tuples(CELLS, st.one_of(st.sampled_from(LABELS), CELLS)), min_size=3, max_size=12)
    written = st.tuples(st.just("written"), st.sampled_from(sorted(WRITERS)), rows)
    odd = st.tuples(st.just("odd"), st.sampled_from(sorted(ODD_TABLES)), st.none())
    return st.one_of(damaged, damaged, written, written, written, odd)


def _run_table(plan: tuple[str, str, Any], originals: pathlib.Path) -> Outcome:
    how, name, value = plan
    if how == "damaged":
        damage.damaged(originals / name, pathlib.Path("data"), value)
        path = "data" if name == "splits" else f"data/{name}"
        return _init(path, names=("data", "task", "split"), equal=not value)
    if how == "odd":
        content = ODD_TABLES[name]()
        pathlib.Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return _init(name, names=(name, "task", "split", "TARGETS", "INPUTS"), equal=False)
    # Rows of a usual kind before and after the odd ones, so that splits, header and columns are as in a real table.
    rows = [*GOOD[:30], *value, *GOOD[30:]]
    pathlib.Path(name).write_bytes(WRITERS[name](rows))
    given = ("--inputs", "{text}", "--targets", "{label}")
    return _init(name, *given, names=(name, "task"), equal=True, check=lambda out: _lost(rows))


def _lost(rows: Rows) -> Outcome | None:
    """Compares the rows of the written task with those that the table was written from; None if all are there or counted."""
    from adalink_jax import configuration
    from adalink_jax.data.user_files.file_task import FileTask, LoadedFileTask

    flags, _ = configuration.parse_flags([f"--gin_file={OUT}"])
    configuration.load(flags, require_all=False)
    task = LoadedFileTask(FileTask(), "task", {"inputs": 10_000, "targets": 10_000})
    texts = collections.Counter(
        (row["inputs"], row["references"][0]) for split in task.splits.values() for row in split
    )
    expected = collections.Counter((text.strip(), label.strip()) for text, label in rows)
    if extra := texts - expected:
        return Outcome(CHANGED, "a row is not the one that was written", repr([*extra][:3]))
    missing = (expected - texts).total()
    counted = sum(finding.count for finding in task.findings if finding.kind in ("unparsed", "empty", "shared"))
    if missing > counted:
        return Outcome(CHANGED, "rows are lost without being counted", repr([*(expected - texts)][:5]))
    return None


# --- pictures ---

FORMATS = {
    "a.png": ("RGB", "PNG"), "b.jpg": ("RGB", "JPEG"), "c.gif": ("L", "GIF"), "d.bmp": ("RGB", "BMP"), "e.webp": ("RGB", "WEBP"),
    "f.tiff": ("RGB", "TIFF"), "g.png": ("I;16", "PNG"), "h.png": ("RGBA", "PNG"), "i.jpg": ("CMYK", "JPEG"), "j.png": ("P", "PNG"),
}  # fmt: skip
SIDES = st.sampled_from((0, 1, 2, 7, 255, 4_000, 13_342, 20_000, 65_535, 2**31 - 1, 2**32 - 1))


def _prepare_pictures(folder: pathlib.Path) -> None:
    for label in ("cat", "horse"):
        (folder / "photos" / label).mkdir(parents=True)
        for name, (mode, form) in FORMATS.items():
            for i in range(3):
                (folder / "photos" / label / f"{i}{name}").write_bytes(picture(mode, (6 + i, 5 + len(label)), form))


def png(width: int, height: int, rows: int, color: int = 2) -> bytes:
    """A PNG whose header states its sizes, with so many rows of black."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    data = zlib.compress(bytes(min(1 + 3 * width, 10**6) * rows), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    """A GIF that states its sizes."""
    sizes = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    return b"GIF89a" + sizes + b"\x80\0\0\0\0\0\xff\xff\xff," + bytes(4) + sizes + b"\0\x02\x02D\x01\0;"


def bmp(width: int, height: int) -> bytes:
    """A BMP that states its sizes."""
    info = struct.pack("<IiiHHIIiiII", 40, width & 0x7FFFFFFF, height & 0x7FFFFFFF, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def _picture_plans(originals: pathlib.Path) -> st.SearchStrategy[tuple[str, Any]]:
    sizes = st.tuples(st.sampled_from(("png", "gif", "bmp")), SIDES, SIDES, st.sampled_from((0, 1, 200)))
    return st.one_of(
        st.tuples(st.just("damaged"), damage.edits(originals / "photos")),
        st.tuples(st.just("damaged"), damage.edits(originals / "photos")),
        st.tuples(st.just("sizes"), sizes),
        st.tuples(st.just("linked"), st.sampled_from(("/etc/passwd", "../../outside.png", "/dev/zero", "/", "."))),
    )


def _run_picture(plan: tuple[str, Any], originals: pathlib.Path) -> Outcome:
    how, value = plan
    photos = pathlib.Path("photos")
    damage.damaged(originals / "photos", photos, value if how == "damaged" else [])
    if how == "sizes":
        kind, width, height, rows = value
        content = png(width, height, rows) if kind == "png" else {"gif": gif, "bmp": bmp}[kind](width, height)
        (photos / "cat" / f"z.{kind}").write_bytes(content)
    if how == "linked":
        pathlib.Path("outside.png").write_bytes(picture())
        (photos / "cat" / "z.png").symlink_to(value)
    check = None
    if how == "linked" and value != ".":
        reported = lambda out: "z.png" in out and ("outside" in out or "link" in out)
        check = lambda out: Outcome(REFUSED if reported(out) else CHANGED, f"a link to {value} is followed")
    return _init("photos", names=("photos", "cat", "horse", "task"), equal=plan == ("damaged", []), check=check)


# --- archives ---

NAMES = st.one_of(
    st.sampled_from(("../a.png", "/etc/passwd", "a.png", "./a.png", "x/../a.png", "a.png/", "", "a\nb.png", "a\0b.png", "\x1b[31m.png",
                     "x" * 5000 + ".png", "é.png", "C:\\a.png", "a.png\\..\\b.png", "b.png")), damage.TEXTS,
)  # fmt: skip
KINDS = st.sampled_from(("file", "file", "link", "hard link", "pipe", "device", "folder"))
MEMBERS = st.lists(st.tuples(NAMES, KINDS, st.sampled_from(("a.png", "/etc/passwd", "../x", "loop"))), max_size=4)
ARCHIVES = ("a.zip", "a.tar")


def _prepare_archives(folder: pathlib.Path) -> None:
    for name in ARCHIVES:
        place = folder / name
        place.mkdir()
        _archive(place / name, [])


def _archive(path: pathlib.Path, members: list[tuple[str, str, str]]) -> None:
    """An archive of sound pictures, and of others."""
    sound = [(f"pictures/p{i}.png", picture(size=(6 + i, 5))) for i in range(24)]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in sound:
                file.writestr(name, content)
            for name, kind, target in members:
                info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "x")
                info.external_attr = {"link": 0o120777, "folder": 0o40755, "pipe": 0o10644}.get(kind, 0o100644) << 16
                file.writestr(info, target if kind != "file" else picture())
        return
    types = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE,
             "folder": tarfile.DIRTYPE}  # fmt: skip
    with tarfile.open(path, "w") as file:
        for name, content in [*sound, *((name, None) for name, _, _ in members)]:
            info = tarfile.TarInfo(name.encode("utf-8", "replace").decode().replace("\0", ""))
            if content is None:
                _, kind, info.linkname = next(member for member in members if member[0] == name)
                info.type, content = types.get(kind, tarfile.REGTYPE), picture()
            info.size = len(content) if info.type == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(content))


def _bomb(path: pathlib.Path) -> None:
    """An archive with a picture of 3 GB of zeros."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("pictures/p0.png", "w", force_zip64=True) as out,
    ):
        for _ in range(3000):
            out.write(bytes(10**6))


def _archive_plans(originals: pathlib.Path) -> st.SearchStrategy[tuple[str, str, Any]]:
    damaged = st.sampled_from(ARCHIVES).flatmap(
        lambda name: st.tuples(st.just("damaged"), st.just(name), damage.edits(originals / name))
    )
    built = st.tuples(st.just("built"), st.sampled_from(ARCHIVES), st.tuples(MEMBERS, NAMES))
    return st.one_of(*[damaged] * 10, *[built] * 10, st.just(("bomb", "a.zip", None)))


def _run_archive(plan: tuple[str, str, Any], originals: pathlib.Path) -> Outcome:
    how, name, value = plan
    wanted = [f"pictures/p{i % 24}.png" for i in range(240)]
    if how == "damaged":
        damage.damaged(originals / name, pathlib.Path("data"), value)
    else:
        pathlib.Path("data").mkdir()
        _bomb(pathlib.Path("data", name)) if how == "bomb" else _archive(pathlib.Path("data", name), value[0])
    if how == "built":
        wanted[5] = value[1].encode("utf-8", "replace").decode()
    rows = [(f"text {i}", photo) for i, photo in enumerate(wanted)]
    labelled = [{"text": text, "photo": photo, "label": LABELS[i % 3]} for i, (text, photo) in enumerate(rows)]
    pathlib.Path("rows.jsonl").write_text(jsonl_text(labelled), encoding="utf-8")
    # An absolute path, as a process opens the archive of a path once.
    images = ("--images", str(pathlib.Path("data", name).absolute()), "--image", "{photo}")
    argv = ("rows.jsonl", *images, "--inputs", "{text}", "--targets", "{label}")
    return _init(*argv, names=("data", name, "rows", "png"), equal=plan == ("damaged", name, []))


TARGETS = {
    "tables": Target(_prepare_tables, _table_plans, _run_table, ("damaged", "plain.csv", []), share=4),
    "pictures": Target(_prepare_pictures, _picture_plans, _run_picture, ("damaged", []), share=2),
    "archives": Target(_prepare_archives, _archive_plans, _run_archive, ("damaged", "a.zip", []), share=2),
}
