"""Pushes an adapter to the Hugging Face Hub: its files, its card, its run's configuration.

The card's snippet is run from the files before anything is sent.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from etils import epath

from adalink_jax.checkpoints.adapter_files import CONFIG, WEIGHTS
from adalink_jax.errors import UserError
from adalink_jax.files.whole_file import write_bytes
from adalink_jax.interop import model_card
from adalink_jax.interop.model_card import HUB, PICTURE, Described

CARD, RUN_CONFIG = "README.md", "config.gin"
PUSHED = (CONFIG, WEIGHTS, CARD, RUN_CONFIG)
_ALWAYS_THERE = (".gitattributes",)
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def repo_of(place: str) -> str:
    """`OWNER/NAME` of `hf://OWNER/NAME`.

    Raises:
      UserError: for any other text, and if huggingface_hub, which writes cards too, is not installed.
    """
    repo = place.removeprefix(HUB)
    if not place.startswith(HUB) or not _NAME.fullmatch(repo):
        raise UserError(f"{place!r} is not a repository of the Hub; give hf://OWNER/NAME.")
    with _hub_errors(repo):
        return repo


def prepare(adapter: Described, repo: str, folder: epath.Path) -> None:
    """Writes everything that is pushed to `folder`, which exists, and runs the card's snippet on it.

    Raises:
      UserError: if the snippet fails.
    """
    for name in (CONFIG, WEIGHTS):
        write_bytes(folder / name, (adapter.folder / name).read_bytes())
    if adapter.run is not None and (adapter.run / RUN_CONFIG).exists():
        write_bytes(folder / RUN_CONFIG, (adapter.run / RUN_CONFIG).read_bytes())
    model_card.write_card(adapter, repo, folder)
    _run_snippet(adapter, os.fspath(folder))


def _run_snippet(adapter: Described, folder: str) -> None:
    with tempfile.TemporaryDirectory() as here:
        if adapter.needs_image:
            from PIL import Image

            Image.new("RGB", (64, 64), "grey").save(os.path.join(here, PICTURE))
        code = model_card.snippet(adapter, os.path.abspath(folder))
        # This package as it is here, wherever it was imported from.
        paths = os.pathsep.join(path for path in (os.path.abspath(path) for path in sys.path) if os.path.isdir(path))
        environment = os.environ | {"PYTHONPATH": paths}
        done = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        reason = re.sub(r"^[\w.]*(?:Error|Exception): ", "", reason)[:500].rstrip(".")
        raise UserError(f"The snippet of the card failed, so nothing was pushed: {reason}. Its code is:\n{code}")


def check_repository(repo: str, force: bool) -> None:
    """Refuses a repository that cannot be pushed to, before anything is written.

    Raises:
      UserError: if there is no token, the Hub is not available, or the repository holds other files and `force` is False.
    """
    with _hub_errors(repo):
        import huggingface_hub

        if huggingface_hub.get_token() is None:
            raise UserError("There is no token for the Hub; run `hf auth login`, or set HF_TOKEN.")
        api = huggingface_hub.HfApi()
        if not api.repo_exists(repo):
            return
        others = sorted({*api.list_repo_files(repo)} - {*PUSHED, *_ALWAYS_THERE})
    if others and not force:
        raise UserError(
            f"{HUB}{repo} holds other files, such as {others[0]}; give another name, or --force to push beside them."
        )


def push(folder: epath.Path, repo: str, private: bool) -> str:
    """Creates the repository if it is new, and commits the files of `folder`; returns the commit's address.

    Raises:
      UserError: if the Hub refuses it.
    """
    with _hub_errors(repo):
        import huggingface_hub

        api = huggingface_hub.HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        message = "Adapter of AdaLink-JAX"
        commit = api.upload_folder(
            repo_id=repo, folder_path=os.fspath(folder), commit_message=message, allow_patterns=[*PUSHED]
        )
        return commit.commit_url


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turns an error of the Hub's library into one sentence."""
    try:
        import huggingface_hub  # noqa: F401
        from huggingface_hub import errors
    except ModuleNotFoundError as e:
        raise UserError(f"{HUB}{repo} needs huggingface_hub: pip install 'adalink-jax[hf]'.") from e
    try:
        yield
    except (
        errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # httpx's, under any of its names
        errors.HFValidationError,
        OSError,
    ) as e:
        offline = ", and HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(f"{HUB}{repo} cannot be pushed to{offline}: {reason.rstrip('.')}.") from e
