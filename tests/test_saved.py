"""What a training step saves for its backward pass: no input of a frozen kernel."""

import jax
import pytest
from helpers import init, random_batch, tiny_pali, tiny_paligemma, tiny_t5gemma
from jax.extend.core import Var

from adalink_jax import AdaLinkAdapter, AdaptedModel
from adalink_jax.planning.saved import by_stack, saved_arrays
from adalink_jax.training import partition
from adalink_jax.training.step import make_loss

PRE_NORM = {"projections", "attention_softmax", "attention_out", "mlp_in"}
POST_NORM = {*PRE_NORM, "mlp_out"}  # which a norm behind the MLP reads


def case(trainable, make=tiny_pali, **settings):
    model = AdaptedModel(make(**settings), AdaLinkAdapter(rank=4))
    batch = random_batch(model.backbone, 2, 6, 5, seed=1)
    return make_loss(model), *partition.split(init(model, batch, 0), [trainable]), batch


def saved_inputs_of_products(loss, trainable, frozen, batch):
    """Shapes of what the forward pass multiplies with the backbone's leaves and saves."""

    def backward(leaves, batch):
        of = lambda trainable: loss(trainable, {name: leaves[name] for name in frozen}, batch, jax.random.key(0))
        return jax.tree.leaves(jax.vjp(of, {name: leaves[name] for name in trainable}, has_aux=True)[1])

    leaves = trainable | frozen
    program = jax.make_jaxpr(backward)(leaves, batch).jaxpr
    kernels = {x for name, x in zip(sorted(leaves), program.invars) if name.startswith("backbone/")}
    products = [equation for equation in program.eqns if equation.primitive.name == "dot_general"]
    inputs = {equation.invars[0] for equation in products if equation.invars[1] in kernels}
    assert len(inputs) > 10
    return [x.aval.shape for x in inputs & {x for x in program.outvars if isinstance(x, Var)}]


def test_an_input_of_a_product_is_saved_only_where_the_kernel_is_trained():
    assert not saved_inputs_of_products(*case("adapter/.*"))
    assert len(saved_inputs_of_products(*case(".*"))) > 10


@pytest.mark.parametrize(
    "make, kinds, scan_layers",
    [
        (tiny_pali, {"encoder": PRE_NORM, "decoder": PRE_NORM}, False),
        (tiny_pali, {"encoder": PRE_NORM, "decoder": PRE_NORM}, True),
        (tiny_t5gemma, {"encoder": POST_NORM, "decoder": POST_NORM}, False),
        (tiny_paligemma, {"decoder": POST_NORM}, True),
    ],
)
def test_remat_frozen_saves_products_and_the_residual_stream(make, kinds, scan_layers):
    sizes = {}
    for remat in ("none", "frozen", "full"):
        arrays = saved_arrays(*case("adapter/.*", make, remat=remat, scan_layers=scan_layers, attention="blockwise"))
        sizes[remat] = sum(x.nbytes for x in arrays)
        if remat == "frozen":
            stacks = by_stack(arrays)
            assert kinds.keys() < stacks.keys()
            for stack, products in kinds.items():
                assert set(stacks[stack]["layer"]) == {*products, "residual stream"}
                assert stacks[stack]["layers"] == 2
    assert sizes["full"] < sizes["frozen"] < 0.7 * sizes["none"]
