"""Load models in one thread at a time.

Promises: functions that are `one_at_a_time` wait for each other, and may call each other. While a model is built
without memory for its weights, accelerate and transformers replace functions of torch for all threads; two that overlap
would fail, and leave these functions replaced for good.
It does not help a program that builds modules of its own meanwhile.
"""

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_LOADING = threading.RLock()


def one_at_a_time(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function run in one thread at a time, together with all others that are decorated so."""

    @wraps(function)
    def waiting(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        with _LOADING:
            return function(*arguments, **options)

    return waiting
