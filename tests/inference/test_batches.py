"""Batches, one or several at a time."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from asr_doge.audio import Voice, synthesize
from asr_doge.inference.batches import BatchRunner
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model


def length(item: int) -> int:
    """Of an item, which is a number here."""
    return item


def doubled(batch: Sequence[int]) -> list[int]:
    return [2 * item for item in batch]


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_each_item_has_its_own_result_and_the_longest_come_first(parallel: int) -> None:
    with BatchRunner(doubled, length, 2, parallel) as batches:
        found = [*batches.submit([3, 9, 5, 7, 1]), *batches.submit([4, 6]), *batches.drain()]

    assert found == [([9, 7], [18, 14]), ([5, 3], [10, 6]), ([1], [2]), ([6, 4], [12, 8])]


def test_two_batches_are_at_work_together_and_never_three() -> None:
    both, at_work, most = threading.Barrier(2, timeout=60), [0], [0]
    lock = threading.Lock()

    def work(batch: Sequence[int]) -> list[int]:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        both.wait()  # a batch alone would wait for ever
        with lock:
            at_work[0] -= 1
        return doubled(batch)

    with BatchRunner(work, length, 1, 2) as batches:
        found = [*batches.submit([1, 2, 3, 4, 5, 6]), *batches.drain()]

    assert [item for (item,), _ in found] == [6, 5, 4, 3, 2, 1]
    assert most[0] == 2


def test_a_batch_goes_on_while_another_takes_long() -> None:
    others = threading.Semaphore(0)

    def work(batch: Sequence[int]) -> list[int]:
        if batch == [9]:
            assert all(others.acquire(timeout=60) for _ in range(3))  # the first ends after three others
        else:
            others.release()
        return doubled(batch)

    with BatchRunner(work, length, 1, 2) as batches:
        found = [*batches.submit([9, 3, 2, 1]), *batches.drain()]

    assert [item for (item,), _ in found] == [9, 3, 2, 1]


def test_an_only_batch_has_all_of_torchs_threads(four_threads: None) -> None:
    with BatchRunner(lambda batch: [torch.get_num_threads()], length, 2, 2) as batches:
        assert [*batches.submit([1, 2]), *batches.drain()] == [([2, 1], [4])]


def test_threads_share_the_cores_and_later_ones_have_the_callers_number(four_threads: None) -> None:
    with BatchRunner(lambda batch: [torch.get_num_threads()], length, 1, 2) as batches:
        found = [*batches.submit([1, 2]), *batches.drain()]
    assert [threads for _, (threads,) in found] == [2, 2]

    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), later) == (4, [4])


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_an_error_of_a_batch_reaches_the_caller() -> None:
    def work(batch: Sequence[int]) -> list[int]:
        if batch == [1]:
            raise MemoryError("no room")
        return doubled(batch)

    with BatchRunner(work, length, 1, 2) as batches:
        assert list(batches.submit([1, 2])) == []  # still at work
        assert next(batches.drain()) == ([2], [4])
        with pytest.raises(MemoryError, match="no room"):
            list(batches.drain())


def test_who_leaves_early_waits_for_no_batch_and_begins_no_other() -> None:
    begun: list[int] = []
    leave = threading.Event()

    def work(batch: Sequence[int]) -> list[int]:
        begun.extend(batch)
        leave.wait(60)
        return doubled(batch)

    with BatchRunner(work, length, 1, 2) as batches:
        assert list(batches.submit([4, 3, 2, 1])) == []
    leave.set()

    waiting = [thread for thread in threading.enumerate() if thread.name == "batches"]
    for thread in waiting:
        thread.join(60)
    assert sorted(begun) in ([], [4], [3, 4])


LEAVES_WORK = """
import sys, threading, torch
from asr_doge.inference.batches import BatchRunner

begun = threading.Event()

def work(batch):
    begun.set()
    for _ in range(100):
        torch.randn(600, 600) @ torch.randn(600, 600)
    return batch

batches = BatchRunner(work, abs, 1, 2)
list(batches.submit([3, 2, 1]))
begun.wait()
sys.exit(7)
"""


def test_a_process_that_ends_with_batches_at_work_is_not_aborted() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEAVES_WORK], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "", "")


def test_texts_are_those_of_one_batch_at_a_time() -> None:
    loaded = load_model("nano", device="cpu")
    one_at_a_time, together = Transcriber(loaded, batch_size=2), Transcriber(loaded, batch_size=2)
    one_at_a_time.parallel, together.parallel = 1, 2
    waveforms = [
        synthesize(text, Voice("en-us")) for text in ("one two", "three", "four five six", "seven", "eight nine")
    ]

    texts = [result.text for result in together.transcribe(waveforms)]

    assert texts == [result.text for result in one_at_a_time.transcribe(waveforms)]
    assert len(set(texts)) == 5
