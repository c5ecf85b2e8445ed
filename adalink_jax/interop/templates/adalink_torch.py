"""AdaLink adapters on a T5 or T5Gemma of transformers: load several, switch between them, switch them off. Needs torch, safetensors.

y = x + scale * phi(x @ down) @ up          on the encoder's input embeddings only
"""

import functools
import inspect
import json
import pathlib

import safetensors.torch
import torch

PHI = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "gelu": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}


class AdaLinks:
    """Named adapters on one encoder-decoder of transformers; the model is the plain base until `switch` is called."""

    def __init__(self, model):
        self.adapters, self.active = {}, None
        self.encoder = model.get_encoder()
        # T5Gemma multiplies `inputs_embeds` by this; the adapter reads and changes the product.
        is_t5gemma = model.config.model_type == "t5gemma"
        self.factor = self.encoder.config.hidden_size**0.5 if is_t5gemma else 1.0
        self.handle = self.encoder.register_forward_pre_hook(self._adapt, with_kwargs=True)

    def load(self, name, folder):
        """Reads the adapter in `folder` under the name `name`."""
        folder = pathlib.Path(folder)
        settings = json.loads((folder / "adapter_config.json").read_text())["adalink"]["settings"]
        leaves = safetensors.torch.load_file(folder / "adapter_model.safetensors")
        pair = "shared" if settings["share"] else "text"
        self.adapters[name] = leaves[f"{pair}/down"], leaves[f"{pair}/up"], PHI[settings["phi"]], settings["scale"]

    def switch(self, name):
        """Activates the adapter `name`; None gives the plain base."""
        self.active = None if name is None else self.adapters[name]

    def _adapt(self, encoder, args, kwargs):
        if self.active is None:
            return None
        kwargs = dict(zip(inspect.signature(encoder.forward).parameters, args)) | kwargs
        ids, x = kwargs.pop("input_ids", None), kwargs.pop("inputs_embeds", None)
        x = encoder.embed_tokens(ids) if x is None else x
        down, up, phi, scale = self.active
        down, up = down.to(x), up.to(x)
        change = scale * (phi(self.factor * x @ down) @ up) / self.factor
        return (), kwargs | {"inputs_embeds": x + change}
