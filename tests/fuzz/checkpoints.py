"""Adapters, and base models in every format, with edits: what is accepted has the values that were written."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzz import damage
from fuzz.engine import Target
from fuzz.outcomes import CHANGED, EQUAL, UNPROTECTED, Outcome, Run, judge, run

INPUT = "input"  # the folder that the command is given
SEALED = {"adapter_config.json": "adalink", "base_config.json": None}  # file -> the object in it that has its digest


def _plans(originals: pathlib.Path) -> st.SearchStrategy[tuple[str, list[damage.Edit], bool]]:
    """`(name of the original, edits, whether the digest of the edited configuration is made anew)`."""
    one = lambda name: st.tuples(
        st.just(name), damage.edits(originals / name / INPUT), st.integers(0, 3).map(lambda n: n == 0)
    )
    return st.sampled_from(sorted(path.name for path in originals.iterdir() if path.is_dir())).flatmap(one)


def _make(plan: tuple[str, list[damage.Edit], bool], originals: pathlib.Path) -> None:
    name, changes, sealed_anew = plan
    damage.damaged(originals / name / INPUT, pathlib.Path(INPUT), changes)
    for file in SEALED if sealed_anew else ():
        path = pathlib.Path(INPUT, file)
        if not path.is_symlink() and damage.is_json(path):
            _seal(path, SEALED[file])


def _seal(path: pathlib.Path, within: str | None) -> None:
    from adalink_jax.files import sealed_json

    value = json.loads(path.read_bytes())
    if isinstance(value, dict) and (within is None or isinstance(value.get(within), dict)):
        path.write_bytes(sealed_json.seal(value, within).encode("utf-8", "surrogatepass"))


def _digest(leaves: Mapping[str, np.ndarray]) -> str:
    text = [
        f"{k} {v.dtype} {v.shape} {hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest()}"
        for k, v in leaves.items()
    ]
    return hashlib.sha256("\n".join(sorted(text)).encode()).hexdigest()


def _names(plan: tuple[str, list[damage.Edit], bool]) -> tuple[str, ...]:
    return (INPUT, *(os.path.basename(change.file) for change in plan[1]))


def _expected(originals: pathlib.Path, name: str, make: Callable[[str], Any]) -> Any:
    """What the sound original gives, computed once per worker."""
    path = str(originals / name)
    if (path, make) not in _KNOWN:
        _KNOWN[path, make] = make(path)
    return _KNOWN[path, make]


_KNOWN: dict[tuple, Any] = {}


# --- adapters ---


def _prepare_adapters(folder: pathlib.Path) -> None:
    from test_adapter_files import unseal, write

    from adalink_jax import LoRA
    from adalink_jax.adapters import describe_adapter
    from adalink_jax.checkpoints import save_adapter

    write(folder / "sealed" / INPUT)
    write(folder / "of_0_1_0" / INPUT)
    unseal(folder / "of_0_1_0" / INPUT)
    rng = np.random.default_rng(0)
    lora = {f"encoder/layers_0/attention/query/{side}": rng.normal(size=shape).astype("f")
            for side, shape in (("down", (6, 2)), ("up", (2, 6)))}  # fmt: skip
    facts = describe_adapter(LoRA(rank=2)) | {"base": {"name": "base", "fingerprint": "f" * 64}}
    save_adapter(str(folder / "lora" / INPUT), lora, facts)


def _adapter_facts(path: str) -> tuple[str, bool, str]:
    from adalink_jax.checkpoints import read_adapter

    leaves, facts = read_adapter(path)
    return _digest(leaves), facts.verified, json.dumps(facts.to_json(), sort_keys=True)


def _run_adapter(plan: Any, originals: pathlib.Path) -> Outcome:
    _make(plan, originals)

    def accepted(done: Run) -> Outcome:
        found, expected = _adapter_facts(INPUT), _expected(originals, os.path.join(plan[0], INPUT), _adapter_facts)
        if found == expected:
            return Outcome(EQUAL)
        return Outcome(CHANGED if found[1] and not plan[2] else UNPROTECTED, "an adapter", f"{found}\n{expected}")

    shown = judge(run("adapters", "show", INPUT), lambda done: Outcome(EQUAL), _names(plan))
    return shown if shown.is_failure else judge(run("adapters", "verify", INPUT), accepted, _names(plan))


# --- bases ---


def _native(folder: pathlib.Path, pictures: bool = False) -> None:
    from helpers import init, random_batch, tiny_pali, tiny_t5

    from adalink_jax import T5, AdaptedModel
    from adalink_jax.checkpoints import save_base, stated_settings

    sizes = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    backbone = tiny_pali(**sizes) if pictures else T5(tiny_t5(**sizes))
    params = init(AdaptedModel(backbone), random_batch(backbone, 2, 6, 4, seed=0))["backbone"]
    save_base(folder, params, "tiny", stated_settings(backbone))


def _prepare_native(folder: pathlib.Path) -> None:
    from adalink_jax.checkpoints.native import CONFIG

    _native(folder / "text" / INPUT)
    _native(folder / "pictures" / INPUT, pictures=True)
    _native(folder / "of_0_1_0" / INPUT)
    config = json.loads((folder / "of_0_1_0" / INPUT / CONFIG).read_text())
    old = {name: x for name, x in config.items() if name not in ("digests", "digest")} | {"format_version": 1}
    (folder / "of_0_1_0" / INPUT / CONFIG).write_text(json.dumps(old))


def _prepare_hugging_face(folder: pathlib.Path) -> None:
    from adalink_jax.checkpoints import hugging_face

    _native(folder.parent / "hf_native")
    assert run("convert", str(folder.parent / "hf_native"), str(folder / "whole" / INPUT), "--to", "hf").status == 0
    whole, hugging_face.SHARD_BYTES = hugging_face.SHARD_BYTES, 30_000
    assert run("convert", str(folder.parent / "hf_native"), str(folder / "sharded" / INPUT), "--to", "hf").status == 0
    hugging_face.SHARD_BYTES = whole


def _prepare_t5x(folder: pathlib.Path) -> None:
    import orbax.checkpoint as ocp

    from adalink_jax.checkpoints import open_source
    from adalink_jax.models import paths

    _native(folder.parent / "t5x_native")
    (folder / "legacy" / INPUT).mkdir(parents=True)
    assert (
        run(
            "convert", str(folder.parent / "t5x_native"), str(folder / "legacy" / INPUT / "checkpoint_7"), "--to", "t5x"
        ).status
        == 0
    )
    leaves = {name: leaf.whole() for name, leaf in open_source(folder.parent / "t5x_native").leaves.items()}
    for name, ocdbt in (("orbax", True), ("orbax_folders", False)):
        state = {"target": paths.unflatten(leaves), "state": {"step": np.int32(7), "param_states": {}}}
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)).save(
            folder / name / INPUT / "checkpoint_7" / "state", state
        )


def _base_facts(path: str) -> tuple[str, str]:
    from adalink_jax.checkpoints import open_source

    source = open_source(path)
    values = _digest({name: leaf.whole() for name, leaf in source.leaves.items()})
    return values, repr((source.settings, source.name, source.position_rule))


def _run_base(plan: Any, originals: pathlib.Path, folder: str = "") -> Outcome:
    from adalink_jax.checkpoints import open_source

    _make(plan, originals)
    path = os.path.join(INPUT, folder)

    def accepted(done: Run) -> Outcome:
        found = _base_facts(path)
        if found == _expected(originals, os.path.join(plan[0], path), _base_facts):
            return Outcome(EQUAL)
        return Outcome(CHANGED if open_source(path).digests and not plan[2] else UNPROTECTED, "a base")

    return judge(run("inspect", path), accepted, _names(plan))


def _run_t5x(plan: Any, originals: pathlib.Path) -> Outcome:
    return _run_base(plan, originals, "checkpoint_7")


TARGETS = {
    "adapters": Target(_prepare_adapters, _plans, _run_adapter, ("sealed", [], False), share=3),
    "native bases": Target(_prepare_native, _plans, _run_base, ("text", [], False), share=2),
    "Hugging Face bases": Target(_prepare_hugging_face, _plans, _run_base, ("whole", [], False), share=2),
    "t5x bases": Target(_prepare_t5x, _plans, _run_t5x, ("legacy", [], False), share=2),
}
