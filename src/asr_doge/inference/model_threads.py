"""Threads that run a model, each on its share of the processor's cores.

Promises: the number of torch's threads in all other threads, those that are started later included, stays what it was.
They do not keep the process alive.
"""

import threading
from collections.abc import Callable

import torch


def start_model_threads(count: int, work: Callable[[], None], name: str) -> list[threading.Thread]:
    """Start threads that do this work.

    Args:
        count: of the threads; torch has its number of threads divided by it in each.
        work: returns when the thread is to end.
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
        thread.start()
    ready.wait()
    torch.set_num_threads(cores)  # what a thread sets holds for it, and for all that are started afterwards
    return threads
