"""Every form of data that `adalink init` reads: the same scenes of digits in each, through the commands that `init` prints, unedited.

    python benchmarks/own_forms.py [--out runs/own_forms] [--only NAME ...]

For each form: what `init` reports, the estimated and the real time and memory, and the scores of the frozen base, the adapter, the commonest
answer and the classifier that needs no model. About 20 minutes on two cores. Each form has a file, so rerunning the command resumes it. Writes
table.md to --out. `save_to_disk` needs Hugging Face's `datasets`, and is left out without it.
"""

import argparse
import csv
import json
import os
import pathlib
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
from PIL import Image
from rich.progress import Progress

from adalink_jax.data import digits

BASE = "bundled:pali_nano_instruct"
ROWS = 600
Row = dict[str, str]
ADALINK = [sys.executable, "-m", "adalink_jax"]


def scenes(folder: pathlib.Path, name: str = "digits_reverse") -> list[Row]:
    """Writes pictures to `folder/photos`; the rows name them."""
    composed = digits.compose(name, "train")
    (folder / "photos").mkdir(parents=True)
    rows = []
    for i in range(ROWS):
        pixels = np.round((composed["image"][i][..., 0] + 1) * 127.5).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
        rows.append(
            {"photo": f"photos/{i}.png", "question": str(composed["inputs"][i]), "answer": str(composed["targets"][i])}
        )
    return rows


def table(path: pathlib.Path, rows: list[Row], start: str = "", encoding: str = "utf-8", **how: object) -> None:
    """Writes rows as a CSV or TSV, behind `start`."""
    with path.open("w", encoding=encoding, newline="") as file:
        file.write(start)
        writer = csv.DictWriter(file, list(rows[0]), **how)  # pyright: ignore[reportArgumentType]
        writer.writeheader()
        writer.writerows(rows)


# --- the forms: each writes files into a folder, and returns what to type after `adalink init` ---


def comma(folder: pathlib.Path) -> list[str]:
    table(folder / "rows.csv", scenes(folder))
    return ["rows.csv"]


def tabs_and_quotes(folder: pathlib.Path) -> list[str]:
    table(folder / "rows.tsv", scenes(folder), delimiter="\t", quoting=csv.QUOTE_ALL)
    return ["rows.tsv"]


def excel_separator(folder: pathlib.Path) -> list[str]:
    table(folder / "rows.csv", scenes(folder), start="sep=;\r\n", delimiter=";")
    return ["rows.csv"]


def windows(folder: pathlib.Path) -> list[str]:
    rows = [{**row, "question": f"{row['question']}, s'il vous plaît"} for row in scenes(folder)]
    table(folder / "rows.csv", rows, encoding="cp1252")
    return ["rows.csv"]


def utf_16(folder: pathlib.Path) -> list[str]:
    table(folder / "rows.csv", scenes(folder), encoding="utf-16")
    return ["rows.csv"]


def missing_values(folder: pathlib.Path) -> list[str]:
    rows = [
        json.dumps({**row, "answer": float("nan") if i % 200 == 7 else row["answer"]})
        for i, row in enumerate(scenes(folder))
    ]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return ["rows.jsonl"]


def only_column(folder: pathlib.Path) -> list[str]:
    table(folder / "rows.csv", [{"photo": row["photo"], "word": row["answer"]} for row in scenes(folder)])
    return ["rows.csv"]


def halved_dev(folder: pathlib.Path) -> list[str]:
    rows = scenes(folder)
    table(folder / "train.csv", rows[:450])
    table(folder / "dev.csv", rows[450:])
    return ["train.csv"]


def workbook(folder: pathlib.Path) -> list[str]:
    import openpyxl

    rows, book = scenes(folder), openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for cells in (list(rows[0]), *(list(row.values()) for row in rows)):
        sheet.append(cells)
    book.save(folder / "rows.xlsx")
    return ["rows.xlsx"]


def nested_json(folder: pathlib.Path) -> list[str]:
    rows = [
        {
            "photo": row["photo"],
            "question": {"text": row["question"]},
            "answers": {"text": [row["answer"], row["answer"].replace(" ", "")]},
        }
        for row in scenes(folder)
    ]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return ["rows.json", "--lists=alternatives"]


def label_sets(folder: pathlib.Path) -> list[str]:
    rows = [
        json.dumps({"photo": row["photo"], "question": "which digits?", "labels": sorted(set(row["answer"].split()))})
        for row in scenes(folder)
    ]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return ["rows.jsonl", "--lists=labels"]


def numbers(folder: pathlib.Path) -> list[str]:
    rows = scenes(folder, "digits_read")
    values = [str(int(row["answer"].replace(" ", ""))) for row in rows]  # up to a hundred different ones
    question = {"question": "which number is it?"}
    table(
        folder / "rows.csv", [{"photo": row["photo"], **question, "value": value} for row, value in zip(rows, values)]
    )
    return ["rows.csv"]


def classes(folder: pathlib.Path) -> list[str]:
    for row in scenes(folder, "digits_largest"):
        place = folder / "pictures" / f"digit {row['answer']}"
        place.mkdir(parents=True, exist_ok=True)
        (folder / row["photo"]).rename(place / pathlib.Path(row["photo"]).name)
    return ["pictures"]


