"""Small copies of published data sets in the layouts of TFDS and of their authors, and tasks over them."""

import io
import json
import pathlib
import tarfile
import zipfile

import gin
from PIL import Image

from adalink_jax.data import DatasetConfig, get_tasks

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
SHAPE = (8, 12, 3)
LENGTHS = {"inputs": 4, "targets": 4}


def tasks_of(module, name, folder, source="files", vocabulary="bytes", lengths=None):
    """`(task to train on, tasks to score)`, configured as the gin files do."""
    settings = {"data_dir": str(folder), "vocabulary": str(vocabulary), "source": source}
    for key, value in settings.items():
        gin.bind_parameter(f"PublishedData.{key}", value)
    lengths = lengths or {"inputs": 512, "targets": 64}
    return get_tasks(DatasetConfig(name, lengths, 2, f"adalink_jax.data.published.{module}"))


def text(examples, *names):
    """The named fields of examples, as text."""
    coding = lambda name: "latin-1" if name == "image" else "utf-8"
    rows = [tuple(example[name].decode(coding(name)) for name in names) for example in examples]
    return [row[0] for row in rows] if len(names) == 1 else rows


def whole(task, *names):
    """The named fields of every split: split -> rows."""
    return {split: text(task.examples(split), *names) for split in ("train", "validation", "test")}


def example(image, **more):
    return {"inputs": [5, 1], "targets": [6, 1], "inputs_pretokenized": "what is it", "image": image} | more


def picture(colour, size=(20, 10), kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_tfds(folder, name, features, rows):
    """A folder as TFDS prepares it; rows: split -> rows."""
    import tensorflow_datasets as tfds

    (folder / name / "1.0.2").mkdir(parents=True)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name.split("/")[0], config_name=name.partition("/")[2] or None, version=tfds.core.Version("1.0.2"),
            data_dir=str(folder / name / "1.0.2"), module_name="",
        ),
        features=tfds.features.FeaturesDict(features),
    )  # fmt: skip
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=100)
    writer.initialize_splits(list(rows))
    writer.add_examples(rows)
    writer.close_all()


def write_rte(folder):
    row = lambda i: f"{i}\tThe {i}.\tA {i}.\t{'entailment' if i % 2 else 'not_entailment'}\n"
    head = "index\tsentence1\tsentence2\tlabel\n"
    write(folder / "RTE" / "train.tsv", head + "".join(map(row, range(4))))
    write(folder / "RTE" / "dev.tsv", head + "".join(map(row, range(10, 30))))


def write_superglue(folder):
    entry = lambda i, **more: {"idx": i, "label": bool(i % 2)} | more
    passages = [
        {
            "idx": i,
            "passage": {
                "text": f"Text {i}.",
                "questions": [
                    {"question": "Q?", "idx": 7, "answers": [{"text": t, "label": 1, "idx": 0} for t in "ab"]}
                ],
            },
        }
        for i in range(8)
    ]
    queries = [
        {
            "idx": i,
            "passage": {"text": f"Bo met Al {i}", "entities": [{"start": 7, "end": 8}, {"start": 0, "end": 1}]},
            "qas": [{"query": "@placeholder", "idx": 9, "answers": [{"text": "Bo", "start": 0, "end": 1}]}],
        }
        for i in range(8)
    ]
    wic = [entry(i, word="w", sentence1=f"a {i}", sentence2="b") for i in range(8)]
    for name, rows in (("MultiRC", passages), ("ReCoRD", queries), ("WiC", wic)):
        for file in ("train", "val"):
            write(folder / name / f"{file}.jsonl", "\n".join(map(json.dumps, rows)) + "\n")


def write_vqa(folder, prefix=""):
    for part, images in (("train2014", (1, 2)), ("val2014", range(10, 22))):
        ask = [{"question_id": 10 * i + j, "image_id": i, "question": f"what  is {i}?"} for i in images for j in (0, 1)]
        people = ["no", "yes", "yes", *["maybe"] * 7]
        said = [{"answer": "yes" if i < 2 else x, "answer_id": i} for i, x in enumerate(people)]
        answer = [{"question_id": q["question_id"], "image_id": q["image_id"], "answers": said} for q in ask]
        write(folder / f"{prefix}OpenEnded_mscoco_{part}_questions.json", {"questions": ask})
        write(folder / f"{prefix}mscoco_{part}_annotations.json", {"annotations": answer})
        for i in images:
            write(folder / part / f"COCO_{part}_{i:012d}.jpg", picture((i, i, i), kind="JPEG"))


def write_free(folder):
    zipped = lambda names: _zip({name: picture((i, 0, 0), (6, 6)) for i, name in enumerate(names)})
    for part, n in (("train", 30), ("test", 4)):
        write(folder / f"vqa_easy/{part}_questions.json", [["what colour?", "red", i] for i in range(n)])
        write(folder / f"vqa_easy/{part}_images.zip", zipped([f"{i}.png" for i in range(n)]))
    names = [f"image{i}" for i in range(1, 33)]
    asked = [f"what is {x} the {name} ?\nbook, white_lamp" for name in names for x in ("in", "behind the table in")]
    write(folder / "vqa_daquar/all_qa_pairs.txt", "\n".join(asked) + "\n")
    write(folder / "vqa_daquar/train_images_list.txt", "\n".join(names[:30]))
    write(folder / "vqa_daquar/test_images_list.txt", "\n".join(names[30:]))
    write(folder / "vqa_daquar/images.zip", zipped([f"{name}.jpg" for name in names]))
    rows = [
        f"{i}.jpg\t{part}\tb\tA picture of {i}.\tmore" for i, part in enumerate(["train", "train", "valid", "test"])
    ]
    write(folder / "caption_openstax/captions.tsv", "\n".join(["image\tsplit\tbook\talt\tfigure_caption", *rows]))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as file:
        for i in range(4):
            content = picture((i, 0, 0), kind="JPEG")
            member = tarfile.TarInfo(f"{i}.jpg")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    write(folder / "caption_openstax/images.tar", packed.getvalue())


def _zip(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return packed.getvalue()
