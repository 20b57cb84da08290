"""Make the next item of an iterator in another thread while its user works on the present one.

Promises: the items and the errors are the iterator's own, in order; one item at most is made ahead, so that memory is
that of two. Where either of the two leaves Python's lock for most of its time, as models do, the shorter hides behind
the longer.
It does not know what the items are. A thread that waits for its iterator (a pipe into which nobody writes) is left
behind, and does not keep the process alive.
"""

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")

STOP_SECONDS = 0.5
"""How long a user that leaves early waits for the thread to end."""


def read_ahead(items: Iterator[Item], stop: Callable[[], None] = lambda: None) -> Iterator[Item]:
    """Yield the items of an iterator; the next is made while the user has one.

    Args:
        items: used by one other thread only.
        stop: called if the user leaves before the end, so that `items` may end early.
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
            except BaseException as error:  # of whatever kind, it is the user's
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
