"""The README and the notebook: their code runs, and what they name exists."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_library_example_runs_and_is_the_identity_at_first():
    import jax
    import jax.numpy as jnp

    code, in_python = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    page = (ROOT / "docs" / "python.md").read_text()  # whose lines tests/test_python_api.py runs
    assert all(line in page for line in in_python.splitlines())
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    names = {}
    exec(code, names)
    params, ids = names["params"], jnp.arange(16)[None]
    up = params["AdaLink_0"]["up"]
    leaf = getattr(up, "value", up)
    assert leaf.shape == (8, 64) and not leaf.any()
    assert names["Classifier"]().apply({"params": jax.tree.map(lambda x: x, params)}, ids).shape == (1, 2)


def test_it_is_short_and_begins_with_what_matters():
    assert len(TEXT.split()) <= 1080
    first_screen = "\n".join(TEXT.splitlines()[:25])
    assert "pip install" in first_screen and "adalink quickstart" in first_screen
    assert len(re.findall(r"^- \*\*.*?:\*\*", first_screen, re.MULTILINE)) == 3
    assert len(re.findall(r"\*\*Status", TEXT)) == 1


def test_files_and_folders_that_are_named_exist():
    named = set(re.findall(r"(?<![\w/'])(?:gin|tests|docs|adalink_jax|benchmarks|launch)/[\w./]+", TEXT))
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "path", [p for p in sorted((ROOT / "gin").rglob("*.gin")) if p.parent.name != "t5x"], ids=lambda p: p.stem
)
def test_every_shipped_gin_file_loads(path):
    from adalink_jax import configuration
    from adalink_jax.cli.arguments import register
    from adalink_jax.experiments.comparisons import compare  # noqa: F401
    from adalink_jax.experiments.scaling import study  # noqa: F401

    register()
    flags, _ = configuration.parse_flags([f"--gin_file={path}"])
    configuration.load(flags, require_all=False)
    assert configuration.bindings()


def test_every_public_name_has_a_docstring():
    import adalink_jax

    for name in adalink_jax.__all__:
        assert name == "__version__" or getattr(adalink_jax, name).__doc__


@pytest.mark.slow
@pytest.mark.parametrize("name", ["notebook", "notebook_own_loop"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own
def test_the_notebook_runs_and_adapts(name):
    cells = json.loads((ROOT / "docs" / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    lines = [line for text in code for line in text.splitlines() if line.strip() and "import " not in line]
    assert len(lines) <= 30
    names = {}
    for text in code:
        exec(text, names)
    assert names["right"](names["model"](*names["asked"])) > 0.9
    if name == "notebook":
        assert names["predict"](*names["asked"], adapters="reverse") == names["again"](*names["asked"])
