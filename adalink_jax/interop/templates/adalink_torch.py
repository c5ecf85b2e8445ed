"""AdaLink adapters on a T5, T5Gemma or T5Gemma 2 of transformers: load several, switch between them, switch them off.

y = x + scale * phi(x @ down) @ up          on what enters the encoder only: the text's embeddings, and T5Gemma 2's visual tokens

Needs torch and safetensors.
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
        self.adapters, self.active = {}, {}
        self.encoder = model.get_encoder()
        self.embed = self.encoder.get_input_embeddings()
        # T5Gemma multiplies `inputs_embeds` by this; the adapter reads and changes the product.
        is_t5gemma = model.config.model_type == "t5gemma"
        self.factor = self.encoder.config.hidden_size**0.5 if is_t5gemma else 1.0
        # T5Gemma 2: the token whose places visual tokens take.
        self.image_token = getattr(self.encoder.config, "image_token_id", None)
        self.handles = [self.encoder.register_forward_pre_hook(self._adapt_text, with_kwargs=True)]
        if projector := getattr(self.encoder, "multi_modal_projector", None):
            self.handles.append(projector.register_forward_hook(self._adapt_images))

    def load(self, name, folder):
        """Reads the adapter in `folder` under the name `name`."""
        folder = pathlib.Path(folder)
        settings = json.loads((folder / "adapter_config.json").read_text())["adalink"]["settings"]
        leaves = safetensors.torch.load_file(folder / "adapter_model.safetensors")
        self.adapters[name] = {}
        for kind in settings["kinds"] or ("text", "image"):
            pair = "shared" if settings["share"] else kind
            if f"{pair}/down" in leaves:
                pair = leaves[f"{pair}/down"], leaves[f"{pair}/up"]
                self.adapters[name][kind] = *pair, PHI[settings["phi"]], settings["scale"]

    def switch(self, name):
        """Activates the adapter `name`; None gives the plain base."""
        self.active = {} if name is None else self.adapters[name]

    def remove(self):
        """Takes the hooks off the model."""
        for handle in self.handles:
            handle.remove()

    def _change(self, kind, x):
        down, up, phi, scale = self.active[kind]
        return scale * (phi(x @ down.to(x)) @ up.to(x))

    def _adapt_text(self, encoder, args, kwargs):
        if "text" not in self.active:
            return None
        kwargs = dict(zip(inspect.signature(encoder.forward).parameters, args)) | kwargs
        ids, x = kwargs.pop("input_ids", None), kwargs.pop("inputs_embeds", None)
        x = self.embed(ids) if x is None else x
        change = self._change("text", self.factor * x) / self.factor
        if self.image_token is not None:  # the encoder finds these places by their embedding
            token = self.embed(torch.tensor(self.image_token, device=x.device))
            change = change.masked_fill((x == token).all(-1, keepdim=True), 0.0)
        return (), kwargs | {"inputs_embeds": x + change}

    def _adapt_images(self, projector, args, x):
        return x + self._change("image", x) if "image" in self.active else None
