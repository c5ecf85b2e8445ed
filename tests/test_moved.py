"""Names from before modules moved: imports, gin selectors and gin's import statements that users wrote then."""

import importlib
import subprocess
import sys

import pytest

from adalink_jax import configuration, moved
from adalink_jax.cli.arguments import register


@pytest.mark.parametrize("old", sorted(moved.MODULES))
def test_an_old_module_is_the_new_one_and_warns(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=moved.MODULES[old]):
        module = importlib.import_module(old)
    assert module is importlib.import_module(moved.MODULES[old])


def test_names_are_imported_from_old_packages_in_a_fresh_process():
    program = (
        "from adalink_jax.studies import tiny\n"
        "from adalink_jax.data.files import FileTask\n"
        "from adalink_jax.data.files.guess import __name__ as name\n"
        "import adalink_jax.contract.tiny\n"
        "assert tiny is adalink_jax.contract.tiny and name == 'adalink_jax.data.user_files.task_draft'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


SELECTORS = ["studies.study.Study", "adalink_jax.studies.study.Study", "study.Study", "Study"]


@pytest.mark.parametrize("selector", SELECTORS)
def test_an_old_selector_still_binds(tmp_path, selector):
    register()
    (tmp_path / "part.gin").write_text(f"{selector}.reference = 'full'\n")
    (tmp_path / "whole.gin").write_text(f"import adalink_jax.training.run_pack\ninclude '{tmp_path}/part.gin'\n")
    sys.modules.pop("adalink_jax.training.run_pack", None)
    flags = configuration.GinFlags((str(tmp_path / "whole.gin"),), ((f"{selector}.seeds", "(4, 5)"),))
    with pytest.warns(DeprecationWarning, match="packs.run_pack"):
        configuration.load(flags, require_all=False)
    assert configuration.bindings() == {"Study.reference": "'full'", "Study.seeds": "(4, 5)"}


def test_an_old_reference_is_followed(tmp_path):
    register()
    (tmp_path / "old.gin").write_text("train.setup = @studies.sweep.Sweep()\n")
    configuration.load(configuration.GinFlags((str(tmp_path / "old.gin"),)), require_all=False)
    assert configuration.bindings() == {"train.setup": "@Sweep()"}
