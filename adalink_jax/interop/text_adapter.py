"""What both exports read: an adapter of the text alone, its module, parameters and facts."""

import flax.linen as nn
import jax
import numpy as np

from adalink_jax.adapters import make_adapter
from adalink_jax.checkpoints import read_adapter
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.models import Inputs, paths


def read_text_adapter(folder: str) -> tuple[nn.Module, dict, dict]:
    """The module, its parameters and the file's `adalink` fields.

    Raises:
      CheckpointError: for a folder that is no adapter, and leaves that are not those of its method and settings.
      UserError: for an adapter of more than the text.
    """
    leaves, about = read_adapter(folder)
    about.setdefault("settings", {})
    module = make_adapter(about.get("method"), about["settings"])
    pairs = sorted({name.split("/")[0] for name in leaves})
    if not getattr(module, "per_token", False) or (module.kinds or ("text",)) != ("text",) or "image" in pairs:
        raise UserError(f"The adapter {folder} has {', '.join(pairs)}; only one of the text alone can be exported.")
    width = next((leaf.shape[0] for name, leaf in leaves.items() if name.endswith("/down") and leaf.ndim), 1)
    text = Inputs(text=np.zeros((1, 1, width), np.float32))
    wanted = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), text))["params"]
    shapes = lambda tree: {name: tuple(leaf.shape) for name, leaf in tree.items()}
    if shapes(leaves) != shapes(paths.flatten(wanted)):
        raise CheckpointError(
            f"The adapter {folder} holds {shapes(leaves)}; {about['method']} of its settings has "
            f"{shapes(paths.flatten(wanted))}: it is damaged, copy or train it again."
        )
    return module, paths.unflatten(leaves), about
