"""Compute in a process that was forked from one that had computed.

Promises: `in_live_threads` gives what the call gives, in any process and thread. The thread that called `fork` is alone
in the new process: the threads that OpenMP (of torch, and of the voice activity detector) keeps for it are gone, and
it would wait for them for good. Any other thread gets new ones, so that thread lets another compute in its place.
It can do nothing for a process forked while another thread was computing, nor for what calls torch directly.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Fork:
    """The thread that came through a fork, and the one that computes for it; None in a process that was not forked."""

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
    """Call a function that computes with OpenMP, where its threads are alive."""
    if _Fork.thread != threading.get_ident():
        return function(*arguments, **options)
    if _Fork.substitute is None:
        _Fork.substitute = ThreadPoolExecutor(1, "after-fork")
    return _Fork.substitute.submit(function, *arguments, **options).result()
