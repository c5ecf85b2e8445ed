"""The formats in which `checkpoints.convert` writes base models. This module imports nothing, so that `--help` can list them."""

FORMATS = {
    "native": "model.safetensors and base_config.json",
    "hf": "a Hugging Face folder, as transformers loads it",
    "t5x": "a checkpoint_N of msgpack and zarr, as t5x restores it",
}
QUANTISED = ("int8", "fp8", "int4", "nf4")  # how `native` stores kernels, beside float32 and bfloat16
