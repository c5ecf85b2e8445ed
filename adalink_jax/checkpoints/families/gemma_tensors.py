"""Tensors of Gemma's blocks in JAX's own files, of google-deepmind/gemma and of big_vision.

Heads are apart there, and tensors that are read together are one: keys and values (and queries, where a layer has as many heads of
each), the two inputs of an MLP.
"""

from collections.abc import Callable, Mapping

import numpy as np

from adalink_jax.files.leaves import Leaf, computed, layer

TABLE, FINAL_NORM = "embedder/input_embedding", "final_norm/scale"
_heads_out: Callable[[np.ndarray], np.ndarray] = lambda x: x.transpose(1, 0, 2)  # [H, D, K] -> [D, H, K]
_as_it_is: Callable[[np.ndarray], np.ndarray] = lambda x: x
_swapped: Callable[[np.ndarray], np.ndarray] = lambda x: x.T
_EINSUMS = {  # of an attention: this package's matrices, and what makes them of the tensor's parts
    "q_einsum/w": (("query",), _heads_out),
    "kv_einsum/w": (("key", "value"), _heads_out),
    "qkv_einsum/w": (("query", "key", "value"), _heads_out),
    "attn_vec_einsum/w": (("out",), _as_it_is),
}


def of_block(tensors: Mapping[str, Leaf], attentions: Mapping[str, str], norms: Mapping[str, str]) -> dict[str, Leaf]:
    """The leaves of one layer by this package's names; a tensor that is not known keeps its name.

    Args:
      tensors: those of the layer by name, such as `attn/q_einsum/w` [H, D, K]; those of the MLP may end in `/w` too.
      attentions: their name of an attention -> this package's, such as `attn` -> `self_attention`.
      norms: likewise of the norms, such as `pre_ffw` -> `pre_mlp`.
    """
    tensors = {name.removesuffix("/w") if name.startswith("mlp/") else name: leaf for name, leaf in tensors.items()}
    known = {
        **{f"{tensor}/{einsum}": tuple((f"{name}/{matrix}/kernel", make) for matrix in matrices)
           for tensor, name in attentions.items() for einsum, (matrices, make) in _EINSUMS.items()},
        "mlp/gating_einsum": (("mlp/wi_0/kernel", _gating(tensors)), ("mlp/wi_1/kernel", _gating(tensors))),
        "mlp/linear": (("mlp/wo/kernel", _as_it_is),),
        **{f"{tensor}_norm/scale": ((f"{name}_layer_norm/scale", _as_it_is),) for tensor, name in norms.items()},
    }  # fmt: skip
    leaves = {}
    for tensor, leaf in tensors.items():
        parts = known.get(tensor)
        if parts is None:
            leaves[tensor] = leaf
            continue
        for i, (name, make) in enumerate(parts):
            part = leaf if len(parts) == 1 else layer(leaf, i, 0, leaf.shape[1:])
            leaves[name] = computed((part,), _matrix(part.shape, name, make), make)
    return leaves


def _gating(tensors: Mapping[str, Leaf]) -> Callable[[np.ndarray], np.ndarray]:
    """What makes a kernel [D, F] of a part of the MLP's inputs, which larger models store as [F, D]."""
    gating, linear = tensors.get("mlp/gating_einsum"), tensors.get("mlp/linear")
    is_swapped = gating is not None and linear is not None and gating.shape[1:] == linear.shape != linear.shape[::-1]
    return _swapped if is_swapped else _as_it_is


def _matrix(shape: tuple[int, ...], name: str, make: Callable) -> tuple[int, ...]:
    """The shape of a leaf whose heads are apart in `shape`: [H, D, K], or [H, K, D] of the output."""
    if make is _swapped:
        return shape[::-1]
    if len(shape) < 3:
        return shape
    heads, a, b = shape
    return (heads * a, b) if name.endswith("out/kernel") else (a, heads * b)
