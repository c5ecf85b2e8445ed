"""Vision towers and image-and-text models give the numbers of `transformers`, from the folders that it saves, in float32."""

import json
import shutil

import jax
import numpy as np
import pytest
from references import tokens, torch, transformers

from adalink_jax import BLIP2, AdaptedModel, PaLI, QFormerConfig, T5Config, ViTConfig, checkpoints, parallel
from adalink_jax.checkpoints import config_fields, open_source
from adalink_jax.checkpoints.positions import BICUBIC, BILINEAR, resample
from adalink_jax.cli.main import main
from adalink_jax.configuration import gin_root
from adalink_jax.errors import CheckpointError
from adalink_jax.models.decoding import Sampling
from adalink_jax.training.abstract import abstract_leaves
from adalink_jax.training.partition import below
from adalink_jax.training.setup import Setup, load_parameters

pytestmark = pytest.mark.usefixtures("exact_matmuls")

SIZES = dict(
    hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7
)
VIT = ViTConfig((28, 28), 7, 24, 4, 48, 2)
# transformers' class and configuration of each tower, and this package's settings beside the sizes.
TOWERS = {
    "SigLIP": ("Siglip", {}),
    "ViT": ("ViT", dict(class_token=True, activation="gelu_exact", layer_norm_epsilon=1e-12)),
}
EVA = dict(class_token=True, activation="gelu_exact", pixel_mean=(0.4, 0.5, 0.6), pixel_std=(0.3, 0.2, 0.25))
IMAGE_TOKEN, QUERIES = 95, 4
RESOLUTIONS = [(28, 28), (42, 35), (21, 14)]


def randomise(model, seed=0):
    """Sets weights that are large enough to matter."""
    torch.manual_seed(seed)
    for name, leaf in model.named_parameters():
        norm = "norm" in name.lower()
        table = any(
            word in name for word in ("position", "shared", "relative_attention_bias", "word_emb", "query_tokens")
        )
        leaf.data = torch.randn_like(leaf) * (
            0.2 if norm or name.endswith("bias") else 1.0 if table else leaf.shape[-1] ** -0.5
        )
        if norm and name.endswith("weight"):
            leaf.data += 1.0
    return model.eval()


def pictures(rows, size, seed=0):
    """Images float32 [rows, height, width, 3] in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (rows, *size, 3)).astype(np.float32)


def pixel_values(images, config=None):
    """The images as transformers' image processors prepare them."""
    if config is not None:
        images = (images / 2 + 0.5 - np.float32(config.pixel_mean)) / np.float32(config.pixel_std)
    return torch.tensor(images.transpose(0, 3, 1, 2))


def assert_close(mine, theirs, tolerance=1e-4):
    theirs = np.asarray(theirs.detach() if hasattr(theirs, "detach") else theirs)
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(np.asarray(mine), theirs, rtol=0, atol=tolerance * theirs.std())


def load(backbone, path):
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        return load_parameters(Setup(AdaptedModel(backbone), initial_checkpoint_path=path, trainable=()), mesh, rules)


def tower_of(path, config):
    """A function from images to the features, [B, N, width], of the tower in `path`."""
    backbone = PaLI(T5Config(8, 8, 1, 8, 8, 1, 1), config)
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        wanted = abstract_leaves(AdaptedModel(backbone), mesh, rules)
        vision = {f"vision/{name}": leaf for name, leaf in below(wanted, "backbone/vision").items()}
        base = checkpoints.load_base({"vision": path}, vision, configs=checkpoints.configs_of(backbone))
    run = jax.jit(lambda images: backbone.apply({"params": base.params}, {"images": images}, method="image_features"))
    return lambda images: np.asarray(run(images))


