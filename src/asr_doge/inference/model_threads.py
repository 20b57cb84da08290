"""Threads that run a model, each on its share of the processor's cores.

Promises: the number of torch's threads in all other threads, those that are started later included, stays what it was.
As the process ends, they are told to end and waited for: torch does not bear to be left in the middle.
"""

import atexit
import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch

_STOPS: "WeakKeyDictionary[threading.Thread, Callable[[], None]]" = WeakKeyDictionary()
"""How to tell each of the threads that it is to end."""


def start_model_threads(
    count: int, work: Callable[[], None], stop: Callable[[], None], name: str
) -> list[threading.Thread]:
    """Start threads that do this work.

    Args:
        count: of the threads; torch has its number of threads divided by it in each.
        work: returns when the thread is to end.
        stop: tells one of the threads, or all of them, to end; it is called once for each.
        name: of each thread.
    """
    cores = torch.get_num_threads()
    ready = threading.Barrier(count + 1)

    def run() -> None:
        torch.get_num_threads()  # the first call of any kind in a thread gives it the number of the last setter
        torch.set_num_threads(max(1, cores // count))
        ready.wait()
        work()

    threads = [threading.Thread(target=run, name=name, daemon=True) for _ in range(count)]
    for thread in threads:
        _STOPS[thread] = stop
        thread.start()
    ready.wait()
    torch.set_num_threads(cores)  # what a thread sets holds for it, and for all that are started afterwards
    return threads


def are_any_alive() -> bool:
    """Whether the end of the process would wait for one of these threads."""
    return any(thread.is_alive() for thread in _STOPS)


@atexit.register
def _end_all() -> None:
    alive = [(thread, stop) for thread, stop in _STOPS.items() if thread.is_alive()]
    for _, stop in alive:
        stop()
    for thread, _ in alive:
        thread.join()
