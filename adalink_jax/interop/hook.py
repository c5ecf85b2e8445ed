"""An adapter with the few lines of PyTorch that hook it into a model of `transformers`, for any phi."""

from etils import epath

from adalink_jax.adapters import make_adapter
from adalink_jax.checkpoints import read_adapter
from adalink_jax.checkpoints.convert import check_destination
from adalink_jax.errors import UserError
from adalink_jax.interop.folded import TEMPLATES, fill_template

MODULE = "adalink_torch.py"


def export_hook(adapter: str, folder: str) -> None:
    """Writes the adapter's files, the module and a page on its use.

    Raises:
      CheckpointError: for a folder that is no adapter, and a destination that is not empty.
      UserError: for an adapter of more than the text.
    """
    path = check_destination(folder)
    leaves, about = read_adapter(adapter)
    module = make_adapter(about["method"], about["settings"])
    pairs = {name.split("/")[0] for name in leaves}
    if not getattr(module, "per_token", False) or (module.kinds or ("text",)) != ("text",) or "image" in pairs:
        raise UserError(f"The adapter {adapter} has {', '.join(sorted(pairs))}; the hook takes one of the text alone.")
    path.mkdir(parents=True, exist_ok=True)
    for file in epath.Path(adapter).expanduser().iterdir():
        if file.name.startswith("adapter_"):
            file.copy(path / file.name, overwrite=True)
    (path / MODULE).write_text((TEMPLATES / MODULE).read_text())
    fill_template("hook_README.md", path / "README.md", about)
