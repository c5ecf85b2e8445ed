"""Exports an adapter with a PyTorch module that hooks it into a model of `transformers`, for any phi."""

from adalink_jax.checkpoints import AdapterFacts
from adalink_jax.checkpoints.convert import check_destination
from adalink_jax.checkpoints.families.family import FAMILIES
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of
from adalink_jax.files.whole_file import writing_folder
from adalink_jax.interop.exported_adapter import read_exported_adapter
from adalink_jax.interop.folded import TEMPLATES, fill_template

MODULE = "adalink_torch.py"


def export_hook(adapter: str, folder: str) -> None:
    """Writes the adapter's files, the module, and a README.

    Args:
      adapter: the adapter's folder.
      folder: a new or an empty folder.

    Raises:
      CheckpointError: for a folder that is not an adapter, and a destination that is not empty.
      UserError: for an adapter of inputs that the module does not change, and for one of a family whose encoder the module cannot hook into.
    """
    path = check_destination(folder)
    module, _, facts = read_exported_adapter(adapter, lambda facts: _kinds(adapter, facts))
    if module.share and module.kinds is None and "image" not in _kinds(adapter, facts):
        raise UserError(
            f"The adapter {adapter} has one pair for all kinds of input and does not state whether images are among them; "
            f"export it with --to hf, or train it with KINDS = ('text',)."
        )
    with writing_folder(path) as new:
        for file in path_of(adapter).iterdir():
            if file.name.startswith("adapter_"):
                file.copy(new / file.name)
        (new / MODULE).write_text((TEMPLATES / MODULE).read_text())
        fill_template("hook_README.md", new / "README.md", facts)


def _kinds(adapter: str, facts: AdapterFacts) -> tuple[str, ...]:
    """The kinds of input that the module can change in Hugging Face's model.

    Raises:
      UserError: for a family whose model has no encoder of its own.
    """
    kinds = next((family.hooked_kinds for family in FAMILIES if family.name == facts.base.family), ("text",))
    if not kinds:
        raise UserError(
            f"The adapter {adapter} is a {facts.base.family}'s, which has no encoder that {MODULE} could hook into; serve it with this "
            f"package."
        )
    return kinds
