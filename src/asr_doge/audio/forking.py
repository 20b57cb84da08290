"""Make calls that use OpenMP safe in a forked process.

Promises: `call_fork_safe` gives the result of the call, in any process and thread. torch and the voice activity
detector compute with OpenMP, which keeps threads for each thread that calls it. A fork copies only the thread that
called `fork`, without its OpenMP threads, for which it would wait for ever. In a forked process that thread therefore
leaves the call to another, new thread, to which OpenMP gives new threads.
It does not help in a process that was forked while another thread was computing, nor code that calls torch directly.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Fork:
    """The thread that survived a fork, and the one that computes for it; both None in a process that was not forked."""

    thread: int | None = None
    substitute: ThreadPoolExecutor | None = None

    @classmethod
    def happened(cls) -> None:
        cls.thread, cls.substitute = threading.get_ident(), None


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_Fork.happened)


def call_fork_safe(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Result:
    """Call a function that uses OpenMP: in this thread or, if this thread came from a fork, in a substitute for it."""
    if _Fork.thread != threading.get_ident():
        return function(*arguments, **options)
    if _Fork.substitute is None:
        _Fork.substitute = ThreadPoolExecutor(1, "after-fork")
    return _Fork.substitute.submit(function, *arguments, **options).result()
