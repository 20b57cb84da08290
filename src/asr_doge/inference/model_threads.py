"""Threads that run a model, each with its share of the processor's cores.

Promises: torch's number of threads stays what it was in all other threads, also in those started later. When the
process ends, model threads are told to stop and waited for, since torch crashes if it is interrupted at work.
"""

import atexit
import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch

_STOPS: "WeakKeyDictionary[threading.Thread, Callable[[], None]]" = WeakKeyDictionary()
"""The function that tells each thread to stop."""


def start_model_threads(
    count: int, work: Callable[[], None], stop: Callable[[], None], name: str
) -> list[threading.Thread]:
    """Start threads that run `work`.

    Args:
        count: number of threads; each gets this share of torch's threads.
        work: returns when its thread is to end.
        stop: tells one of the threads, or all of them, to end; called once for each.
        name: of each thread.
    """
    cores = torch.get_num_threads()
    ready = threading.Barrier(count + 1)

    def run() -> None:
        torch.get_num_threads()  # else the first call below would set the number that another thread set last
        torch.set_num_threads(max(1, cores // count))
        ready.wait()
        work()

    threads = [threading.Thread(target=run, name=name, daemon=True) for _ in range(count)]
    for thread in threads:
        _STOPS[thread] = stop
        thread.start()
    ready.wait()
    torch.set_num_threads(cores)  # a number holds for the thread that sets it and for threads started afterwards
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
