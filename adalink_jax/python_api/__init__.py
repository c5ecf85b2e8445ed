"""The library without gin files: load a base, attach an adapter, train it on rows, predict, save.

    base = load_base("hf://google/flan-t5-small")
    model = attach(base, AdaLinkAdapter(rank=16))
    model.fit(rows, steps=500)
    model("a delight from start to end")
    model.save("adapters/reviews")

Invariant: there is no second machinery. `fit` writes the configuration that `adalink train` would read, and calls what the command calls,
so equal settings give equal bits. gin's state is the same before and after every call.
"""

from adalink_jax.python_api.attached_model import AttachedModel, attach, load_adapter
from adalink_jax.python_api.loaded_base import LoadedBase, load_base

__all__ = ["AttachedModel", "LoadedBase", "attach", "load_adapter", "load_base"]
