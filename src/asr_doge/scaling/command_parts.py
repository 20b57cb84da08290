"""A command's parts on a Ray cluster: what its `--shard i/n` does, each by whichever worker is free.

Promises: every part is done once or more, and the same command as by hand does it, so the result is that of one
process; a part whose worker dies is given to another, and stops the job when it has ended `MOST_ATTEMPTS` workers. It
knows no command.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from asr_doge.errors import ASRDogeError, DataError, StoreError
from asr_doge.progress import progress_bar
from asr_doge.scaling.configuration import EngineConfig
from asr_doge.scaling.engines import StageError, TransientError
from asr_doge.scaling.ray_engine import run_on_ray

PARTS_PER_WORKER = 2
"""Parts for each worker: several, so that one that is slow or lost leaves less to the others."""
MOST_ATTEMPTS = 3

Report = TypeVar("Report")


class PartsWorker(Generic[Report]):
    """Runs parts of a command.

    Args:
        load: loads what the parts need, and returns the function that runs a part such as `2/8`.
    """

    def __init__(self, load: Callable[[], Callable[[str], Report]]) -> None:
        self._load = load

    def start(self) -> None:
        """Load it."""
        self._do = self._load()

    def run(self, part: str, is_last: bool = False) -> Report:
        """Do a part.

        Raises:
            TransientError: a disk or store failed, perhaps only now or here.
            ASRDogeError: as it raises.
            StageError: it raised something else.
        """
        try:
            return self._do(part)
        except StoreError as error:
            raise TransientError(str(error)) from error
        except ASRDogeError:
            raise
        except Exception as error:
            raise StageError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """End nothing."""


def run_parts(
    load: Callable[[], Callable[[str], Report]],
    config: EngineConfig,
    parts: Sequence[str],
    title: str,
    paths: Sequence[str | None],
) -> list[Report]:
    """Do parts on a cluster; returns their reports, as they came.

    Args:
        load: see `PartsWorker`; called on the workers' nodes.
        config: of the cluster.
        parts: what is to be done.
        title: of the bar.
        paths: as in `run_on_ray`.

    Raises:
        ASRDogeError: as in `run_on_ray` and of the work itself; or a part ended too many workers.
    """
    reports: list[Report] = []
    attempts: Counter[str] = Counter()
    with progress_bar(total=len(parts), desc=title, unit="part") as bar:

        def on_report(report: Report) -> None:
            reports.append(report)
            bar.update()

        def retry(part: str, reason: str) -> list[str]:
            attempts[part] += 1
            if attempts[part] < MOST_ATTEMPTS:
                return [part]
            raise DataError(
                f"part {part} ended {MOST_ATTEMPTS} workers, at last with {reason.splitlines()[0]}: run it by itself"
                f" with --shard {part} to see why"
            )

        left = run_on_ray(partial(PartsWorker[Report], load), parts, config, on_report, paths, retry)
    if left:
        raise DataError(left[0])
    return reports


def part_names(config: EngineConfig, most: int | None = None) -> list[str]:
    """The parts for the workers of a cluster; at most `most`."""
    count = PARTS_PER_WORKER * config.worker_range()[1]
    count = min(count, most) if most else count
    return [f"{part}/{count}" for part in range(1, count + 1)]
