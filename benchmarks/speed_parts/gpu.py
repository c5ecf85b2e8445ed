"""T5-large and T5-XL in bfloat16 on one GPU, 512 tokens in and 128 out: AdaLink and LoRA, beside PEFT's LoRA and AdaLink in PyTorch.

The batch is the largest power of two of which the step fits. An MFU counts 4 FLOPs a parameter and token, attention included: the
FLOPs of the step's own matrix products, without those that are computed again.
"""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.speed_parts import theirs
from benchmarks.speed_parts.work import Model

INPUTS, TARGETS, TIMED = 512, 128, 10
MODELS = {
    "T5 large": Model(emb_dim=1024, num_heads=16, mlp_dim=2816, layers=24),
    "T5 XL": Model(emb_dim=2048, num_heads=32, mlp_dim=5120, layers=24),
}
METHODS = ("ours adalink", "ours lora", "torch adalink", "peft lora")
# Sequences per second on one H100: NVIDIA's published full pre-training (fp8), and the goals for adapters.
PUBLISHED = {"T5 large": 158.7, "T5 XL": 50.4}
WANTED = {"T5 large": 303, "T5 XL": 83}


def device() -> str | None:
    """The GPU's name; None without one."""
    import jax

    return jax.devices()[0].device_kind if jax.default_backend() == "gpu" else None


def _jax_program(model: Model, method: str, rows: int, dtype: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    from adalink_jax import AdaLinkAdapter, AdaptedModel, LoRA
    from benchmarks.speed_parts import ours

    adapter = AdaLinkAdapter(rank=model.rank) if method == "ours adalink" else LoRA(rank=model.lora_rank)
    adapted = AdaptedModel(ours.backbone(model, dtype=dtype, scan_layers=True), adapter)
    return ours.random_step(adapted, ours.random_batch(model.vocab_size, rows, INPUTS, TARGETS), dtype)


def _torch_program(model: Model, method: str, rows: int, dtype: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    import torch
    import transformers

    if not torch.cuda.is_available():
        raise ModuleNotFoundError("torch with CUDA", name="torch with CUDA")
    with torch.device("cuda"):
        t5 = transformers.T5ForConditionalGeneration(theirs.torch_config(model)).to(getattr(torch, dtype))
        module = theirs.with_method(method, t5, model)
        ids = torch.randint(3, model.vocab_size, (rows, INPUTS))
        labels = torch.randint(3, model.vocab_size, (rows, TARGETS))
        run = theirs.step_of(module, ids, labels)
    return lambda: float(run()), {}


def measure(name: str, model: Model, method: str, most: int, dtype: str) -> dict[str, Any]:
    """One cell: `rows`, `seconds` of a step, `rate` in sequences per second, `flops` of a step (ours only).

    Args:
      name: the model's.
      model: its sizes.
      method: one of `METHODS`.
      most: the largest batch that is tried.
      dtype: of frozen weights and activations.
    """
    prepare, rows = (_jax_program if method.startswith("ours") else _torch_program), most
    while rows:
        try:
            run, facts = prepare(model, method, rows, dtype)
            for _ in range(3):
                run()
            break
        except ModuleNotFoundError as e:
            return {"model": name, "method": method, "missing": e.name}
        except Exception as e:  # each library has its own class for this
            if "memory" not in str(e).lower() and "RESOURCE_EXHAUSTED" not in str(e):
                raise
            run = facts = None
            rows //= 2
            gc.collect()
    else:
        return {"model": name, "method": method, "missing": "enough memory"}
    seconds = []
    for _ in range(TIMED):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    step = statistics.median(seconds)
    return {"model": name, "method": method, "rows": rows, "seconds": step, "rate": rows / step, **facts}
