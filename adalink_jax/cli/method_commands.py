"""`adalink check-method`: checks whether a method does everything that a method must do."""

import inspect
import os
from typing import TYPE_CHECKING, Any

from adalink_jax import configuration
from adalink_jax.cli.arguments import gin_parser, option, parse, register, table, table_console
from adalink_jax.configuration.gin_checks import nearest
from adalink_jax.errors import UserError

if TYPE_CHECKING:
    import flax.linen as nn

_DEVICES = "--xla_force_host_platform_device_count"
_STYLES = {"pass": "green", "fail": "bold red"}


def check_method(argv: list[str]) -> int:
    """`adalink check-method`; status 1 if the method fails any check."""
    parser = gin_parser(
        "check-method",
        "Check that a method does everything that a method must do, on a tiny model of each family: initialize, train, be saved\n"
        "and loaded, be disabled, merge, scan, decode, train on several devices. On the CPU, uses eight virtual devices.",
        "adalink check-method my_module.MyAdapter --gin.MyAdapter.rank=4",
        option(
            "method",
            help="MODULE.CLASS, importable from the current folder or installed; or a built-in one, such as LoRA",
        ),
    )
    flags, options = parse(parser, argv)
    if _DEVICES not in os.environ.get("XLA_FLAGS", ""):  # JAX reads it when it starts
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()
    register()
    from adalink_jax.adapters.adapted_kinds import kinds_of

    method = _find(options.method)
    configuration.load(flags, require_all=False)
    adapter = _make(method)
    kinds_of(adapter)
    configuration.check_all_used(flags)
    return _examine(adapter)


def _examine(adapter: "nn.Module") -> int:
    from rich import box
    from rich.text import Text

    from adalink_jax import terminal
    from adalink_jax.adapters import describe_adapter
    from adalink_jax.contract.behaviours import BEHAVIOURS, FAIL, examine
    from adalink_jax.contract.case import Case
    from adalink_jax.contract.tiny import BACKBONES

    console, about = table_console(120), describe_adapter(adapter)
    outcomes = table("behaviour", "on", "", "because", title=about["method"], box=box.SIMPLE_HEAD)
    failed = 0
    with terminal.progress() as show:
        for i, backbone in enumerate(BACKBONES):
            case = Case(adapter, backbone)
            for j, behaviour in enumerate(BEHAVIOURS):
                name = behaviour.__name__.replace("_", " ")
                show(f"{backbone}: {name}", (i + j / len(BEHAVIOURS)) / len(BACKBONES))
                result = examine(behaviour, case)
                failed += result.outcome == FAIL
                outcome = Text(result.outcome, _STYLES.get(result.outcome, "dim"))
                outcomes.add_row(name, backbone, outcome, result.reason)
            outcomes.add_section()
    settings = ", ".join(f"{name} {value}" for name, value in about["settings"].items())
    outcomes.caption = f"{settings}: {f'{failed} failed' if failed else 'none failed'}"
    console.print(outcomes)
    return 1 if failed else 0


def _find(name: str) -> "type[nn.Module]":
    """Returns the class called `name`, importing its module.

    Raises:
      UserError: if there is no such module or class.
    """
    import flax.linen as nn

    from adalink_jax.adapters.registry import METHODS

    module_name, dot, class_name = name.rpartition(".")
    if not dot:
        if name not in METHODS:
            raise UserError(
                f"There is no method {name!r} in this package{nearest(name, METHODS)}; name your own as MODULE.CLASS."
            )
        return METHODS[name]
    module = configuration.import_module(module_name, name)
    is_method = lambda value: inspect.isclass(value) and issubclass(value, nn.Module)
    method: Any = getattr(module, class_name, None)
    if not is_method(method):
        classes = [key for key, value in vars(module).items() if is_method(value)]
        raise UserError(
            f"{module_name} ({module.__file__}) has no Flax module {class_name}{nearest(class_name, classes)}."
        )
    return method


def _make(method: "type[nn.Module]") -> "nn.Module":
    """Makes the method with its defaults and gin's bindings.

    Raises:
      UserError: names arguments that have neither.
    """
    bound = configuration.bindings()
    missing = [
        name
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.default is parameter.empty and f"{method.__name__}.{name}" not in bound
    ]
    if missing:
        flags = " ".join(f"--gin.{method.__name__}.{name}=VALUE" for name in missing)
        raise UserError(f"{method.__name__} has no default for {', '.join(missing)}; add {flags}.")
    return method()
