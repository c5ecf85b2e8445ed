"""Checks the annotated types and shapes of the package's array code while tests run.

`install` hooks the import of `MODULES`: jaxtyping and beartype then check the arguments and results of every function whose
annotations have shapes, and the fields of every `Struct`. Elsewhere the annotations cost nothing. (jaxtyping's own import hook
would also check the constructors of gin-configurable classes, before gin fills in the arguments.)
"""

import ast
import importlib.machinery
import sys

SHAPED = {"Bool", "Float", "Int", "Num", "Shaped", "UInt"}
MODULES = tuple(f"adalink_jax.{package}" for package in ("models", "adapters", "checkpoints", "training"))
CHECK = ast.parse("__import__('jaxtyping').jaxtyped(typechecker=__import__('beartype').beartype)", mode="eval").body


def has_shapes(function: ast.FunctionDef) -> bool:
    """Returns whether an annotation is one of jaxtyping's."""
    parts = [*ast.walk(function.args), *(ast.walk(function.returns) if function.returns else ())]
    return any(isinstance(part, ast.Subscript) and getattr(part.value, "id", None) in SHAPED for part in parts)


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with its functions and structs decorated; compiled anew each time, as caches hold the plain code."""

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        methods = [child for node in tree.body if isinstance(node, ast.ClassDef) for child in node.body]
        for node in tree.body + methods:
            if isinstance(node, ast.FunctionDef) and has_shapes(node):
                node.decorator_list.append(CHECK)  # innermost, as decorators such as `jax.jit` hide annotations
            elif isinstance(node, ast.ClassDef) and any(getattr(base, "id", None) == "Struct" for base in node.bases):
                node.decorator_list.insert(0, CHECK)
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class Finder:
    """Finds the packages `MODULES` and their submodules."""

    @staticmethod
    def find_spec(name, path, target=None):
        if not any(name == module or name.startswith(f"{module}.") for module in MODULES):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install():
    """Checks all that is imported from here on."""
    if Finder in sys.meta_path:
        return
    loaded = [name for name in sys.modules if name.startswith(MODULES)]
    assert not loaded, f"already imported, so not checked: {loaded}"
    sys.meta_path.insert(0, Finder)