@pytest.fixture(scope="module", params=TOWERS)
def tower(request, tmp_path_factory):
    """transformers' tower, the folder it saved (SigLIP's with its text tower), and this package's configuration."""
    return make_tower(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A Hugging Face folder of SigLIP."""
    return make_tower("SigLIP", tmp_path_factory)[1]


def make_tower(kind, tmp_path_factory):
    name, ours = TOWERS[kind]
    folder = tmp_path_factory.mktemp(name)
    if name == "Siglip":
        text = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=30,
                    max_position_embeddings=16)  # fmt: skip
        whole = randomise(transformers.SiglipModel(transformers.SiglipConfig(vision_config=SIZES, text_config=text)))
        model = whole.vision_model
    else:
        whole = model = randomise(transformers.ViTModel(transformers.ViTConfig(**SIZES)))
    whole.save_pretrained(folder)
    return model, str(folder), ours


@pytest.mark.parametrize("size", RESOLUTIONS)
def test_features_of_a_tower(tower, size):
    model, folder, ours = tower
    images = pictures(3, size)
    theirs = model(pixel_values(images), interpolate_pos_encoding=True).last_hidden_state
    config = ViTConfig(size, 7, 24, 4, 48, 2, **ours)
    assert_close(tower_of(folder, config)(images), theirs)
    assert theirs.shape[1] == config.num_tokens


def test_settings_that_shapes_do_not_show_are_compared(tower):
    _, folder, ours = tower
    for wrong, named in (({"num_heads": 3}, "num_heads"), ({"activation": "relu"}, "activation"),
                         ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon")):  # fmt: skip
        config = ViTConfig(**{**vars(VIT), **ours, **wrong})
        with pytest.raises(CheckpointError, match=f"set ViTConfig.{named}"):
            tower_of(folder, config)


def test_pixels_are_prepared_as_the_folder_says(tower, tmp_path):
    _, folder, ours = tower
    saying = tmp_path / "saying"
    shutil.copytree(folder, saying)
    (saying / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.25]}')
    with pytest.raises(CheckpointError, match="set ViTConfig.pixel_mean"):
        tower_of(str(saying), ViTConfig(**{**vars(VIT), **ours}))
    right = {**ours, "pixel_mean": (0.4, 0.5, 0.6), "pixel_std": (0.3, 0.2, 0.25)}
    right["resample"], other = ("bilinear", "bicubic") if "class_token" in ours else ("bicubic", "bilinear")
    tower_of(str(saying), ViTConfig(**{**vars(VIT), **right}))
    with pytest.raises(CheckpointError, match="set ViTConfig.resample, and crop_pct = 1.0."):
        tower_of(str(saying), ViTConfig(**{**vars(VIT), **right, "resample": other, "crop_pct": 0.5}))


@pytest.mark.parametrize("new", [(4, 4), (6, 5), (9, 9), (3, 2), (1, 1)])
def test_positions_are_resampled_by_the_rule_of_their_origin(new):
    from scipy.ndimage import zoom

    table = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    theirs = zoom(table.reshape(4, 4, 5), (new[0] / 4, new[1] / 4, 1), order=1).reshape(-1, 5)
    assert_close(resample(table, (4, 4), new, BILINEAR), theirs, 1e-5)
    as_image = torch.tensor(table.reshape(1, 4, 4, 5).transpose(0, 3, 1, 2))
    theirs = torch.nn.functional.interpolate(as_image, new, mode="bicubic", align_corners=False)
    assert_close(resample(table, (4, 4), new, BICUBIC), theirs[0].permute(1, 2, 0).reshape(-1, 5), 1e-5)


def big_vision_arrays(folder, scanned):
    """The SigLIP tower of a Hugging Face folder under big_vision's names."""
    leaves = {k.removeprefix("vision/"): leaf.whole() for k, leaf in open_source(folder).leaves.items()}
    out = {
        "embedding/kernel": leaves["patch_embedding/kernel"].reshape(7, 7, 3, 24),
        "embedding/bias": leaves["patch_embedding/bias"],
        "pos_embedding": leaves["pos_embedding"][None],
        "MAPHead_0/probe": np.zeros((1, 1, 24), np.float32),
    }
    for kind in ("scale", "bias"):
        out[f"Transformer/encoder_norm/{kind}"] = leaves[f"encoder_norm/{kind}"]
    for i in range(2):
        mine, block = f"layers_{i}/", f"Transformer/encoderblock_{i}/"
        for name in ("query", "key", "value"):
            at = f"{block}MultiHeadDotProductAttention_0/{name}"
            out[f"{at}/kernel"] = leaves[f"{mine}attention/{name}/kernel"].reshape(24, 4, 6)
            out[f"{at}/bias"] = leaves[f"{mine}attention/{name}/bias"].reshape(4, 6)
        at = f"{block}MultiHeadDotProductAttention_0/out"
        out[f"{at}/kernel"] = leaves[f"{mine}attention/out/kernel"].reshape(4, 6, 24)
        out[f"{at}/bias"] = leaves[f"{mine}attention/out/bias"]
        for kind in ("scale", "bias"):
            out[f"{block}LayerNorm_0/{kind}"] = leaves[f"{mine}pre_attention_layer_norm/{kind}"]
            out[f"{block}LayerNorm_1/{kind}"] = leaves[f"{mine}pre_mlp_layer_norm/{kind}"]
        for kind in ("kernel", "bias"):
            out[f"{block}MlpBlock_0/Dense_0/{kind}"] = leaves[f"{mine}mlp/wi/{kind}"]
            out[f"{block}MlpBlock_0/Dense_1/{kind}"] = leaves[f"{mine}mlp/wo/{kind}"]
    if scanned:
        stacked = {k.replace("encoderblock_0", "encoderblock"): np.stack([out[k], out[k.replace("block_0", "block_1")]])
                   for k in out if "encoderblock_0" in k}  # fmt: skip
        out = {k: v for k, v in out.items() if "encoderblock_" not in k} | stacked
    return out


@pytest.mark.parametrize(
    ("prefix", "scanned"), [("params/img/", False), ("params/img/", True), ("img/", False), ("", True)]
)
def test_a_file_of_big_vision_is_the_same_tower(siglip, tmp_path, scanned, prefix):
    arrays = {prefix + name: array for name, array in big_vision_arrays(siglip, scanned).items()}
    np.savez(tmp_path / "tower.npz", **arrays)
    images = pictures(2, (28, 28))
    mine = tower_of(str(tmp_path / "tower.npz"), VIT)(images)
    np.testing.assert_array_equal(mine, tower_of(siglip, VIT)(images))
    with pytest.raises(CheckpointError, match="set ViTConfig.num_heads"):
        tower_of(str(tmp_path / "tower.npz"), ViTConfig(**{**vars(VIT), "num_heads": 2}))


def test_a_class_token_of_big_vision_has_no_position(siglip, tmp_path):
    arrays = big_vision_arrays(siglip, scanned=False) | {"cls": np.ones((1, 1, 24), np.float32)}
    np.savez(tmp_path / "tower.npz", **arrays)
    table = open_source(str(tmp_path / "tower.npz")).leaves["vision/pos_embedding"].whole()
    np.testing.assert_array_equal(table[0], 0)
    np.testing.assert_array_equal(table[1:], arrays["pos_embedding"][0])


def test_files_without_a_tower_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(CheckpointError, match="not a vision tower"):
        open_source(str(tmp_path / "other.npz"))
    np.savez(tmp_path / "pickled.npz", pos_embedding=np.array([{}], object))
    with pytest.raises(CheckpointError, match="not a plain .npz"):
        open_source(str(tmp_path / "pickled.npz"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:60])
    with pytest.raises(CheckpointError, match="damaged"):
        open_source(str(tmp_path / "cut.npz"))


@pytest.fixture(scope="module", params=["Blip2", "InstructBlip"])
def blip(request, tmp_path_factory):
    """transformers' model, the folder that it saved, and whether its Q-Former reads the instruction."""
    text = dict(model_type="t5", vocab_size=96, d_model=32, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, d_kv=8,
                feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
                decoder_start_token_id=0)  # fmt: skip
    reads = request.param == "InstructBlip"
    qformer = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32, hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0, vocab_size=50, max_position_embeddings=40)  # fmt: skip
    config = getattr(transformers, f"{request.param}Config")(
        vision_config=SIZES,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE_TOKEN,
    )
    model = getattr(transformers, f"{request.param}ForConditionalGeneration")(config)
    language = model.language_model
    language.lm_head.weight = torch.nn.Parameter(torch.empty(96, 32))
    randomise(model, seed=3)
    with torch.no_grad():
        language.lm_head.weight *= 4.0
        language.lm_head.weight[1] *= 3.0 if reads else 6.0  # EOS: half of the outputs end
        for block in language.decoder.block:  # outputs follow inputs
            block.layer[1].EncDecAttention.v.weight *= 3.0
            block.layer[1].EncDecAttention.o.weight *= 3.0
        model.language_projection.weight *= 3.0
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        f'{{"image_mean": {list(EVA["pixel_mean"])}, "image_std": {list(EVA["pixel_std"])}}}'
    )
    return model, str(folder), reads


