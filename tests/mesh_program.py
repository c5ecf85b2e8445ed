"""Run by test_mesh.py in a process of eight virtual devices: training on meshes against training on one device.

python mesh_program.py METHOD[+DTYPE][@T5Gemma|@T5Gemma2|@PaliGemma|@Pix2Struct] STEPS MESH...          MESH: DATAxMODEL[,fsdp][,scanned][,blockwise], such as 2x4,fsdp,scanned; DTYPE: of the frozen leaves
"""

import sys

import shape_checks

shape_checks.install()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from adalink_jax import AdaLinkAdapter, AdaptedModel, PaLI, T5Config, ViTConfig, parallel  # noqa: E402
from adalink_jax.adapters import LoRA  # noqa: E402
from adalink_jax.models import (  # noqa: E402
    PaliGemma,
    PaliGemmaConfig,
    Pix2Struct,
    Pix2StructConfig,
    T5Gemma,
    T5Gemma2,
    T5Gemma2Config,
    T5GemmaConfig,
    paths,  # noqa: E402
)
from adalink_jax.models.quantised import Storage, in_form  # noqa: E402
from adalink_jax.training import optimizers, partition, setup  # noqa: E402
from adalink_jax.training.step import TrainState, make_train_step  # noqa: E402

ROWS = 16
IMAGE_TOKEN = 263  # takes the first places of a T5Gemma 2's text


def backbone(scanned, attention="reference", name="PaLI"):
    """pali_nano, as gin/models/pali_nano.gin has it; or a T5Gemma or PaliGemma with fewer heads of keys and values than devices."""
    settings = {"scan_layers": scanned, "attention": attention}
    if name == "T5Gemma":
        heads = {
            "num_heads": 8,
            "num_kv_heads": 2,
            "decoder_num_kv_heads": 1,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
        }
        sizes = {"vocab_size": 264, "emb_dim": 64, "mlp_dim": 128, "num_encoder_layers": 2, "num_decoder_layers": 2}
        return T5Gemma(T5GemmaConfig(**sizes, **heads, sliding_window=6, **settings))
    if name == "T5Gemma2":
        heads = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
        sizes = {"vocab_size": 264, "emb_dim": 64, "mlp_dim": 128, "num_encoder_layers": 2, "num_decoder_layers": 2}
        ids = {"image_token_id": IMAGE_TOKEN, "end_of_image_token_id": 262}
        more = {"sliding_window": 6, "full_attention_every": 2, "image_pool": 2}
        tower = ViTConfig((8, 16), 4, 64, 8, 256, 2, channels=1, **settings)
        return T5Gemma2(T5Gemma2Config(**sizes, **heads, **ids, **more, **settings), tower)
    if name == "Pix2Struct":
        pictures = {"max_patches": 24, "num_positions": 24, "patch_size": 2, "channels": 1}
        return Pix2Struct(Pix2StructConfig(264, 64, 8, 8, 128, 2, 2, **pictures, **settings))
    tower = ViTConfig((8, 16), 4, 64, 8, 256, 2, channels=1, **settings)
    if name == "PaliGemma":
        sizes = {"vocab_size": 264, "emb_dim": 64, "num_heads": 8, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 128}
        more = {"num_layers": 2, "query_pre_attn_scalar": 8, "post_norms": True, "sliding_window": 6}
        return PaliGemma(PaliGemmaConfig(**sizes, **more, **settings), tower)
    return PaLI(T5Config(264, 64, 8, 8, 128, 2, 2, **settings), tower)


METHODS = {
    "adalink": (lambda: AdaLinkAdapter(rank=16), ("adapter/.*",), lambda: optimizers.adamw(1e-3)),
    "lora": (lambda: LoRA(), ("adapter/.*",), lambda: optimizers.adamw(1e-3)),
    "full": (lambda: None, ("backbone/.*",), lambda: optax.inject_hyperparams(optax.sgd)(1e-3)),
}


def batches(model, steps):
    rng = np.random.default_rng(0)
    shapes = model.backbone.abstract_batch(ROWS, 24, 4)
    for _ in range(steps):
        batch = {k: rng.integers(1, 260, x.shape).astype(np.int32) for k, x in shapes.items() if x.dtype == np.int32}
        if "images" in shapes:
            batch["images"] = model.backbone.as_images(rng.uniform(-1, 1, shapes["images"].shape).astype(np.float32))
        if isinstance(model.backbone, T5Gemma2):
            batch["encoder_input_tokens"][:, :2] = IMAGE_TOKEN
        batch["decoder_loss_weights"] = rng.integers(0, 2, shapes["decoder_loss_weights"].shape).astype(np.float32)
        yield batch


