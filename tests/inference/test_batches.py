"""Batches of queued chunks, one or several at a time."""

import threading
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import torch

from asr_doge.audio import Voice, synthesize
from asr_doge.decoding.recognition import Recognition
from asr_doge.inference.batches import Batches
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.recordings import QueuedChunk, Recording
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model


def queued(*lengths: int) -> list[QueuedChunk]:
    """Chunks of these lengths, in samples."""
    recording = cast(Recording, None)
    return [(recording, number, Chunk(np.zeros(n, np.float32), 0.0, None)) for number, n in enumerate(lengths)]


def by_length(batch: Sequence[QueuedChunk]) -> list[Recognition]:
    """A recognition that tells how long its chunk was."""
    return [Recognition(str(len(chunk.samples))) for _, _, chunk in batch]


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_each_chunk_has_its_own_recognition_and_the_longest_come_first(parallel: int) -> None:
    with Batches(by_length, 2, parallel) as batches:
        found = [*batches.through(queued(3, 9, 5, 7, 1)), *batches.through(queued(4, 6)), *batches.rest()]

    assert [[recognition.text for recognition in recognitions] for _, recognitions in found] == [
        ["9", "7"],
        ["5", "3"],
        ["1"],
        ["6", "4"],
    ]
    assert all(
        str(len(chunk.samples)) == one.text
        for batch, all_ in found
        for (_, _, chunk), one in zip(batch, all_, strict=True)
    )


def test_two_batches_are_at_work_together_and_never_three() -> None:
    both, at_work, most = threading.Barrier(2, timeout=60), [0], [0]
    lock = threading.Lock()

    def recognize(batch: Sequence[QueuedChunk]) -> list[Recognition]:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        both.wait()  # a batch alone would wait for ever
        with lock:
            at_work[0] -= 1
        return by_length(batch)

    with Batches(recognize, 1, 2) as batches:
        found = [*batches.through(queued(1, 2, 3, 4)), *batches.rest()]

    assert len(found) == 4
    assert most[0] == 2


def test_threads_share_the_cores_and_leave_the_callers_number_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    seen = []

    def recognize(batch: Sequence[QueuedChunk]) -> list[Recognition]:
        seen.append(torch.get_num_threads())
        return by_length(batch)

    try:
        with Batches(recognize, 1, 2) as batches:
            assert len([*batches.through(queued(1, 2)), *batches.rest()]) == 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 2]


def test_an_error_of_a_batch_reaches_the_caller() -> None:
    def recognize(batch: Sequence[QueuedChunk]) -> list[Recognition]:
        raise MemoryError("no room")

    with Batches(recognize, 1, 2) as batches:
        assert list(batches.through(queued(1))) == []  # still at work
        with pytest.raises(MemoryError, match="no room"):
            list(batches.rest())


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