def metadata(folder: pathlib.Path) -> list[str]:
    rows = scenes(folder)
    table(
        folder / "photos" / "metadata.csv",
        [{"file_name": pathlib.Path(row["photo"]).name, "text": row["answer"]} for row in rows],
    )
    return ["photos"]


def columns(folder: pathlib.Path) -> pyarrow.Table:
    rows = scenes(folder)
    image = [{"bytes": (folder / row["photo"]).read_bytes(), "path": None} for row in rows]
    return pyarrow.table({"image": image, **{name: [row[name] for row in rows] for name in ("question", "answer")}})


def parquet(folder: pathlib.Path) -> list[str]:
    pyarrow.parquet.write_table(columns(folder), folder / "rows.parquet")
    return ["rows.parquet"]


def arrow(folder: pathlib.Path) -> list[str]:
    pyarrow.feather.write_feather(columns(folder), str(folder / "rows.arrow"), compression="uncompressed")
    return ["rows.arrow"]


def saved_to_disk(folder: pathlib.Path) -> list[str]:
    import datasets  # pyright: ignore[reportMissingImports]  # optional

    rows = [{**row, "photo": str(folder / row["photo"])} for row in scenes(folder)]
    datasets.Dataset.from_list(rows).cast_column("photo", datasets.Image()).save_to_disk(str(folder / "saved"))
    return ["saved"]


FORMS: dict[str, Callable[[pathlib.Path], list[str]]] = {
    "CSV": comma,
    "TSV with quotes": tabs_and_quotes,
    "CSV with sep=;": excel_separator,
    "cp1252": windows,
    "UTF-16": utf_16,
    ".jsonl with NaN": missing_values,
    "one column beside the picture": only_column,
    "train.csv and dev.csv": halved_dev,
    "Excel": workbook,
    "nested .json, alternatives": nested_json,
    "lists of labels": label_sets,
    "numbers": numbers,
    "folders of classes": classes,
    "images with metadata.csv": metadata,
    "Parquet with images": parquet,
    "Arrow with images": arrow,
    "save_to_disk": saved_to_disk,
}


def run(name: str, make: Callable[[pathlib.Path], list[str]], folder: pathlib.Path) -> dict:
    """Types what a person types, in `folder`; returns the row of the table."""
    folder.mkdir(parents=True)
    typed = make(folder)
    where = {"cwd": folder, "capture_output": True, "text": True, "env": {**os.environ, "COLUMNS": "200"}}
    said = subprocess.run([*ADALINK, "init", *typed, "--base", BASE, "--out", "task.gin"], **where)
    if said.returncode:
        raise SystemExit(f"{name}: init failed: {said.stderr.strip()}")
    text = said.stdout + said.stderr
    estimate = re.search(r"takes about ([\d.]+) GB of memory and about (a minute|[\d,]+ minutes)", text)
    (lines,) = re.findall(r"^  adalink (train .*\\\n.*)$", text, re.MULTILINE)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, time.monotonic()
    done = subprocess.run([*ADALINK, *shlex.split(lines.replace("\\\n", " "))], **where)
    seconds, most = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if done.returncode:
        raise SystemExit(f"{name}: train failed: {done.stderr.strip()[-500:]}")
    summary = json.loads((folder / "runs" / "task" / "summary.json").read_text(encoding="utf-8"))
    metric = summary["metric"]
    reported = [
        line
        for line in text.splitlines()
        if re.search(r"Override|--encoding|--lists|halved|are left out|is read as|names the delimiter|quotation", line)
    ]
    return {
        "form": name, "typed": " ".join(typed), "reported": reported, "metric": metric,
        "frozen": summary[f"frozen_{metric}"], "adapted": summary[f"adapted_{metric}"],
        "baselines": {of: scores[metric] for of, scores in summary["baselines"].items()},
        "nothing_learned": summary["nothing_learned"], "estimate": estimate.groups() if estimate else None,
        "minutes": seconds / 60, "gigabytes": most * 1024 / 1e9 if most > before else None,
    }  # fmt: skip


def markdown(rows: list[dict]) -> str:
    """The table."""
    lines = [
        "| form | metric | frozen | adapted | the commonest answer | a classifier | it said | minutes: estimated, real |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for row in rows:
        commonest, *other = row["baselines"].values()
        scores = (row["frozen"], row["adapted"], commonest, *other)
        cells = " | ".join(f"{score:.3f}" for score in scores)
        said = (row["nothing_learned"] or "").split(":")[0]
        lines.append(
            f"| {row['form']} | {row['metric']} | {cells} | {said} | {row['estimate'][1]}, {row['minutes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/own_forms"))
    parser.add_argument("--only", nargs="+", choices=FORMS, default=list(FORMS))
    options = parser.parse_args()
    rows = []
    with Progress() as bar:
        for name in bar.track(options.only):
            folder = options.out.absolute() / re.sub(r"\W+", "_", name).lower()
            result = folder.with_suffix(".json")
            if not result.exists():
                try:
                    result.write_text(json.dumps(run(name, FORMS[name], folder), indent=1) + "\n", encoding="utf-8")
                except ModuleNotFoundError as e:
                    bar.console.print(f"{name}: left out, since {e.name} is not installed")
                    continue
            rows.append(json.loads(result.read_text(encoding="utf-8")))
    text = markdown(rows)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
