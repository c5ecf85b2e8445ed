"""An adapter's module as settings of gin, and the usual settings of its method."""

import collections
import dataclasses

import flax.linen as nn

from adalink_jax import configuration
from adalink_jax.configuration import gin_checks
from adalink_jax.configuration.flags import GinFlags
from adalink_jax.errors import UserError

_FLAX_FIELDS = ("parent", "name")
_ADAPTER, _PEAK = "AdaptedModel.adapter", "warmup_cosine.peak"


def bindings_of_adapter(adapter: nn.Module) -> list[tuple[str, str]]:
    """The flags that make gin build `adapter`: `AdaptedModel.adapter = @AdaLinkAdapter()`, `AdaLinkAdapter.rank = 16`.

    Modules of one class among the settings of another (a `Chain` of two AdaLinks) have scopes.

    Raises:
      UserError: for a class that gin does not know.
    """
    counts = collections.Counter(type(module).__name__ for module in _modules(adapter))
    known, bindings, scopes = gin_checks.configurables(), [], collections.Counter()

    def literal(value: object) -> str:
        if isinstance(value, (tuple, list)):
            return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
        if not isinstance(value, nn.Module):
            return repr(value)
        kind = type(value)
        if getattr(known.get(kind.__name__), "__qualname__", None) != kind.__qualname__:
            raise UserError(
                f"{kind.__name__} is not known to gin, and so a run could not record it; put @gin.configurable above the class."
            )
        scopes[kind.__name__] += 1
        scope = f"{kind.__name__.lower()}_{scopes[kind.__name__]}/" if counts[kind.__name__] > 1 else ""
        for field in dataclasses.fields(value):
            setting = getattr(value, field.name)
            if field.name not in _FLAX_FIELDS and not _is_default(field, setting):
                bindings.append((f"{scope}{kind.__name__}.{field.name}", literal(setting)))
        return f"@{scope}{kind.__name__}()"

    root = literal(adapter)
    return [*bindings, (_ADAPTER, root)]


def _is_default(field: dataclasses.Field, value: object) -> bool:
    return field.default is not dataclasses.MISSING and type(field.default) is type(value) and field.default == value


def _modules(adapter: object) -> list[nn.Module]:
    """The module, and all among its settings."""
    if isinstance(adapter, (tuple, list)):
        return [module for item in adapter for module in _modules(item)]
    if not isinstance(adapter, nn.Module):
        return []
    names = [field.name for field in dataclasses.fields(adapter) if field.name not in _FLAX_FIELDS]
    return [adapter, *(module for name in names for module in _modules(getattr(adapter, name)))]


def usual_learning_rate(adapter: nn.Module) -> str | None:
    """LEARNING_RATE of the first file of gin/adapters whose method this is, as text; else None. It loads gin files."""
    method = f"@{type(adapter).__name__}()"
    for file in sorted((configuration.gin_root() / "adapters").glob("*.gin")):
        configuration.load(GinFlags((f"gin/adapters/{file.name}", "gin/runs/finetune.gin")), require_all=False)
        bound = configuration.bindings()
        if bound.get(_ADAPTER) == method:
            return bound.get(_PEAK)
    return None
