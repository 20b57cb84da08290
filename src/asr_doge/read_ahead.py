"""Prefetch: make the next item of an iterator in a thread while its consumer works on the present one.

Promises: the items and the errors are the iterator's own, in order; at most one item is made ahead, so that memory is
that of two. If one side releases Python's lock most of the time, as models do, both take only the time of the slower.
It does not know what the items are. A thread whose iterator blocks (a pipe into which nobody writes) is abandoned,
and does not keep the process alive.
"""

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")

STOP_SECONDS = 0.5
"""Seconds that a consumer which stops early waits for the thread to end."""


def read_ahead(items: Iterator[Item], stop: Callable[[], None] = lambda: None) -> Iterator[Item]:
    """Yield the items of an iterator; the next is made while the consumer has one.

    Args:
        items: used by one other thread only.
        stop: called if the consumer stops before the end, so that `items` may end early.
    """
    orders: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[tuple[list[Item], BaseException | None]] = SimpleQueue()

    def work() -> None:
        while orders.get():
            try:
                made.put(([next(items)], None))
            except StopIteration:
                made.put(([], None))
                return
            except BaseException as error:  # of any kind: the consumer gets it
                made.put(([], error))
                return

    thread = Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    orders.put(True)
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if not item:
                return
            orders.put(True)
            yield item.pop()
    finally:
        stop()
        orders.put(False)
        thread.join(STOP_SECONDS)
