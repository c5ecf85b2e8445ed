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


# As Hugging Face's `datasets` writes its data.
LABELS = {
    "info": {"features": {"text": {"dtype": "string"}, "label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}
}


def arrow_table(count=60, first=0):
    import pyarrow

    rows = {"text": [f"text {first + i}" for i in range(count)], "label": [i % 2 for i in range(count)]}
    return pyarrow.table(rows).replace_schema_metadata({"huggingface": json.dumps(LABELS)})


def write_arrow(path, table, form="stream"):
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    new = pyarrow.ipc.new_stream if form == "stream" else pyarrow.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return path


def save_to_disk(folder, shards=2, first=0):
    """The files that `datasets.Dataset.save_to_disk` writes."""
    names = [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        write_arrow(folder / name, arrow_table(60 // shards, first + i * 60))
    state = {"_data_files": [{"filename": name} for name in names], "_split": folder.name, "_format_type": None}
    written(folder, "state.json", json.dumps(state))
    written(folder, "dataset_info.json", json.dumps(LABELS["info"]))
    return tuple(f"{folder}/{name}" for name in names)
