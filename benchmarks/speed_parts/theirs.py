"""The same work in PyTorch: AdaLink in ten lines, PEFT's LoRA and prompt tuning, and `generate` of transformers; and t5x's step."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks.speed_parts.work import Model, Work

Program = tuple[Callable[[], Any], dict[str, Any]]


def torch_config(model: Model) -> Any:
    """The T5 of these sizes for transformers, without dropout."""
    import transformers

    return transformers.T5Config(
        vocab_size=model.vocab_size, d_model=model.emb_dim, d_kv=model.head_dim, d_ff=model.mlp_dim,
        num_layers=model.layers, num_decoder_layers=model.layers, num_heads=model.num_heads, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip


def write_base(model: Model, folder: pathlib.Path) -> None:
    """Writes random weights that every contender reads, unless the folder exists."""
    import torch
    import transformers

    if not folder.exists():
        torch.manual_seed(0)
        partial = folder.with_name(folder.name + ".partial")
        transformers.T5ForConditionalGeneration(torch_config(model)).save_pretrained(partial)
        partial.rename(folder)


def _loaded(base: str) -> Any:
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    return transformers.T5ForConditionalGeneration.from_pretrained(base)


def adalink(t5: Any, rank: int) -> Any:
    """AdaLink as one would write it in PyTorch."""
    import torch
    from torch import nn

    class AdaLink(nn.Module):
        def __init__(self):
            super().__init__()
            width, place = t5.config.d_model, {"device": t5.device, "dtype": torch.float32}
            self.t5 = t5.requires_grad_(False)
            self.down = nn.Parameter(torch.randn(width, rank, **place) * width**-0.5)
            self.up = nn.Parameter(torch.zeros(rank, width, **place))

        def forward(self, input_ids, **rest):
            x = self.t5.get_input_embeddings()(input_ids)
            x = x + (x.float() @ self.down @ self.up).to(x.dtype)
            return self.t5(inputs_embeds=x, **rest)

    return AdaLink()


def with_method(name: str, t5: Any, model: Model) -> Any:
    """The T5 with what is trained: AdaLink, or a method of PEFT."""
    import peft

    if name == "torch adalink":
        return adalink(t5, model.rank)
    task = peft.TaskType.SEQ_2_SEQ_LM
    if name == "peft lora":
        config = peft.LoraConfig(
            task_type=task, r=model.lora_rank, lora_alpha=model.lora_rank, target_modules=["q", "v"]
        )
    else:
        config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=model.prompt, num_transformer_submodules=1)
    return peft.get_peft_model(t5, config)


def step_of(module: Any, ids: Any, labels: Any) -> Callable[[], Any]:
    """A training step by AdamW on the parameters that have gradients; returns the loss."""
    import torch

    module.train()
    optimizer = torch.optim.AdamW([x for x in module.parameters() if x.requires_grad], lr=1e-3, weight_decay=0.0)
    mask = torch.ones_like(ids)

    def run() -> Any:
        loss = module(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return run


def step(work: Work, model: Model, base: str, name: str) -> Program:
    """The row's training step."""
    import torch

    from benchmarks.speed_parts.ours import random_batch

    batch = random_batch(model.vocab_size, work.batch, work.inputs, work.targets)
    ids, labels = (torch.as_tensor(batch[x]).long() for x in ("encoder_input_tokens", "decoder_target_tokens"))
    run = step_of(with_method(name, _loaded(base), model), ids, labels)
    return lambda: float(run()), {}


def decode(work: Work, model: Model, base: str) -> Program:
    """The row's decoding by `generate`, of exactly as many tokens."""
    import torch

    from benchmarks.speed_parts.ours import random_batch

    t5 = _loaded(base).eval()
    batch = random_batch(model.vocab_size, work.batch, work.inputs, work.targets)
    ids = torch.as_tensor(batch["encoder_input_tokens"]).long()
    how = {"do_sample": False, "num_beams": work.beams, "min_new_tokens": work.targets, "max_new_tokens": work.targets}

    def run() -> list[int]:
        with torch.no_grad():
            return t5.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)[0, 1:].tolist()

    return run, {}


def t5x_step(work: Work, model: Model) -> Program:
    """Full training of t5x's own network, with its initial weights and optax's AdamW."""
    from t5x.examples.t5 import network  # first: it may be missing  # isort: skip
    import jax
    import optax

    from benchmarks.speed_parts.ours import random_batch

    batch = random_batch(model.vocab_size, work.batch, work.inputs, work.targets)
    config = network.T5Config(
        vocab_size=model.vocab_size, emb_dim=model.emb_dim, num_heads=model.num_heads, head_dim=model.head_dim,
        mlp_dim=model.mlp_dim, num_encoder_layers=model.layers, num_decoder_layers=model.layers, dtype="float32",
        mlp_activations=("gelu", "linear"), dropout_rate=0.0, logits_via_embedding=False,
    )  # fmt: skip
    module, optimizer = network.Transformer(config), optax.adamw(1e-3)
    sides = [batch[x] for x in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")]
    params = module.init(jax.random.key(0), *sides, enable_dropout=False)["params"]

    def loss_of(params):
        logits = module.apply({"params": params}, *sides, enable_dropout=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, sides[2]).mean()

    def update(params, state):
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    compiled, holder = jax.jit(update, donate_argnums=(0, 1)), [params, optimizer.init(params)]

    def run() -> float:
        *holder[:], loss = compiled(*holder)
        return float(loss)

    return run, {}


def prepare(contender: str, work: Work, model: Model, base: str) -> Program:
    """The program of one contender.

    Raises:
      ImportError: if its library is not installed.
    """
    if contender == "t5x full":
        return t5x_step(work, model)
    return decode(work, model, base) if contender == "transformers" else step(work, model, base, contender)
