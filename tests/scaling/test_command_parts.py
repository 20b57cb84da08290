"""Parts of a command: what a worker makes of errors, and how many parts there are."""

from collections.abc import Callable

import pytest

from asr_doge.errors import CheckpointError, ConfigError, DataError, StoreError
from asr_doge.scaling.command_parts import PartsWorker, part_names
from asr_doge.scaling.configuration import EngineConfig
from asr_doge.scaling.engines import StageError, TransientError


def failing(error: Exception) -> Callable[[str], None]:
    def do(part: str) -> None:
        raise error

    return do


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (StoreError("the disk is away"), TransientError),  # which another machine may have
        (DataError("a malformed manifest"), DataError),
        (CheckpointError("no such model"), CheckpointError),
        (ConfigError("no such flag"), ConfigError),
        (ZeroDivisionError("a defect"), StageError),
    ],
)
def test_what_may_pass_is_told_from_what_stops_the_job(error: Exception, becomes: type[Exception]) -> None:
    worker: PartsWorker[None] = PartsWorker(lambda: failing(error))
    worker.start()
    with pytest.raises(becomes, match=str(error)) as caught:
        worker.run("1/2")
    assert type(caught.value) is becomes


@pytest.mark.parametrize(("workers", "most", "count"), [("3", None, 6), ("1:4", None, 8), ("4", 5, 5), ("1", 1, 1)])
def test_there_are_two_parts_for_each_worker_and_none_is_empty(workers: str, most: int | None, count: int) -> None:
    names = part_names(EngineConfig(workers=workers), most)
    assert names == [f"{part}/{count}" for part in range(1, count + 1)]