def ours(folder, reads, size=(28, 28), **overrides):
    """This package's model with a folder's weights."""
    config = T5Config(**config_fields(open_source(folder)), **overrides)
    qformer = QFormerConfig(QUERIES, 16, 4, 32, 3, 2, 50 if reads else 0, 40)
    backbone = BLIP2(config, ViTConfig(size, 7, 24, 4, 48, 2, **EVA, **overrides), qformer)
    return AdaptedModel(backbone), load(backbone, folder)


def features(rows, size, reads):
    batch = {
        "images": pictures(rows, size),
        "encoder_input_tokens": np.minimum(tokens(rows, 9), IMAGE_TOKEN - 1).astype(np.int32),
    }
    return batch | ({"qformer_input_tokens": np.minimum(tokens(rows, 7, seed=5), 49).astype(np.int32)} if reads else {})


def theirs_of(batch, config):
    """transformers' arguments for a batch: the image's placeholders come before the text."""
    text = batch["encoder_input_tokens"]
    ids = np.concatenate([np.full((len(text), QUERIES), IMAGE_TOKEN), text], axis=1)
    out = {"pixel_values": pixel_values(batch["images"], config), "input_ids": torch.tensor(ids),
           "attention_mask": torch.tensor((ids > 0).astype(np.int64)), "interpolate_pos_encoding": True}  # fmt: skip
    if "qformer_input_tokens" in batch:
        words = torch.tensor(batch["qformer_input_tokens"]).long()
        out |= {"qformer_input_ids": words, "qformer_attention_mask": (words > 0).long()}
    return out


