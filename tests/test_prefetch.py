"""Batches that are made ahead in a thread: the same order and positions, errors as themselves, and an end."""

import threading
import time

import numpy as np
import pytest

from adalink_jax.data import EpochIterator
from adalink_jax.data.prefetch import Prefetched
from adalink_jax.errors import UserError

ROWS, BATCH = 10, 4


def batches(examples=None):
    """Epochs of two batches; a row is its number."""
    shuffled = lambda seed, start: list(np.random.default_rng(seed).permutation(ROWS))[start:]
    return EpochIterator(examples or shuffled, lambda rows: {"row": np.array(rows)}, BATCH, seed=3)


def rows(iterator, count):
    return [next(iterator)["row"].tolist() for _ in range(count)]


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not threads()


def settles_at(count, numbers):
    """Whether `numbers` gets this long and no longer."""
    deadline = time.monotonic() + 60
    while len(numbers) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    return len(numbers) == count


def test_batches_and_positions_are_those_of_the_source():
    plain = batches()
    with Prefetched(batches(), 7) as ahead:
        for _ in range(7):
            assert ahead.get_state() == plain.get_state()
            np.testing.assert_array_equal(next(ahead)["row"], next(plain)["row"])
        assert ahead.get_state() == plain.get_state() == {"epoch": 3, "batch": 1}
        with pytest.raises(StopIteration):
            next(ahead)


@pytest.mark.parametrize("taken", [0, 1, 2, 5])
def test_a_saved_position_belongs_to_what_was_taken_not_to_what_was_made(taken):
    whole = rows(batches(), 9)
    with Prefetched(batches(), 9, ahead=3) as ahead:
        assert rows(ahead, taken) == whole[:taken]
        while not ahead.start()._items.qsize():  # something is made that nobody has taken
            time.sleep(0.01)
        position = ahead.get_state()
    resumed = batches()
    resumed.set_state(position)
    with Prefetched(resumed, 9 - taken) as rest:
        assert rows(rest, 9 - taken) == whole[taken:]


def test_after_its_end_it_and_its_source_are_at_the_position():
    whole, source = rows(batches(), 6), batches()
    ahead = Prefetched(source, 6)
    assert rows(ahead, 2) == whole[:2]
    ahead.close()
    assert source.get_state() == ahead.get_state() and not threads()
    assert rows(ahead, 1) == whole[2:3]  # it begins again
    ahead.set_state({"epoch": 0, "batch": 1})
    assert rows(ahead, 1) == whole[1:2]
    ahead.close()
    assert rows(source, 1) == whole[2:3]


def test_no_more_is_made_than_is_wanted():
    numbers = []

    def examples(seed, start):
        for i in range(start, ROWS):
            numbers.append(i)
            yield i

    with Prefetched(batches(examples), 50, ahead=2) as ahead:
        assert settles_at(2 * BATCH, numbers)
        next(ahead)
        assert settles_at(ROWS + BATCH, numbers)  # the end of the epoch is read to see it
    numbers.clear()
    with Prefetched(batches(examples), 1, ahead=2) as ahead:
        assert settles_at(BATCH, numbers)
        next(ahead)
        assert settles_at(BATCH, numbers)


@pytest.mark.parametrize("error", [UserError("bad row"), KeyboardInterrupt(), SystemExit(3)])
def test_what_the_thread_raises_appears_in_the_loop_at_its_batch(error):
    def examples(seed, start):
        yield from range(start, BATCH)
        raise error

    with Prefetched(batches(examples), 9) as ahead:
        next(ahead)
        with pytest.raises(type(error)) as raised:
            next(ahead)
        assert raised.value is error and not threads()
        with pytest.raises(type(error)):  # and again: nothing waits for a thread that has ended
            next(ahead)


def test_the_thread_ends_when_the_loop_fails():
    with pytest.raises(ZeroDivisionError), Prefetched(batches(), 9) as ahead:
        next(ahead)
        raise ZeroDivisionError
