"""The layers of the package: imports point downwards only, without cycles, and no two modules share a name.

Imports inside functions count too.
"""

import ast
import collections
import functools
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "adalink_jax"
# From the top down. Packages on one line do not import each other.
LAYERS = [
    ("train", "eval", "__main__"),
    ("cli", "python_api"),
    ("serving", "t5x"),
    ("interop",),
    ("reports",),
    ("experiments",),
    ("launching", "contract", "planning"),
    ("training",),
    ("data",),
    ("checkpoints",),
    ("adapters",),
    ("models",),
    ("parallel",),
    ("configuration", "files"),
    ("preemption", "stack_traces"),
    ("errors", "moved", "near_names", "terminal", "timings", "token_ids", "typed_values", "version"),
]
HEIGHT = {package: -number for number, packages in enumerate(LAYERS) for package in packages}


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    files = [file for file in ROOT.rglob("*.py") if "templates" not in file.parts]
    dotted = {".".join(file.relative_to(ROOT.parent).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in dotted.items()}


@functools.cache
def imports() -> list[tuple[str, str]]:
    """`(module, module that it imports)`."""
    edges = []
    for name, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adalink_jax"):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    edges.append((name, inner if inner in modules() else node.module))
            elif isinstance(node, ast.Import):
                edges += [(name, alias.name) for alias in node.names if alias.name.startswith("adalink_jax")]
    return edges


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_package_has_a_layer():
    assert {package(name) for name in modules()} - {""} == set(HEIGHT)


def test_imports_point_downwards():
    wrong = [
        f"{module} imports {other}"
        for module, other in imports()
        if package(module) and package(other) and package(module) != package(other)
        if HEIGHT[package(module)] <= HEIGHT[package(other)]
    ]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    graph = collections.defaultdict(set)
    for module, other in imports():
        if modules()[other].stem != "__init__":  # only a package's list of names
            graph[module].add(other)
    cycle = []
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        cycle = e.args[1]
    assert not cycle


def test_no_two_modules_share_a_name():
    names = collections.Counter(name.split(".")[-1] for name in modules() if "." in name)
    assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize("module", ["adalink_jax.data.user_files.workers", "adalink_jax.experiments.sweeps.runner"])
def test_a_process_that_only_reads_or_watches_imports_no_jax(module):
    program = f"import sys, {module}; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
