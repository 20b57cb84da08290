"""Compute in a process that was forked from one that had already computed.

Promises: `in_live_threads` gives the result of the call, in any process and thread. After a fork, only the thread that
called `fork` exists in the new process: the threads that OpenMP (of torch, and of the voice activity detector) keeps
for it are gone, and it would wait for them for ever. Any other thread gets new ones, so another thread computes for it.
It does not help in a process forked while another thread was computing, nor code that calls torch directly.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Fork:
    """The thread that survived a fork, and the one that computes for it; None in a process that was not forked."""

    thread: int | None = None
    substitute: ThreadPoolExecutor | None = None

    @classmethod
    def happened(cls) -> None:
        cls.thread, cls.substitute = threading.get_ident(), None


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_Fork.happened)


def in_live_threads(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Result:
    """Call a function that uses OpenMP in a thread for which OpenMP's threads are alive."""
    if _Fork.thread != threading.get_ident():
        return function(*arguments, **options)
    if _Fork.substitute is None:
        _Fork.substitute = ThreadPoolExecutor(1, "after-fork")
    return _Fork.substitute.submit(function, *arguments, **options).result()