def values(tree):
    """Unscanned name -> NumPy array."""
    return paths.unscan({name: np.asarray(leaf) for name, leaf in paths.flatten(tree).items()})


def stored(leaves, dtype):
    """Frozen leaves as a run has them, each placed as `Storage` says."""
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in leaves.items()}
    forms = Storage(dtype).stored(shapes, ())
    place = lambda form: jax.tree.map(lambda x: x.sharding, form)
    convert = lambda leaf, form: jax.jit(lambda x: in_form(x, form), out_shardings=place(form))(leaf)
    return {name: parallel.settle(convert(leaf, forms[name])) for name, leaf in leaves.items()}


def train(method, steps, shape, fsdp, scanned, weights, attention="reference", name="PaLI"):
    """Losses, the first step's gradients and the trainable leaves at the end, from the unscanned `weights`."""
    method, _, dtype = method.partition("+")
    adapter, trainable, optimizer = (part() if callable(part) else part for part in METHODS[method])
    model = AdaptedModel(backbone(scanned, attention, name), adapter)
    devices = jax.devices()[: shape[0] * shape[1]]
    mesh, rules = parallel.make_mesh(*shape, devices=devices), parallel.logical_axis_rules(fsdp=fsdp)
    with parallel.use_mesh(mesh, rules):
        config = setup.Setup(model, trainable=("adapter/.*", "backbone/.*") if adapter else ("backbone/.*",))
        leaves = paths.flatten(setup.load_parameters(config, mesh, rules).trainable)
        wanted = paths.rescan(weights, leaves)
        tree = paths.unflatten({name: jax.device_put(wanted[name], leaf.sharding) for name, leaf in leaves.items()})
        trained, frozen = partition.split(tree, trainable)
        frozen = stored(frozen, dtype) if dtype else frozen
        step = make_train_step(model, optimizer, shards=parallel.shards_of(trained, mesh))
        keep = lambda updates, state, params=None: (updates, updates)
        seen = optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), keep)
        first = make_train_step(model, seen, shards=parallel.shards_of(trained, mesh))
        losses, grads = [], {}
        state = jax.tree.map(jnp.copy, TrainState(jnp.int32(0), trained, optimizer.init(trained)))
        compiled = jax.jit(step, donate_argnums=0)
        for batch in batches(model, steps):
            placed = parallel.put_batch(batch, mesh)
            if not grads:
                start = TrainState(jnp.int32(0), trained, seen.init(trained))
                grads = values(parallel.settle(jax.jit(first)(start, frozen, placed))[0].opt_state)
            state, metrics = parallel.settle(compiled(state, frozen, placed))
            losses.append(float(metrics["loss"]))
        return losses, grads, values(state.trainable)


def compare_gradients(actual, expected, what):
    """Each leaf's largest difference, over the leaf's largest value, is at most 1e-5."""
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        # A softmax ignores its keys' bias: that gradient is zero except for rounding.
        scale = largest if name.endswith("key/bias") else np.abs(value).max()
        worst = np.abs(actual[name] - value).max() / max(scale, 1e-30)
        assert worst <= 1e-5, f"{what}: gradient of {name} differs by {worst:.2e} of its largest value"


def main(method, steps, *cases):
    method, _, name = method.partition("@")
    name = name or "PaLI"
    jax.config.update("jax_default_matmul_precision", "highest")
    mesh, rules = parallel.make_mesh(1, 1, devices=jax.devices()[:1]), parallel.logical_axis_rules()
    adapter, _, _ = METHODS[method.partition("+")[0]]
    model = AdaptedModel(backbone(False, name=name), adapter())
    with parallel.use_mesh(mesh, rules):
        config = setup.Setup(model, trainable=("adapter/.*", "backbone/.*") if adapter() else ("backbone/.*",))
        weights = values(setup.load_parameters(config, mesh, rules).trainable)
    losses, grads, leaves = train(method, int(steps), (1, 1), False, False, weights, name=name)
    for case in cases:
        shape, *flags = case.split(",")
        shape = tuple(map(int, shape.split("x")))
        attention = "blockwise" if "blockwise" in flags else "reference"
        results = train(method, int(steps), shape, "fsdp" in flags, "scanned" in flags, weights, attention, name)
        np.testing.assert_allclose(results[0], losses, rtol=1e-5, err_msg=f"{case}: losses")
        compare_gradients(results[1], grads, case)
        worst = max(np.abs(results[2][name] - leaf).max() for name, leaf in leaves.items())
        assert worst <= 1e-5, f"{case}: leaves differ by {worst:.2e} after {steps} steps"
        print(f"{case}: as one device", flush=True)


if __name__ == "__main__":
    assert jax.device_count() == 8
    main(*sys.argv[1:])
