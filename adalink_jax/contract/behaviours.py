"""What every adaptation method must do, as one list of checks, which `adalink check-method` and the tests run.

Each behaviour is a function of a `Case` (a method on a tiny backbone). It returns None or a remark, and raises `Fails` or
`DoesNotApply` with the reason. Everything is computed in float32; distances are relative to the standard deviation of the expected values.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator

import jax
import numpy as np

from adalink_jax import parallel
from adalink_jax.adapters import (
    AdaptedModel,
    LayerAdapter,
    abstract_params,
    check_packable,
    describe_adapter,
    fold_adapter,
    folded_backbone,
    make_adapter,
)
from adalink_jax.checkpoints import BaseReference, load_adapter, save_adapter
from adalink_jax.contract.case import ROWS, Case, compiled
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.models import paths

NEAR = 1e-5  # the largest distance between equal results of different programs
_BASE, _OTHER = "f" * 64, "e" * 64  # fingerprints
PASS, FAIL, DOES_NOT_APPLY = "pass", "fail", "does not apply"


class Fails(Exception):
    """The method does not have the behaviour; the message says why."""


class DoesNotApply(Exception):
    """The behaviour is not defined for the method, or cannot be checked here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of one check, `PASS`, `FAIL` or `DOES_NOT_APPLY`, and the reason or a remark."""

    outcome: str
    reason: str = ""


def starts_as_the_base(case: Case) -> str | None:
    """A fresh adapter gives the base's logits bit for bit, if the method declares `identity_at_start`."""
    same = np.array_equal(case.logits(case.fresh), case.base.plain)
    if getattr(case.adapter, "identity_at_start", False):
        return _require(same, "declares identity_at_start, but a fresh one changes the logits")
    return f"declares no identity_at_start; a fresh one {'equals' if same else 'does not equal'} the base"


def changes_the_outputs(case: Case) -> None:
    """A trained adapter changes the outputs."""
    _require(_distance(case.outputs, case.base.plain) > 100 * NEAR, "its parameters have no effect on the logits")


def moves_only_its_own_leaves(case: Case) -> None:
    """A training step changes every leaf of the adapter, and none of the base."""
    after, before = case.stepped[0], paths.flatten(case.params())
    for name, leaf in after.items():
        moved = (np.asarray(leaf) != before[name]).any()
        _require(
            moved == name.startswith("adapter/"),
            f"{name} {'changes' if moved else 'does not change'} in a training step",
        )


def is_saved_and_loaded(case: Case) -> None:
    """Saved, rebuilt from its settings and loaded, the adapter gives the same outputs bit for bit."""
    with _saved(case) as (folder, abstract):
        loaded, facts = load_adapter(folder, abstract, BaseReference("base", _BASE), module=case.adapter)
    again = make_adapter(facts.method, facts.settings)
    same = case.program(again) == case.program(case.adapter)
    _require(same, f"rebuilt from {facts.settings}, it computes something else")
    same = np.array_equal(case.logits(paths.unflatten(jax.device_get(loaded))), case.outputs)
    _require(same, "with the loaded leaves the outputs differ")


def refuses_another_base(case: Case) -> None:
    """Loading the adapter for another base is refused."""
    with _saved(case) as (folder, abstract):
        try:
            load_adapter(folder, abstract, BaseReference("base", _OTHER))
        except CheckpointError as e:
            return _require("another base" in str(e), str(e))
    raise Fails("the adapter loads onto another base")


def is_disabled(case: Case) -> str | None:
    """Disabled, also after training, it leaves the base's logits bit for bit; in a bank too, unless a prompt changes lengths."""
    backbone = paths.unflatten(case.stepped[0])["backbone"]
    _require(np.array_equal(case.base.logits(backbone), case.base.plain), "a training step changes the base")
    try:
        bank = case.bank()
    except UserError as e:
        return str(e)
    empty = case.served(bank)
    _near(empty, case.base.plain, "in an empty bank")
    same = case.longer or np.array_equal(empty, case.base.plain)
    _require(same, "in an empty bank, the base's logits are near, but not bit-identical")
    bank.add("it", case.adapter, case.trained)
    bank.activate("it")
    _near(case.served(bank), case.outputs, "served from a bank")
    bank.disable()
    return _require(np.array_equal(case.served(bank), empty), "disabled in a bank, it still changes the logits")


def is_deleted(case: Case) -> None:
    """Deleting it from a bank leaves the base and the bank's other adapters unchanged."""
    try:
        bank = case.bank()
    except UserError as e:
        raise DoesNotApply(str(e)) from e
    for name, sign in (("it", 1.0), ("other", -1.0)):
        bank.add(name, case.adapter, case.moved(sign))
    other = ["other"] * ROWS
    before = case.served(bank, other)
    bank.activate("it")
    bank.delete("it")
    _near(case.served(bank), case.base.plain, "deleted from a bank")
    _require(bank.names == ["other"], f"the bank holds {bank.names}")
    _require(
        np.array_equal(case.served(bank, other), before),
        "deleting it from a bank changes the outputs of another adapter",
    )


