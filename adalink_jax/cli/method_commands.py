"""Commands on methods: does one do what every method must do?"""

import importlib
import inspect
import os
import sys

from adalink_jax import configuration
from adalink_jax.cli.arguments import gin_parser, register
from adalink_jax.configuration.gin_checks import nearest
from adalink_jax.errors import UserError

_DEVICES = "--xla_force_host_platform_device_count"
_STYLES = {"pass": "green", "fail": "bold red"}


def check_method(argv: list[str]) -> int:
    """`adalink check-method`; status 1 where the method fails at something."""
    parser = gin_parser(
        "check-method",
        "See whether a method does all that every method must do, on a tiny T5 and a tiny PaLI: start, train, be saved,\n"
        "loaded, switched off, merged, scanned, decoded, spread over devices. On the CPU there are eight virtual ones.",
        "adalink check-method my_module.MyAdapter --gin.MyAdapter.rank=4",
    )
    parser.add_argument(
        "method", help="MODULE.CLASS, of the current folder or installed; or one of this package, such as LoRA"
    )
    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    if _DEVICES not in os.environ.get("XLA_FLAGS", ""):  # read when JAX starts
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()
    register()
    method = _find(options.method)
    configuration.load(flags, require_all=False)
    adapter = _make(method)
    configuration.check_all_used(flags)
    return _examine(adapter)


def _examine(adapter) -> int:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from adalink_jax.adapters import describe_adapter
    from adalink_jax.contract.behaviours import BEHAVIOURS, FAIL, examine
    from adalink_jax.contract.case import Case
    from adalink_jax.contract.tiny import BACKBONES

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    about = describe_adapter(adapter)
    table = Table(title=escape(about["method"]), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("behaviour", "on", "", "because"):
        table.add_column(heading, overflow="fold")
    failed = 0
    with console.status("") as status:
        for backbone in BACKBONES:
            case = Case(adapter, backbone)
            for behaviour in BEHAVIOURS:
                name = behaviour.__name__.replace("_", " ")
                status.update(f"{backbone}: {name}")
                result = examine(behaviour, case)
                failed += result.outcome == FAIL
                outcome = f"[{_STYLES.get(result.outcome, 'dim')}]{result.outcome}[/]"
                table.add_row(name, backbone, outcome, escape(result.reason))
            table.add_section()
    settings = ", ".join(f"{name} {value}" for name, value in about["settings"].items())
    table.caption = f"{escape(settings)}: {f'{failed} failed' if failed else 'none failed'}"
    console.print(table)
    return 1 if failed else 0


def _find(name: str):
    """The class; its module is imported.

    Raises:
      UserError: for a module or a class that there is not.
    """
    import flax.linen as nn

    from adalink_jax.adapters.registry import METHODS

    module_name, dot, short = name.rpartition(".")
    if not dot:
        if name not in METHODS:
            raise UserError(
                f"There is no method {name!r} in this package{nearest(name, METHODS)}; one of your own is MODULE.CLASS."
            )
        return METHODS[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{module_name}.".startswith(f"{e.name}."):
            raise  # something that the module itself imports
        raise UserError(f"There is no module {module_name}, in {os.getcwd()} or installed.") from e
    found = getattr(module, short, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        classes = [
            key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, nn.Module)
        ]
        raise UserError(f"{module_name} ({module.__file__}) has no Flax module {short}{nearest(short, classes)}.")
    return found


def _make(method):
    """The method with its defaults, and what gin binds.

    Raises:
      UserError: names settings that have neither.
    """
    bound = configuration.bindings()
    missing = [
        name
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.default is parameter.empty and f"{method.__name__}.{name}" not in bound
    ]
    if missing:
        wanted = " ".join(f"--gin.{method.__name__}.{name}=VALUE" for name in missing)
        raise UserError(f"{method.__name__} has no default for {', '.join(missing)}; add {wanted}.")
    return method()
