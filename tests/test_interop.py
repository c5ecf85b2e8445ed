"""Bases and adapters give `transformers` the same numbers: converted, compared, folded, and hooked in."""

import json
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import make_reference, tokens, torch, transformers
from safetensors.numpy import load_file, save_file
from test_t5_parity import assert_close, ours

from adalink_jax import AdaLinkAdapter, AdaptedModel, configuration, parallel
from adalink_jax.adapters import abstract_params
from adalink_jax.adapters.adalink import PHI
from adalink_jax.checkpoints import fingerprint, open_source, save_adapter
from adalink_jax.checkpoints.source import Source
from adalink_jax.cli.arguments import register
from adalink_jax.cli.main import main
from adalink_jax.data import ByteVocabulary
from adalink_jax.files.leaves import Leaf
from adalink_jax.interop import verify_base
from adalink_jax.models import paths
from adalink_jax.serving import opening, shipped

RANK = 4
pytestmark = pytest.mark.usefixtures("exact_matmuls")


@pytest.fixture(scope="module", params=["T5 1.0", "T5 1.1"])
def base(request, tmp_path_factory):
    """A Hugging Face folder, with tied and with untied logits; its reference, this package's model, and its parameters."""
    folder = tmp_path_factory.mktemp("base")
    reference = make_reference(request.param)
    reference.save_pretrained(folder)
    model, params = ours(folder)
    return folder, reference, model, params["backbone"]


@pytest.fixture(scope="module")
def byt5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("byt5")
    make_reference("ByT5").save_pretrained(folder)
    return folder


def make_adapter(folder, base, phi="gelu", seed=0, up=0.5, **settings):
    """Writes an adapter's folder, trained unless `up` is 0; returns its parameters."""
    rng = np.random.default_rng(seed)
    width = base[3]["token_embedder"]["embedding"].shape[1]
    pair = {"down": rng.normal(size=(width, RANK)) * width**-0.5, "up": rng.normal(size=(RANK, width)) * up}
    params = {"text": {name: leaf.astype(np.float32) for name, leaf in pair.items()}}
    fields = {"rank": RANK, "phi": phi, "scale": 0.7, "kinds": None, "share": False, **settings}
    about = {"method": "AdaLinkAdapter", "settings": fields, "task": "some_task", "metrics": {"adapted_accuracy": 0.5}}
    mark = {"name": "owner/model", "fingerprint": fingerprint(base[3])}
    save_adapter(folder, params, about | {"base": mark})
    return params


def run(capsys, *argv, status=0):
    found = main([*map(str, argv)])
    out = capsys.readouterr()
    assert found == status, out.err
    return out.out if status != 2 else out.err


def inspected(capsys, path):
    return json.loads(run(capsys, "inspect", path, "--json"))


def test_a_conversion_through_every_format_keeps_every_bit(base, tmp_path, capsys):
    folder = base[0]
    route = [
        ("native", "float32"),
        ("t5x", None),
        ("hf", None),
        ("native", "bfloat16"),
        ("t5x", "float32"),
        ("hf", None),
    ]
    files = ["--gin_file", tmp_path / "model.gin"]
    sizes = inspected(capsys, folder)["sizes"]
    fields = "".join(f"T5Config.{name} = {tuple(v) if isinstance(v, list) else v!r}\n" for name, v in sizes.items())
    (tmp_path / "model.gin").write_text("include 'gin/models/t5.gin'\n" + fields)
    last = folder
    for i, (to, dtype) in enumerate(route):
        place = tmp_path / f"checkpoint_{i}"
        run(capsys, "convert", last, place, "--to", to, *(["--dtype", dtype] if dtype else []), *files)
        assert inspected(capsys, place)["fingerprint"] == fingerprint(base[3])
        last = place
        if i == 2:
            theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(place).state_dict()
            for name, tensor in base[1].state_dict().items():
                assert torch.equal(theirs[name], tensor), name
    facts = inspected(capsys, last)
    assert facts["dtypes"] == ["float32"] and facts["parameters"] == sum(x.size for x in jax.tree.leaves(base[3]))
    assert facts["sizes"] == sizes


def test_inspect_names_the_shipped_model_that_fits(capsys):
    facts = inspected(capsys, "bundled:pali_nano_instruct")
    assert facts["fits"] == ["gin/models/pali_nano.gin"]
    assert facts["parameters"] == 337_536 and facts["bytes"] == 4 * 337_536
    assert facts["leaves"]["projection/kernel"]["shape"] == [64, 64]
    assert (
        json.loads(run(capsys, "inspect", "bundled:pali_nano_raw", "--json", "--no_fingerprint"))["fingerprint"] is None
    )
    shown = run(capsys, "inspect", "bundled:pali_nano_instruct")
    assert "337,536" in shown and facts["fingerprint"] in shown and "decoder/layers_*/mlp/wi_0/kernel" in shown
    assert inspected(capsys, "bundled:pali_nano_raw")["fingerprint"] != facts["fingerprint"]


