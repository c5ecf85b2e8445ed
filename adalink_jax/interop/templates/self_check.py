"""Checks that the installed transformers loads this folder with its adapter, by the logits of one input."""

import pathlib
import sys

import safetensors.torch
import torch
from transformers import AutoModelForSeq2SeqLM

folder = pathlib.Path(__file__).resolve().parent
check = safetensors.torch.load_file(folder / "self_check.safetensors")
model = AutoModelForSeq2SeqLM.from_pretrained(folder).float().eval()
with torch.no_grad():
    logits = model(input_ids=check["input_ids"], decoder_input_ids=check["decoder_input_ids"]).logits
distance = lambda other: float((logits - other).abs().max() / other.std())
print(
    f"from the adapted model {distance(check['logits']):.1e}, from the base alone {distance(check['base_logits']):.1e}"
)
if not distance(check["logits"]) < 0.1 * distance(check["base_logits"]):
    sys.exit("This folder was loaded WITHOUT its adapter, or not as it was written; see README.md.")
print("The adapter is in place.")
