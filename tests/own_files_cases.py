"""Shared by the tests of the user's own files: small files, and a task over them."""

import io
import json

from PIL import Image

from adalink_jax.data import FileTask

LENGTHS = {"inputs": 24, "targets": 8}
GOOD = [(f"text {i}", "yes" if i % 2 else "no") for i in range(60)]


def csv_text(rows=GOOD, header="text,label", delimiter=","):
    return "".join(f"{line}\n" for line in (header, *(delimiter.join(row) for row in rows)))


def jsonl_text(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def picture(mode="RGB", size=(6, 5), form="PNG", **options):
    out = io.BytesIO()
    Image.new(mode, size, 90 if mode in ("L", "I;16", "I", "F") else None).save(out, form, **options)
    return out.getvalue()


def load(path, **settings):
    defaults = {"inputs": "{text}", "targets": "{label}", "vocabulary": "bytes"}
    return FileTask(data=settings.pop("data", str(path)), **(defaults | settings)).load("mine", LENGTHS)


def written(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def total(task):
    return sum(len(split) for split in task.splits.values())


def count_of(task, kind):
    return sum(finding.count for finding in task.findings if finding.kind == kind)


def photos(folder, name, content, rows=40):
    written(folder, f"photos/{name}", content)
    return written(folder, "a.csv", csv_text([(f"t{i}", name) for i in range(rows)], "text,photo"))