def test_conversions_that_cannot_be_done_are_refused_before_anything_is_written(base, tmp_path, capsys):
    there = tmp_path / "there"
    message = run(capsys, "convert", "bundled:pali_nano_raw", there, "--to", "hf", status=2)
    assert "A Hugging Face T5 has no place for projection/bias" in message
    run(capsys, "convert", base[0], tmp_path / "checkpoint_1", "--to", "t5x")
    message = run(capsys, "convert", tmp_path / "checkpoint_1", there, "--to", "hf", status=2)
    assert "does not state mlp_activations" in message and "--gin_file" in message
    message = run(capsys, "convert", base[0], there, "--to", "t5x", "--gin_file=gin/models/t5_1_1_small.gin", status=2)
    assert "does not fit this model" in message
    assert not there.exists()
    message = run(capsys, "convert", base[0], tmp_path / "checkpoint_1", "--to", "native", status=2)
    assert "is not empty" in message and (tmp_path / "checkpoint_1" / "checkpoint").exists()
    assert "Nothing can be written to hf://me/model" in run(
        capsys, "convert", base[0], "hf://me/model", "--to", "hf", status=2
    )
    message = run(capsys, "convert", base[0], tmp_path / "checkpoint_1" / "checkpoint" / "x", "--to", "hf", status=2)
    assert "cannot be created" in message


def test_a_t5x_checkpoint_of_a_published_size_needs_no_gin_file(tmp_path, monkeypatch):
    """Its activations are taken from the shipped model that it fits; files of one model under two names are one."""
    register()
    for name, activations, first in (
        ("t5_1_0_small", ("relu",), "t5_1_0_small"),
        ("flan_t5_xl", ("gelu", "linear"), "flan_t5_xl"),
        ("ul2_20b", ("silu", "linear"), "flan_ul2"),
    ):
        flags, _ = configuration.parse_flags([f"--gin_file=gin/models/{name}.gin"])
        tree = parallel.unbox(abstract_params(AdaptedModel(shipped.configured_backbone(flags))))["backbone"]
        shapes = paths.unscanned_shapes(paths.flatten(tree))
        leaves = {key: Leaf(shape, np.dtype("float32"), key, None, shape) for key, shape in shapes.items()}
        source = Source("t5x checkpoint", name, name, leaves, tmp_path)
        assert (
            shipped.completed_source(source, configuration.GinFlags()).settings["language"]["mlp_activations"]
            == activations
        )
        assert f"gin/models/{name}.gin" in shipped.fitting_models(source)
        monkeypatch.setattr("adalink_jax.checkpoints.open_source", lambda path, download, source=source: source)
        assert opening.model_file(name, "") == f"gin/models/{first}.gin"


def test_values_keep_their_dtypes(base, tmp_path, capsys):
    mixed = shutil.copytree(base[0], tmp_path / "mixed")
    leaves = load_file(mixed / "model.safetensors")
    wide = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    leaves = {name: leaf if name == wide else leaf.astype("bfloat16") for name, leaf in leaves.items()}
    save_file(leaves, mixed / "model.safetensors", {"format": "pt"})
    run(capsys, "convert", mixed, tmp_path / "out", "--to", "hf")
    assert {name: leaf.dtype for name, leaf in load_file(tmp_path / "out" / "model.safetensors").items()} == {
        name: leaf.dtype for name, leaf in leaves.items()
    }
    assert inspected(capsys, tmp_path / "out")["dtypes"] == ["bfloat16", "float32"]


def test_verify_base_distinguishes_equal_and_other_numbers(byt5, tmp_path, capsys):
    bytes_ = ("--vocabulary", "bytes")
    message = run(capsys, "verify-base", byt5, *bytes_)
    assert "20 of 20 greedy outputs are the same" in message and f"{byt5} gives the numbers of transformers" in message
    run(capsys, "convert", byt5, tmp_path / "native", "--to", "native")
    assert "gives the numbers" in run(capsys, "verify-base", tmp_path / "native", "--reference", byt5, *bytes_)

    other = shutil.copytree(byt5, tmp_path / "other")
    leaves = load_file(other / "model.safetensors")
    leaves["encoder.block.0.layer.0.SelfAttention.o.weight"] *= 1.1
    save_file(leaves, other / "model.safetensors", {"format": "pt"})
    message = run(capsys, "verify-base", other, "--reference", byt5, *bytes_, status=1)
    assert "does NOT give the numbers" in message


