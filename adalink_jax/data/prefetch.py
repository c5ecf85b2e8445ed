"""Batches made ahead of their use, in a thread.

Invariant: seen from outside, `Prefetched` is its source: the same batches in the same order, and `get_state` is the position after
the last batch that was *taken*, however many are made already. Placing a batch on the devices is left to the training loop, where it
overlaps with the step before.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Any

from adalink_jax.data.batch_order import BatchIterator
from adalink_jax.data.feature_converter import Batch

_Item = tuple[Batch, dict[str, Any]] | BaseException  # a batch and the position after it, or what was raised


class Prefetched:
    """The first `count` batches of a source. The thread begins with `start` or `next`, and ends with `close` or the context.

    Args:
      source: makes the batches; nothing else may use it until `close`.
      count: how many batches are taken at most; no more are made.
      ahead: how many batches are made before they are taken, at most.
    """

    def __init__(self, source: BatchIterator, count: int, ahead: int = 2):
        self._source, self._left, self._ahead = source, count, ahead
        self._position = source.get_state()
        self._worker: _Worker | None = None

    def __enter__(self) -> "Prefetched":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          StopIteration: after `count` batches.
          BaseException: whatever the source raised instead of this batch, `KeyboardInterrupt` too; the thread has then ended.
        """
        if not self._left:
            raise StopIteration
        item = self.start().take()
        if isinstance(item, BaseException):
            self.close()
            raise item
        batch, self._position = item
        self._left -= 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The source's position at the batch that `next` would return now."""
        return self._position

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position; what was made ahead is dropped."""
        self.close()
        self._source.set_state(state)
        self._position = state

    def start(self) -> "_Worker":
        """Begins to make batches, unless the thread runs already."""
        if self._worker is None:
            self._worker = _Worker(self._source, self._left, self._ahead)
        return self._worker

    def close(self) -> None:
        """Ends the thread, after the batch that it is making, and moves the source back to `get_state`."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None
            self._source.set_state(self._position)


class _Worker:
    """The thread, and what it has made. It waits while `ahead` batches wait to be taken."""

    def __init__(self, source: BatchIterator, count: int, ahead: int):
        self._source, self._count = source, count
        self._items: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._room, self._ending = threading.Semaphore(ahead), False
        # A daemon: a second Ctrl-C, which leaves the process at once, does not wait for it.
        self._thread = threading.Thread(target=self._make, name="batches", daemon=True)
        self._thread.start()

    def _make(self) -> None:
        try:
            for _ in range(self._count):
                self._room.acquire()
                if self._ending:
                    return
                batch = next(self._source)
                self._items.put((batch, self._source.get_state()))
        except BaseException as e:  # for the loop, where this batch would have been
            self._items.put(e)

    def take(self) -> _Item:
        """Waits for the next batch."""
        item = self._items.get()
        self._room.release()
        return item

    def end(self) -> None:
        """Waits for the thread's end."""
        self._ending = True
        self._room.release()
        self._thread.join()