def is_merged_or_folded(case: Case) -> None:
    """Merged into the layers (`LayerAdapter.merge`) or folded into the embedding tables (`per_token`), it gives the same logits."""
    backbone = jax.tree.map(lambda x: x, case.base.params)
    try:
        base = case.base.backbone
        facts = base.embedding_scale, base.replaced_ids, base.reads_text
        folded = fold_adapter(case.adapter, case.trained, backbone, *facts)
    except UserError as e:
        raise DoesNotApply(str(e)) from e
    same = jax.tree.all(jax.tree.map(lambda a, b: a is b, backbone, case.base.params))
    _require(same, "`merge` changes its argument, the base's parameters, in place")
    model = AdaptedModel(folded_backbone(case.base.backbone, folded))
    how = "merged" if isinstance(case.adapter, LayerAdapter) else "folded"
    _near(compiled(model)({"backbone": folded}, case.batch), case.outputs, how)


def scans_like_unrolled_layers(case: Case) -> None:
    """Scanned and unrolled layers give the same logits."""
    _near(case.unrolled, case.outputs, "with unrolled layers")


def keeps_packed_examples_apart(case: Case) -> None:
    """Examples that share a row have the logits that they have alone, if the method declares `per_token` or `per_segment`."""
    try:
        check_packable(case.base.backbone, case.adapter)
    except UserError as e:
        raise DoesNotApply(str(e)) from e
    _near(*case.packed, "in a row with another example")


def decodes_like_teacher_forcing(case: Case) -> None:
    """Greedy decoding gives the most likely tokens under teacher forcing."""
    ids = case.greedy[:, : case.batch["decoder_input_tokens"].shape[1]]
    start, ends = case.base.backbone.token_ids.start, case.base.backbone.token_ids.ends
    forced = case.batch | {"decoder_input_tokens": np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=start)}
    likeliest = np.argmax(case.logits(batch=forced), axis=-1)
    is_end = np.isin(ids, ends)
    live = np.cumsum(is_end, axis=1) - is_end == 0
    _require(
        np.array_equal(ids[live], likeliest[live]), "a decoded token is not the most likely one under teacher forcing"
    )


def trains_alike_on_several_devices(case: Case) -> None:
    """A training step on several devices gives the same loss and leaves as on one device."""
    count = jax.device_count()
    if count < 2:
        raise DoesNotApply("there is only one device")
    shape = 2, max(size for size in (1, 2, 4) if 2 * size <= count)
    mesh = parallel.make_mesh(*shape, slices=1, devices=jax.devices()[: 2 * shape[1]])
    rules = parallel.logical_axis_rules(fsdp=False, extra=())
    expected, loss = case.stepped
    with parallel.use_mesh(mesh, rules):
        params = jax.device_put(case.params(), parallel.param_shardings(abstract_params(case.model), mesh, rules))
        leaves, sharded_loss = case.step(params, parallel.put_batch(case.batch, mesh))
    _require(
        abs(sharded_loss / loss - 1) <= NEAR, f"on a mesh {shape} the loss is {sharded_loss}, on one device {loss}"
    )
    for name in (name for name in expected if name.startswith("adapter/")):
        _near(np.asarray(leaves[name]), np.asarray(expected[name]), f"on a mesh {shape}, {name}")


BEHAVIOURS: tuple[Callable[[Case], str | None], ...] = (
    starts_as_the_base,
    changes_the_outputs,
    moves_only_its_own_leaves,
    is_saved_and_loaded,
    refuses_another_base,
    is_disabled,
    is_deleted,
    is_merged_or_folded,
    scans_like_unrolled_layers,
    keeps_packed_examples_apart,
    decodes_like_teacher_forcing,
    trains_alike_on_several_devices,
)


def examine(behaviour: Callable[[Case], str | None], case: Case) -> Result:
    """Checks one behaviour of the method of `case`; an error inside the method counts as a failure."""
    try:
        with jax.default_matmul_precision("highest"):
            return Result(PASS, behaviour(case) or "")
    except DoesNotApply as e:
        return Result(DOES_NOT_APPLY, str(e))
    except Exception as e:  # a user's method may raise anything
        name = "" if isinstance(e, Fails | UserError) else f"{type(e).__name__}: "
        return Result(FAIL, name + str(e).strip().split("\n")[0])


def _require(condition: bool, failure: str) -> None:
    if not condition:
        raise Fails(failure)


def _distance(values: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the standard deviation of `expected`."""
    return float(np.abs(values - expected).max() / np.std(expected))


def _near(values: np.ndarray, expected: np.ndarray, situation: str) -> None:
    distance = _distance(values, expected)
    _require(distance <= NEAR, f"{situation}, it differs by {distance:.1e} of the spread; {NEAR:.0e} is allowed")


@contextlib.contextmanager
def _saved(case: Case) -> Iterator[tuple[str, dict]]:
    """Saves the trained adapter; gives its folder, and the abstract tree to load it into."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), case.trained)
    with tempfile.TemporaryDirectory() as folder:
        about = describe_adapter(case.adapter) | {"base": {"name": "base", "fingerprint": _BASE}}
        save_adapter(folder, case.trained, about)
        yield folder, abstract