@pytest.mark.slow
def test_outputs_with_other_ids_and_equal_text_are_not_the_same(byt5, monkeypatch):
    rows = verify_base(open_source(byt5), str(byt5), ByteVocabulary()).rows
    assert all(row.same for row in rows) and len({row.difference for row in rows}) > 10
    generate = AdaptedModel.generate

    def other(self, *args, **kw):  # ids beyond the bytes are decoded as nothing
        decoded = generate(self, *args, **kw)
        return decoded.replace(ids=jnp.full_like(decoded.ids, 300))

    monkeypatch.setattr(AdaptedModel, "generate", other)
    assert not any(row.same for row in verify_base(open_source(byt5), str(byt5), ByteVocabulary()).rows)


def test_verify_base_names_what_it_needs(base, byt5, tmp_path, capsys):
    assert "holds no spiece.model" in run(capsys, "verify-base", byt5, status=2)
    run(capsys, "convert", byt5, tmp_path / "native", "--to", "native")
    assert "with --reference" in run(capsys, "verify-base", tmp_path / "native", status=2)
    assert "is not a known language model" in run(capsys, "verify-base", write_other_model(tmp_path / "bert"), status=2)
    bytes_ = ("--vocabulary", "bytes")
    message = run(capsys, "verify-base", byt5, "--reference", tmp_path / "nowhere", status=2)
    assert "There is no folder" in message
    message = run(capsys, "verify-base", byt5, "--reference", tmp_path / "native", *bytes_, status=2)
    assert "is a native base model; give a Hugging Face folder" in message
    message = run(capsys, "verify-base", base[0], *bytes_, status=2)
    assert "The vocabulary has 259 ids and the model's embedding only 96 rows" in message
    message = run(capsys, "verify-base", base[0], "--reference", byt5, "--vocabulary", spiece_of(tmp_path), status=2)
    assert "does not fit this model: it has vocab_size 96 (model: 384)" in message
    with pytest.raises(SystemExit):
        main(["verify-base", str(byt5), "--gin.NOTHING=3"])
    assert "--gin.NOTHING needs --gin_file" in capsys.readouterr().err


def spiece_of(folder):
    """A vocabulary with few ids."""
    import sentencepiece

    (folder / "corpus.txt").write_text("a b c d e f g h i j k\n" * 50)
    sentencepiece.SentencePieceTrainer.Train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "spiece"), vocab_size=16, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString((folder / "spiece.model").read_bytes())
    proto.pieces.add(piece="<extra_id_0>", score=0.0, type=proto.SentencePiece.USER_DEFINED)  # no other extra ids
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    return folder / "spiece.model"


def write_other_model(folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"embeddings.weight": np.zeros((4, 4), np.float32)}, folder / "model.safetensors")
    return folder


def adapted_logits(base, adapter, params, inputs, targets):
    model = AdaptedModel(base[2].backbone, adapter)
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": targets}
    return jax.jit(model.apply)({"params": {"backbone": base[3], "adapter": params}}, batch)


def their_logits(model, inputs, targets):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(inputs), attention_mask=torch.tensor(inputs > 0),
            decoder_input_ids=torch.tensor(targets),
        ).logits.numpy()  # fmt: skip


def test_a_folded_adapter_is_an_ordinary_folder(base, tmp_path, capsys, monkeypatch):
    params = make_adapter(tmp_path / "adapter", base)
    message = run(capsys, "export", tmp_path / "adapter", tmp_path / "folded", "--to", "hf", "--base", base[0])
    assert "self_check.py" in message
    inputs, targets = tokens(8, 12), tokens(8, 6, seed=1)
    mine = adapted_logits(base, AdaLinkAdapter(RANK, "gelu", 0.7), params, inputs, targets)
    load = transformers.AutoModelForSeq2SeqLM.from_pretrained
    model = load(tmp_path / "folded").eval()
    assert_close(mine, their_logits(model, inputs, targets))
    assert torch.equal(model.shared.weight, base[1].shared.weight)
    model.save_pretrained(tmp_path / "again")
    assert_close(mine, their_logits(load(tmp_path / "again").eval(), inputs, targets))

    check = str(tmp_path / "folded" / "self_check.py")
    runpy.run_path(check)
    assert "The adapter is in place." in capsys.readouterr().out

    def tied(*args, **kw):  # what earlier versions do
        loaded = load(*args, **kw)
        loaded.encoder.embed_tokens.weight = loaded.shared.weight
        return loaded

    monkeypatch.setattr(transformers.AutoModelForSeq2SeqLM, "from_pretrained", tied)
    with pytest.raises(SystemExit, match="WITHOUT its adapter"):
        runpy.run_path(check)
    card = (tmp_path / "folded" / "README.md").read_text()
    assert "owner/model with an AdaLink adapter folded in" in card and "self_check.py" in card and "$" not in card