@pytest.mark.parametrize("kind", ["blip2", "instructblip"])
@pytest.mark.parametrize(("size", "width", "hidden", "heads"), [("xl", 2048, 5120, 32), ("xxl", 4096, 10240, 64)])
def test_parameters_of_the_public_sizes(kind, size, width, hidden, heads, capsys):
    """transformers' defaults are the published vision tower and Q-Former; it ties the head of a fresh T5, which is untied here."""
    text = dict(model_type="t5", vocab_size=32128, d_model=width, d_ff=hidden, num_layers=24, num_decoder_layers=24,
                num_heads=heads, d_kv=64, feed_forward_proj="gated-gelu", tie_word_embeddings=False)  # fmt: skip
    name = {"blip2": "Blip2", "instructblip": "InstructBlip"}[kind]
    qformer = {} if kind == "blip2" else {"vocab_size": 30523}
    config = getattr(transformers, f"{name}Config")(text_config=text, qformer_config=qformer)
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    named = dict(model.named_parameters(remove_duplicate=False))
    theirs = sum(leaf.numel() for leaf_name, leaf in named.items() if not leaf_name.endswith("embed_tokens.weight"))
    assert main(["params", f"--gin_file=gin/models/{kind}_flan_t5_{size}.gin", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == theirs
    head = next(
        line
        for line in (gin_root() / f"models/{kind}_flan_t5_{size}.gin").read_text().splitlines()
        if "parameters" in line
    )
    assert f"{theirs:,} parameters" in head


@pytest.mark.parametrize("size", RESOLUTIONS)
def test_features_and_logits_of_an_image_and_text_model(blip, size):
    model, folder, reads = blip
    mine, params = ours(folder, reads, size)
    batch = features(3, size, reads) | {"decoder_input_tokens": tokens(3, 6, seed=1).astype(np.int32)}
    with torch.no_grad():
        out = model(**theirs_of(batch, mine.backbone.vision_config),
                    decoder_input_ids=torch.tensor(batch["decoder_input_tokens"]).long())  # fmt: skip
    run = jax.jit(lambda params: mine.backbone.apply({"params": params}, batch, method="image_features"))
    seen = run(params.tree()["backbone"])
    assert_close(seen, out.qformer_outputs.last_hidden_state[:, :QUERIES])
    assert_close(jax.jit(mine.apply)({"params": params.tree()}, batch), out.logits)
    resampled = "resampled (bicubic)" in params.sources["backbone/vision"]
    assert resampled == (size != (28, 28))


def test_greedy_outputs_on_32_pairs_of_image_and_question(blip):
    model, folder, reads = blip
    mine, params = ours(folder, reads)
    batch, length = features(32, (28, 28), reads), 12
    out = model.generate(
        **theirs_of(batch, mine.backbone.vision_config), max_new_tokens=length, do_sample=False, num_beams=1
    )
    out = out.numpy()[:, 1:]
    out = np.pad(out, ((0, 0), (0, length - out.shape[1])))
    run = jax.jit(lambda params: mine.apply({"params": params}, batch, length, Sampling(), method="generate").ids[:, 0])
    np.testing.assert_array_equal(run(params.tree()), out)
    assert len({tuple(row) for row in out.tolist()}) >= 16
    assert (out == 1).any(axis=-1).sum() >= 8


def test_scanned_and_unrolled_forms_of_an_image_and_text_model_agree(blip):
    _, folder, reads = blip
    batch = features(3, (28, 28), reads) | {"decoder_input_tokens": tokens(3, 6, seed=1).astype(np.int32)}
    (one, params), (other, stacked) = ours(folder, reads), ours(folder, reads, scan_layers=True)
    assert_close(
        jax.jit(other.apply)({"params": stacked.tree()}, batch), jax.jit(one.apply)({"params": params.tree()}, batch)
    )
    assert stacked.base.fingerprint == params.base.fingerprint


def test_a_q_former_with_another_number_of_heads_is_refused(blip):
    _, folder, reads = blip
    backbone = BLIP2(T5Config(**config_fields(open_source(folder))), ViTConfig((28, 28), 7, 24, 4, 48, 2, **EVA),
                     QFormerConfig(QUERIES, 16, 2, 32, 3, 2, 50 if reads else 0, 40))  # fmt: skip
    with pytest.raises(CheckpointError, match="set QFormerConfig.num_heads"):
        load(backbone, folder)


def test_the_native_format_gives_the_same_model(blip, tmp_path):
    _, folder, reads = blip
    checkpoints.convert(open_source(folder), str(tmp_path / "native"), "native")
    mine, params = ours(folder, reads, (42, 35))
    again = load(mine.backbone, str(tmp_path / "native"))
    assert again.base.fingerprint == params.base.fingerprint
    with pytest.raises(CheckpointError, match="set ViTConfig.pixel_mean"):
        load(mine.backbone.clone(vision_config=ViTConfig((28, 28), 7, 24, 4, 48, 2, class_token=True, activation="gelu_exact")),
             str(tmp_path / "native"))  # fmt: skip
