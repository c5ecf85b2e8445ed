"""Calls that wait for a network, several at a time: there each takes a round trip, whatever it carries."""

import concurrent.futures
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from adalink_jax.files.places import is_remote

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 16


def at_once(path: str | os.PathLike[str]) -> int:
    """How many calls to make at a time for files at `path`: 1 on this machine."""
    return AT_ONCE if is_remote(path) else 1


def mapped(function: Callable[[T], R], items: Iterable[T], count: int) -> list[R]:
    """The results of `function` for `items`, in their order, of `count` calls at a time; an error ends it."""
    items = list(items)
    if min(count, len(items)) <= 1:
        return [function(item) for item in items]
    with concurrent.futures.ThreadPoolExecutor(min(count, len(items))) as threads:
        return list(threads.map(function, items))
