"""Old gin selectors: a configurable whose module moved is still found by the module that it was in.

`studies.study.Study.seeds = (0, 1)` binds `adalink_jax.experiments.scaling.study.Study`, since `moved.MODULES` has its old
module. Selectors are renamed after gin has parsed them, so strings, comments and line numbers are never touched.
"""

import contextlib
from collections.abc import Iterator

from gin import config as gin_config

from adalink_jax import moved


def current(selector: str) -> str:
    """The selector that gin knows.

    Args:
      selector: `[[package.]module.]name`, without a scope.

    Returns:
      `selector` if it matches a configurable or no old module has such a one, else the new selector in full.
    """
    known, (module, _, name) = gin_config._REGISTRY, selector.rpartition(".")
    if known.matching_selectors(selector):
        return selector
    renamed = (f"{new}.{name}" for old, new in moved.MODULES.items() if f".{old}".endswith(f".{module}"))
    return next((full for full in renamed if full in known), selector)


@contextlib.contextmanager
def accepted() -> Iterator[None]:
    """While entered, gin's parser accepts old selectors: of bindings, blocks and references, in included files too."""
    get_configurable = gin_config.ParseContext.get_configurable
    configurable_reference = gin_config.ParserDelegate.configurable_reference

    # Under dynamic registration a selector is an attribute of what the file imports; `moved` has aliases for imports.
    renaming_get = lambda context, selector: get_configurable(
        context, selector if context._dynamic_registration else current(selector)
    )

    def renaming_reference(delegate: gin_config.ParserDelegate, scoped_selector: str, evaluate: bool) -> object:
        # The reference keeps this text, and gin parses it again when it writes a configuration.
        if not gin_config._parse_context()._dynamic_registration:
            scopes, slash, selector = scoped_selector.rpartition("/")
            scoped_selector = f"{scopes}{slash}{current(selector)}"
        return configurable_reference(delegate, scoped_selector, evaluate)

    # gin has no hook between parsing a selector and looking it up, hence the replaced methods.
    gin_config.ParseContext.get_configurable = renaming_get  # pyright: ignore[reportAttributeAccessIssue]
    gin_config.ParserDelegate.configurable_reference = renaming_reference  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        gin_config.ParseContext.get_configurable = get_configurable
        gin_config.ParserDelegate.configurable_reference = configurable_reference
