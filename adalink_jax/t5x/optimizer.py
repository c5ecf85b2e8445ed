"""An optax optimizer of only the trainable leaves, as a t5x `OptimizerDef`."""

from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax import serialization
from flax.core import FrozenDict, freeze, unfreeze
from t5x.optimizers import OptaxWrapper  # pyright: ignore[reportMissingImports]  # t5x is optional

from adalink_jax.training import partition


class AdapterOptimizer(OptaxWrapper):
    """Updates the leaves that `trainable` matches; all others keep their bits, and have no optimizer state.

    Unlike `OptaxWrapper`, it derives logical axes for any optax transformation whose state follows the parameters, also if the
    learning rate is in the state.
    """

    def __init__(self, optimizer: optax.GradientTransformation, trainable: Sequence[str]):
        """Args:
        optimizer: updates the trainable leaves.
        trainable: regular expressions for whole paths, such as `adapter/.*` (`paths.matching`).
        """
        self._trainable = tuple(trainable)
        super().__init__(optax.masked(optimizer, self.mask))

    def mask(self, params: Any) -> Any:
        """A tree like `params`, True for each trainable leaf.

        Raises:
          UserError: for an expression that matches nothing, or only some layers of a stack.
        """
        trainable, frozen = partition.split(unfreeze(params), self._trainable)
        marks = partition.merge(jax.tree.map(lambda _: True, trainable), jax.tree.map(lambda _: False, frozen))
        return freeze(marks) if isinstance(params, FrozenDict) else marks

    def apply_gradient(self, hyper_params: Any, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        """See `OptimizerDef`; frozen leaves are returned unchanged, without adding a zero update."""
        stepped, state = super().apply_gradient(hyper_params, params, state, grads)
        keep = lambda trained, new, old: new if trained else old
        return jax.tree.map(keep, self.mask(params), stepped, params), state

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
        """The logical axes of the optimizer's state: those of the parameter that it follows; None for counts and rates."""
        axes = jax.tree.map(lambda _: None, optimizer.state_dict())
        axes["target"] = param_logical_axes
        masked = lambda trained, names: names if trained else optax.MaskedNode()

        def of_state(leaf: Any, names: Any) -> Any:
            # Adafactor's factors have fewer axes than the parameter: replicated.
            return names if isinstance(leaf, optax.MaskedNode) or len(names) == leaf.ndim else None

        state = optax.tree_map_params(
            self.optax_optimizer,
            of_state,
            optimizer.state.param_states,
            jax.tree.map(masked, self.mask(optimizer.target), param_logical_axes),
            transform_non_params=lambda _: None,
            is_leaf=lambda node: isinstance(node, optax.MaskedNode),
        )
        axes["state"]["param_states"] = serialization.to_state_dict(state)
        return optimizer.restore_state(unfreeze(axes))
