"""An optax optimizer of the trainable leaves alone, as t5x's `OptimizerDef`."""

from collections.abc import Sequence

import jax
import optax
from flax import serialization
from flax.core import FrozenDict, freeze, unfreeze
from t5x.optimizers import OptaxWrapper

from adalink_jax.training import partition


class AdapterOptimizer(OptaxWrapper):
    """Steps the leaves that `trainable` matches; all others keep their bits, and have no state.

    Unlike `OptaxWrapper`, any optax transformation whose state follows the parameters has its axes, also one that keeps its
    learning rate in its state.
    """

    def __init__(self, optimizer: optax.GradientTransformation, trainable: Sequence[str]):
        """Args:
        optimizer: of the trainable leaves.
        trainable: expressions for whole paths, such as `adapter/.*` (`paths.matching`).
        """
        self._trainable = tuple(trainable)
        super().__init__(optax.masked(optimizer, self.mask))

    def mask(self, params):
        """The tree of `params`, True where a leaf is trained.

        Raises:
          UserError: for an expression that matches nothing, or some layers of a stack.
        """
        trainable, frozen = partition.split(unfreeze(params), self._trainable)
        marks = partition.merge(jax.tree.map(lambda _: True, trainable), jax.tree.map(lambda _: False, frozen))
        return freeze(marks) if isinstance(params, FrozenDict) else marks

    def apply_gradient(self, hyper_params, params, state, grads):
        """See `OptimizerDef`; frozen leaves are passed on, not added to."""
        stepped, state = super().apply_gradient(hyper_params, params, state, grads)
        keep = lambda trained, new, old: new if trained else old
        return jax.tree.map(keep, self.mask(params), stepped, params), state

    def derive_logical_axes(self, optimizer, param_logical_axes):
        """The axes of the optimizer's state: those of the leaf that each part of it follows, None for counts and rates."""
        axes = jax.tree.map(lambda _: None, optimizer.state_dict())
        axes["target"] = param_logical_axes
        masked = lambda trained, names: names if trained else optax.MaskedNode()

        def of_state(leaf, names):  # Adafactor's rows and columns have fewer axes than the leaf: replicated
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
