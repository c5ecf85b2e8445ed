"""`adalink init` without a base: it proposes a public one by the task, and by this machine's memory and speed."""

import csv
import re
import types

import jax
import pytest
from hub_server import hub
from PIL import Image

from adalink_jax.cli import base_proposal
from adalink_jax.cli.base_proposal import Base
from adalink_jax.cli.main import main
from adalink_jax.data.vocabularies import train_sentencepiece
from adalink_jax.parallel.accelerators import Accelerator, Topology

WORDS = [f"a {word} film with {i} scenes" for i in range(60) for word in ("good", "bad", "slow", "bright")]


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """Runs it in a new folder with a table of texts; returns the status and the output."""
    monkeypatch.chdir(tmp_path)
    with open("films.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, text.split()[1]) for text in WORDS)])

    def run(*arguments):
        status = main(["init", "films.csv", "--out=task.gin", *arguments])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def test_a_text_task_gets_the_smallest_flan_whose_vocabulary_alone_is_downloaded(init, tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "google" / "flan-t5-small"
    train_sentencepiece(WORDS, 288, str(repository))
    (repository / "model.safetensors").write_bytes(b"not to be read")
    with hub(tmp_path / "hub", monkeypatch) as asked:
        status, said = init("--quick")
    assert status == 0, said
    assert re.search(r"hf://google/flan-t5-small\W+77 M\W+chosen", said) and "hf://google/t5gemma-s-s-ul2-it" in said
    assert "--gin_file=gin/models/flan_t5_small.gin" in said and "'hf://google/flan-t5-small'" in said
    assert "VOCABULARY = 'hf://google/flan-t5-small'" in (tmp_path / "task.gin").read_text()
    assert "RANK" not in said and not any("safetensors" in path for path in asked)


def test_pictures_whose_bases_are_all_gated_say_what_to_accept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i in range(20):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5)).save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png")
    monkeypatch.setattr(base_proposal, "FOR_PICTURES", base_proposal.FOR_PICTURES[:2])
    gated = [base.path.removeprefix("hf://") for base in base_proposal.FOR_PICTURES]
    with hub(tmp_path / "hub", monkeypatch, gated):
        assert main(["init", "photos", "--out=task.gin", "--quick"]) == 2
    assert not (tmp_path / "task.gin").exists()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "error: Every public base for this task is gated. hf://google/t5gemma-2-270m-270m is gated; accept its terms"
    )
    assert (
        "/google/t5gemma-2-270m-270m, then run hf auth login." in said and "--base bundled:pali_nano_instruct" in said
    )


def test_without_a_network_it_names_the_bundled_base_and_what_it_is_for(init, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, said = init("--quick")
    assert status == 2 and not (tmp_path / "task.gin").exists()
    assert "hf://google/flan-t5-small is not available" in said and "--base FOLDER" in said
    assert "for trying the commands on digits alone: --base bundled:pali_nano_instruct" in said


SMALL = Base("bundled:pali_nano_instruct", "gin/models/pali_nano.gin", "bytes", 337_536)
LARGE = Base("bundled:pali_nano_raw", "gin/models/pali_nano.gin", "bytes", 337_537)


def machine(memory, flops):
    chip = Accelerator("here", "cpu", memory, 1e12, flops, 1e9, 1, 1e9, 1, 1, ())
    return Topology("this machine", chip, "1", 1)


@pytest.mark.parametrize(
    "memory, flops, chosen",
    [(10**11, 1e12, LARGE), (10**11, 1e6, SMALL), (10**4, 1e12, None)],
    ids=["fast", "slow", "too small"],
)
def test_the_largest_that_fits_and_takes_an_hour_is_proposed(init, monkeypatch, memory, flops, chosen):
    monkeypatch.setattr(base_proposal, "FOR_TEXT", (SMALL, LARGE))
    monkeypatch.setattr(base_proposal, "free_machine", lambda: machine(memory, flops))
    status, said = init()
    if chosen is None:
        assert status == 2 and "more than is free here" in said
        return
    assert status == 0 and f"--gin.INITIAL_CHECKPOINT_PATH=\"'{chosen.path}'\"" in said
    estimate = re.search(r"takes about ([\d.]+) GB of memory and about ([\d,]+ minutes|a minute) on this machine", said)
    assert estimate and (estimate[2] == "a minute") == (chosen is LARGE)
    assert "--gin.RANK=16" in said and "--gin.KINDS=\"('text',)\"" in said  # a quarter of the width; no pictures


@pytest.mark.parametrize(
    "devices, batch, microbatches", [(1, 32, [1, 2, 4, 8, 16]), (8, 32, [1, 2, 4]), (3, 30, [1, 2]), (48, 48, [1])]
)
def test_the_batch_divides_over_the_devices_and_microbatches(init, tmp_path, monkeypatch, devices, batch, microbatches):
    planned = []

    def plan(draft, command, request):
        text = next((x for x in command if "MICROBATCHES" in x), "=1")
        planned.append((draft.batch_size, int(text.rpartition("=")[2])))
        return types.SimpleNamespace(fits=False)

    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    monkeypatch.setattr(base_proposal, "_plan", plan)
    status, said = init("--base=bundled:pali_nano_instruct", "--quick")
    assert status == 0, said
    assert planned == [(batch, number) for number in microbatches]
    assert f"BATCH_SIZE = {batch}\n" in (tmp_path / "task.gin").read_text()
    assert ("MICROBATCHES" in said) == (microbatches[-1] > 1)