def test_a_folded_folder_in_bfloat16_checks_what_it_holds(base, tmp_path, capsys):
    make_adapter(tmp_path / "adapter", base)
    export = ("export", tmp_path / "adapter", tmp_path / "folded", "--to", "hf", "--base", base[0])
    run(capsys, *export, "--dtype", "bfloat16")
    assert load_file(tmp_path / "folded" / "self_check.safetensors")["logits"].dtype == np.float32
    runpy.run_path(str(tmp_path / "folded" / "self_check.py"))
    with pytest.raises(Exception, match="differs from shared.weight, as in a folder with a folded adapter"):
        open_source(tmp_path / "folded")


@pytest.mark.parametrize("phi", PHI)
def test_hooked_adapters_give_the_same_numbers_and_can_be_switched(phi, base, tmp_path, capsys):
    inputs, targets = tokens(40, 12), tokens(40, 6, seed=1)
    plain = their_logits(base[1], inputs, targets)
    made = {}
    for seed, name in enumerate(("one", "two")):
        params = make_adapter(tmp_path / name, base, phi, seed)
        run(capsys, "export", tmp_path / name, tmp_path / "out" / name, "--to", "torch")
        made[name] = adapted_logits(base, AdaLinkAdapter(RANK, phi, 0.7), params, inputs, targets), params
    hook = runpy.run_path(str(tmp_path / "out" / "one" / "adalink_torch.py"))["AdaLinks"](base[1])
    try:
        for name in made:
            hook.load(name, tmp_path / "out" / name)
        for name in ("one", "two", "one"):
            hook.switch(name)
            assert_close(made[name][0], their_logits(base[1], inputs, targets))
        with torch.no_grad():  # given embeddings, it adapts those
            embedded = base[1](
                inputs_embeds=base[1].shared(torch.tensor(inputs)), attention_mask=torch.tensor(inputs > 0),
                decoder_input_ids=torch.tensor(targets),
            )  # fmt: skip
        assert_close(made["one"][0], embedded.logits.numpy())
        with torch.no_grad():
            theirs = base[1].generate(
                torch.tensor(inputs), attention_mask=torch.tensor(inputs > 0), max_new_tokens=12, do_sample=False
            ).numpy()[:, 1:]  # fmt: skip
        model = AdaptedModel(base[2].backbone, AdaLinkAdapter(RANK, phi, 0.7))
        weights = {"params": {"backbone": base[3], "adapter": made["one"][1]}}
        generate = jax.jit(lambda weights, inputs: model.apply(weights, inputs, 12, method="generate").ids[:, 0])
        mine = generate(weights, {"encoder_input_tokens": inputs})
        np.testing.assert_array_equal(mine, np.pad(theirs, ((0, 0), (0, 12 - theirs.shape[1]))))
        hook.switch(None)
        np.testing.assert_array_equal(their_logits(base[1], inputs, targets), plain)
    finally:
        hook.remove()


def test_adapters_that_cannot_be_exported_are_refused(base, byt5, tmp_path, capsys):
    make_adapter(tmp_path / "adapter", base)
    there = ("--to", "hf", "--base")
    message = run(capsys, "export", tmp_path / "adapter", tmp_path / "out", *there, byt5, status=2)
    assert "was trained on another base" in message
    make_adapter(tmp_path / "target", base, kinds=("text", "target"))
    for to in ((*there, base[0]), ("--to", "torch")):
        message = run(capsys, "export", tmp_path / "target", tmp_path / "out", *to, status=2)
        assert "only an adapter of the text alone" in message
    make_adapter(tmp_path / "rank", base, rank=RANK + 1)
    message = run(capsys, "export", tmp_path / "rank", tmp_path / "out", "--to", "torch", status=2)
    assert "AdaLinkAdapter of its settings has" in message and "it is damaged" in message
    make_adapter(tmp_path / "setting", base, colour="red")
    message = run(capsys, "export", tmp_path / "setting", tmp_path / "out", "--to", "torch", status=2)
    assert "AdaLinkAdapter has no setting 'colour'; it has kinds, phi, rank, scale, share" in message
    message = run(capsys, "export", base[0], tmp_path / "out", "--to", "torch", status=2)
    assert "is not an adapter" in message
    make_adapter(tmp_path / "fresh", base, up=0.0)
    assert "changes nothing" in run(capsys, "export", tmp_path / "fresh", tmp_path / "out", *there, base[0], status=2)
    make_adapter(tmp_path / "faint", base, up=1e-4)
    faint = ("export", tmp_path / "faint", tmp_path / "out", *there, base[0], "--dtype", "bfloat16")
    assert "the folded table rounds away what the adapter" in run(capsys, *faint, status=2)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--to", "hf"])
    assert "--to hf needs --base" in capsys.readouterr().err
