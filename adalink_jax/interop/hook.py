"""An adapter with the few lines of PyTorch that hook it into a model of `transformers`, for any phi."""

from etils import epath

from adalink_jax.checkpoints.convert import check_destination
from adalink_jax.errors import UserError
from adalink_jax.interop.folded import TEMPLATES, fill_template
from adalink_jax.interop.text_adapter import read_text_adapter

MODULE = "adalink_torch.py"


def export_hook(adapter: str, folder: str) -> None:
    """Writes the adapter's files, the module and a page on its use.

    Raises:
      CheckpointError: for a folder that is no adapter, and a destination that is not empty.
      UserError: for an adapter of more than the text.
    """
    path = check_destination(folder)
    module, _, about = read_text_adapter(adapter)
    if module.share and module.kinds is None:
        raise UserError(
            f"The adapter {adapter} has one pair for all kinds of input, and does not say whether images are among them; "
            f"export it with --to hf, or train it with KINDS = ('text',)."
        )
    path.mkdir(parents=True, exist_ok=True)
    for file in epath.Path(adapter).expanduser().iterdir():
        if file.name.startswith("adapter_"):
            file.copy(path / file.name, overwrite=True)
    (path / MODULE).write_text((TEMPLATES / MODULE).read_text())
    fill_template("hook_README.md", path / "README.md", about)
